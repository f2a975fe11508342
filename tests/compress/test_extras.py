"""What a code leaves out of a weights file comes back exactly, also as a difference to another adapter's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lorareg.compress.codec.extras import Extras, attach_extras, pack_extras, read_extras, unpack_extras
from lorareg.compress.codec.planes import pack_tensors, unpack_tensors
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import verify
from lorareg.registry.errors import InvalidContainerError, NewerFormatError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import DTYPE_BYTES, ExtraTensor, Layout

WHAT = "Adapter 'task@1'"
LAYOUT = Layout(
    (), (), (ExtraTensor("alpha", "F32", ()), ExtraTensor("head", "BF16", (256, 130)), ExtraTensor("norm", "I64", (3,)))
)
HEAD = "base_model.model.lm_head.weight"


def made(seed: int = 0, metadata: dict[str, str] | None = None) -> Extras:
    random = np.random.default_rng(seed)
    tensors = {extra.key: random.bytes(extra.size_bytes) for extra in LAYOUT.extras}
    return Extras(tensors, metadata or {"format": "pt"})


def test_extras_come_back() -> None:
    extras = made(metadata={"ss_tag": "a", "format": "pt"})
    files = pack_extras(extras, LAYOUT)
    assert sorted(files) == ["extras/metadata", "extras/small", "extras/tensor-00001"]
    assert unpack_extras(files, LAYOUT, WHAT) == extras
    whole = attach_extras((8).to_bytes(8, "little") + b"{}      ", LAYOUT, extras)
    assert read_extras(whole, LAYOUT) == extras


def near(extras: Extras) -> Extras:
    """The same with a few bits of the head changed."""
    head = np.frombuffer(extras.tensors["head"], np.uint8).copy()
    head[::50] ^= 1
    return Extras({**extras.tensors, "head": head.tobytes()}, extras.metadata)


def test_what_differs_little_is_a_difference() -> None:
    first = made()
    reference = pack_extras(first, LAYOUT)["extras/tensor-00001"]
    second = near(first)
    files = pack_extras(second, LAYOUT, lambda path: reference)
    assert files["extras/reference-00001"] == reference
    assert len(files["extras/tensor-00001"]) < len(reference) / 10
    assert unpack_extras(files, LAYOUT, WHAT) == second
    assert "extras/reference-00001" not in pack_extras(made(7), LAYOUT, lambda path: reference)
    assert "extras/reference-00001" not in pack_extras(first, LAYOUT, lambda path: reference)


@pytest.mark.parametrize("path", ["extras/small", "extras/tensor-00001", "extras/reference-00001"])
def test_what_is_missing_or_of_another_format_is_named(path: str) -> None:
    first = made()
    reference = pack_extras(first, LAYOUT)["extras/tensor-00001"]
    files = pack_extras(near(first), LAYOUT, lambda path: reference)
    with pytest.raises(InvalidContainerError, match=f"{path}, which keeps what is no factor, is missing"):
        unpack_extras({name: data for name, data in files.items() if name != path}, LAYOUT, WHAT)
    with pytest.raises(InvalidContainerError, match=f"{path} has format b'\\\\x00'"):
        unpack_extras({**files, path: b"\x00" + files[path][1:]}, LAYOUT, WHAT)
    with pytest.raises(NewerFormatError, match=f"{path} of .* has format 7; this lorareg reads up to 2"):
        unpack_extras({**files, path: b"\x07" + files[path][1:]}, LAYOUT, WHAT)


def test_damage_is_a_typed_error_or_other_extras() -> None:
    files = pack_extras(made(metadata={"by": "hand"}), LAYOUT)
    for path in ("extras/small", "extras/metadata"):
        data = files[path]
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            _unpack_or_refuse({**files, path: bytes(flipped)})
        for length in range(len(data)):
            with pytest.raises(InvalidContainerError):
                unpack_extras({**files, path: data[:length]}, LAYOUT, WHAT)


def _unpack_or_refuse(files: dict[str, bytes]) -> None:
    try:
        found = unpack_extras(files, LAYOUT, WHAT)
    except (InvalidContainerError, NewerFormatError):
        return
    assert {key: len(data) for key, data in found.tensors.items()} == {e.key: e.size_bytes for e in LAYOUT.extras}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.binary(max_size=40)), max_size=6))
def test_tensors_of_any_dtypes_come_back(drawn: list[tuple[str, bytes]]) -> None:
    tensors = [(dtype, data * DTYPE_BYTES[dtype]) for dtype, data in drawn]
    sizes = [(dtype, len(data)) for dtype, data in tensors]
    assert unpack_tensors(pack_tensors(tensors), sizes, WHAT) == [data for _, data in tensors]


@pytest.fixture
def heads(sample_adapters: Path, tmp_path: Path) -> list[Path]:
    """Three adapters that trained the same head: each differs from the next in a few weights."""
    random, folders = np.random.default_rng(0), []
    head = random.normal(size=(128, 200)).astype(np.float32)
    for number, task in enumerate(("man-de", "man-nl", "src-rust")):
        folder = tmp_path / "adapters" / task
        folder.mkdir(parents=True)
        tensors = load_file(sample_adapters / task / "adapter_model.safetensors")
        head = head.copy()
        head[number::16] *= 1.001
        save_file({**tensors, HEAD: head}, folder / "adapter_model.safetensors", {"format": "pt"})
        config = json.loads((sample_adapters / task / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
        folders.append(folder)
    return folders


def test_heads_of_a_cohort_are_stored_once_and_as_differences(heads: list[Path], tmp_path: Path) -> None:
    options = CompressOptions(contract=Contract(tolerance=0.3), arch="none")
    with Registry.open(tmp_path / "home", create=True) as registry:
        for folder in heads:
            registry.ingest(read_folder(folder), name=folder.name)
        compress(registry, [], options, Silent())
        sizes = {}
        for folder in heads:
            adapter = registry.adapter(folder.name)
            files = {file.path: file for file in registry.files(adapter)}
            sizes[folder.name] = files["extras/tensor-00000"].size_bytes
            assert ("extras/reference-00000" in files) == (folder.name != "man-de")
            assert not verify(registry, adapter).problems
        assert max(sizes["man-nl"], sizes["src-rust"]) < sizes["man-de"] / 3
        registry.remove(registry.adapter("man-de"))
        assert not [finding for finding in registry.check(read_data=True) if finding.severity == "error"]
    for folder in heads[1:]:
        materialize(tmp_path / "home", folder.name, tmp_path / folder.name)
        before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / folder.name))
        assert np.array_equal(before[HEAD], after[HEAD])
