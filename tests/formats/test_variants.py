"""Each variant is made, ingested, compressed, given back, and loaded with the library that wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from variants import VARIANTS

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import Materialized, materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import verify
from lorareg.registry.peft_format import find_adapters, read_adapter
from lorareg.registry.store import Registry

pytestmark = pytest.mark.filterwarnings("ignore")  # what the other libraries warn of is theirs

TOLERANCE = 0.1


def through(home: Path, source: Path, out: Path, tolerance: float) -> Materialized:
    """Ingest, compress, verify, materialize."""
    with Registry.open(home, create=True) as registry:
        (found,) = find_adapters(source)
        adapter = registry.ingest(read_adapter(found), name="task").adapter
        compress(registry, [], CompressOptions(contract=Contract(tolerance=tolerance)), Silent())
        assert not verify(registry, adapter).problems
        assert not [finding for finding in registry.check(read_data=True) if finding.severity == "error"]
    return materialize(home, "task", out)


@pytest.fixture(scope="module")
def source(variant: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as the library of its variant wrote it."""
    folder = tmp_path_factory.mktemp("source")
    variant.make(folder)
    return folder


@pytest.fixture(scope="module")
def computed(variant: Any, source: Path) -> Any:
    """What that library computes with it."""
    return variant.run(source)


@dataclass(frozen=True)
class Coded:
    """What was given back of a code."""

    folder: Path
    given: Materialized


@pytest.fixture(scope="module")
def coded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Coded:
    """The adapter, once it was coded."""
    work = tmp_path_factory.mktemp("coded")
    return Coded(work / "out", through(work / "home", source, work / "out", TOLERANCE))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def described(path: Path) -> tuple[dict[str, tuple[str, list[int]]], Any]:
    """Names, dtypes and shapes of a weights file, and its metadata."""
    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a dict
        return {key: (one.get_dtype(), one.get_shape()) for key, one in slices.items()}, file.metadata()


def test_what_was_stored_without_loss_is_the_same_file(
    variant: Any, source: Path, computed: Any, tmp_path: Path
) -> None:
    given = through(tmp_path / "home", source, tmp_path / "out", 0.0)
    assert given.tier == "lossless"
    assert weights_of(tmp_path / "out").name == weights_of(source).name
    assert weights_of(tmp_path / "out").read_bytes() == weights_of(source).read_bytes()
    config = source / "adapter_config.json"
    if config.exists():
        assert (tmp_path / "out" / config.name).read_bytes() == config.read_bytes()
        assert json.loads(config.read_text())["a_field_of_tomorrow"] == {"kept": True}
    else:
        assert not (tmp_path / "out" / config.name).exists()
    assert (computed == variant.run(tmp_path / "out")).all()


def test_what_is_coded_computes_nearly_the_same(variant: Any, source: Path, computed: Any, coded: Coded) -> None:
    out, given = coded.folder, coded.given
    assert described(weights_of(out)) == described(weights_of(source))
    found = variant.run(out)
    if variant.kept == "exact":
        assert given.tier == "lossless"
        assert weights_of(out).read_bytes() == weights_of(source).read_bytes()
        return
    assert given.tier == "residual"
    assert 0 < given.fidelity["relative_error"] <= TOLERANCE
    assert 0 < float((computed - found).norm() / computed.norm()) < 3 * TOLERANCE


def test_what_is_no_factor_is_kept_exactly(source: Path, coded: Coded) -> None:
    (found,) = find_adapters(source)
    extras = read_adapter(found).layout.extras
    with safe_open(weights_of(source), "np") as before, safe_open(weights_of(coded.folder), "np") as after:
        for extra in extras:
            assert np.array_equal(before.get_tensor(extra.key), after.get_tensor(extra.key)), extra.key


def test_the_document_lists_the_variants() -> None:
    document = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    families = VARIANTS.items()
    kept = {"coded": "coded", "exact": "exactly"}
    rows = [f"| {family} | {one.says} | {kept[one.kept]} |" for family, variants in families for one in variants]
    assert [line for line in document.splitlines() if line.startswith("| ")][1:] == rows
