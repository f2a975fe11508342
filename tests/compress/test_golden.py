"""Files of every codec and architecture decode to the same bytes for ever (`golden/make.py` made them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorareg.compress.codec.codecs import CODECS, GENERATED, PREDICTED, LoadedGenerator, decode
from lorareg.compress.codec.container import unpack_code
from lorareg.compress.generators.generator import DECODERS, pack_generator
from lorareg.registry.types import Layout, sha256_hex

GOLDEN = Path(__file__).parent / "golden"
INDEX: dict[str, Any] = json.loads((GOLDEN / "index.json").read_text())
MOST_BYTES = 16_000


def load(name: str) -> tuple[bytes, Layout, LoadedGenerator | None]:
    entry = INDEX[name]
    layout = Layout.from_json(entry["layout"])
    loaded = None
    if entry["generator"]:
        file = (GOLDEN / entry["generator"]).read_bytes()
        loaded = LoadedGenerator.from_bytes(file, sha256_hex(file), layout)
    return (GOLDEN / f"{name}.code").read_bytes(), layout, loaded


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_golden_file_decodes_to_its_bytes(name: str) -> None:
    code, layout, loaded = load(name)
    assert sha256_hex(decode(code, layout, loaded, name)) == INDEX[name]["output"]


@pytest.mark.parametrize("arch", sorted(DECODERS))
def test_a_golden_generator_packs_to_the_same_file(arch: str) -> None:
    _, layout, loaded = load(f"generated-1-{arch}")
    assert loaded is not None
    assert pack_generator(loaded.generator, layout) == (GOLDEN / f"{arch}.generator").read_bytes()


def test_every_codec_and_architecture_has_a_golden_file() -> None:
    codes = [(GOLDEN / f"{name}.code").read_bytes() for name in INDEX]
    assert {unpack_code(code).codec for code in codes} == set(CODECS)
    assert {entry["generator"] for entry in INDEX.values()} - {None} == {f"{arch}.generator" for arch in DECODERS}


def test_every_architecture_has_a_code_with_and_without_a_residual() -> None:
    tiers: dict[str, set[str]] = {}
    for name, entry in INDEX.items():
        if entry["generator"]:
            code = unpack_code((GOLDEN / f"{name}.code").read_bytes())
            tiers.setdefault(entry["generator"], set()).add(CODECS[code.codec].name)
    written = {CODECS[PREDICTED].name, CODECS[GENERATED].name}
    assert {file for file, names in tiers.items() if written <= names} == {f"{arch}.generator" for arch in DECODERS}


def test_golden_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in GOLDEN.iterdir() if path.suffix in (".code", ".generator")}
    assert {name: size for name, size in sizes.items() if size > MOST_BYTES} == {}
