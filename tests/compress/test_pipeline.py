"""`compress` from end to end, on small synthetic cohorts and on a few of the samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorareg.compress.materialize import restore_weights
from lorareg.compress.pipeline import CohortSummary
from lorareg.compress.planning import choose
from lorareg.registry.peft_format import read_folder
from lorareg.registry.report import ALONE_BYTES
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding

AddGroup = Callable[..., None]
Run = Callable[..., CohortSummary]
ByRef = Callable[[Registry], dict[str, Encoding]]
SIX = ("a", "b", "c", "d", "e", "f")
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")
KEYS = {
    f"base_model.model.{module}.lora_{factor}.weight": shape
    for module in MODULES
    for factor, shape in (("A", (2, 48)), ("B", (50, 2)))
}


def test_a_cohort_is_encoded_within_its_tolerance(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX)
    summary = run(registry, arch="mean")
    assert (summary.adapters, summary.encoded, summary.unchanged) == (6, 6, 0)
    assert summary.generator == "mean v1"
    assert summary.worst_relative_error <= 0.2
    assert summary.by_tier == {"residual": 6}
    stored = encodings(registry)
    assert {encoding.codec for encoding in stored.values()} == {"predicted-2"}
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert summary.generator_bytes == record.size_bytes
    assert summary.stored_bytes == record.size_bytes + sum(e.size_bytes for e in stored.values())
    for adapter in registry.adapters():
        encoding = stored[adapter.ref]
        assert json.loads(encoding.tolerance) == {"relative_error": 0.2}
        assert json.loads(encoding.fidelity)["relative_error"] <= 0.2
        assert len(restore_weights(registry, adapter, encoding)) == encoding.output_bytes


@pytest.mark.parametrize("arch", ["slots", pytest.param("conv1d", marks=pytest.mark.slow), "linear", "none"])
def test_every_architecture_can_be_asked_for(
    arch: str, registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    if arch in ("slots", "conv1d"):
        pytest.importorskip("torch")
    add_group(registry, *SIX[:3])
    summary = run(registry, arch=arch, steps=2)
    assert summary.worst_relative_error <= 0.2
    records = registry.generators(registry.cohorts()[0].id)
    assert [record.arch for record in records] == ([] if arch == "none" else [arch])
    if arch == "conv1d":  # two steps teach it nothing, and outside a shared frame nothing obliges a code to use it
        assert "every code is smaller without conv1d v1, so none uses it" in summary.message
    else:
        assert {encoding.generator_id is None for encoding in encodings(registry).values()} == {arch == "none"}
    assert not list((registry.home / "checkpoints").glob("*"))


def test_a_cohort_too_small_for_a_generator_says_so(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, "a", "b", alike=0.0)
    summary = run(registry)
    assert summary.generator is None
    assert summary.generator_bytes == 0
    assert "no generator" in summary.message
    assert "stored with no generator" in summary.message


@pytest.mark.slow
def test_a_generator_that_pays_is_chosen(registry: Registry, run: Run, add_group: AddGroup) -> None:
    pytest.importorskip("torch")
    add_group(registry, *SIX, "g", "h", alike=0.99)
    summary = run(registry, steps=2)
    assert summary.generator is not None
    assert "estimated for 8 adapters in all: no generator" in summary.message
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert json.loads(record.metrics)[ALONE_BYTES] > 0


def test_checkpoints_of_one_run_share_a_linear_generator(
    registry: Registry, run: Run, encodings: ByRef, make_adapter: Callable[..., Path]
) -> None:
    random = np.random.default_rng(0)
    last = {key: random.normal(size=shape) for key, shape in KEYS.items()}
    for step in range(1, 9):
        tensors = {key: (last[key] * (step / 8 if "lora_B" in key else 1)).astype(np.float32) for key in KEYS}
        path = make_adapter(f"step-{step}", modules=MODULES, width=48, tensors=tensors)
        registry.ingest(read_folder(path), name=path.name)
    summary = run(registry)
    assert summary.generator == "linear v1"
    assert "stored with a linear generator" in summary.message
    tiers = [encoding.tier for encoding in encodings(registry).values()]
    assert (
        tiers.count("generated") >= 6
    )  # a coarser table that leaves some of the first steps a residual may be cheaper
    assert summary.stored_bytes < 1500


def test_a_small_cohort_trains_no_network(
    registry: Registry, run: Run, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "train_module", lambda: pytest.fail("a network was trained"))
    add_group(registry, *SIX[:3])
    message = run(registry).message
    assert "the mean table alone" in message
    assert "a linear generator" in message


def test_a_large_cohort_trains_a_network(
    registry: Registry, run: Run, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(choose, "NETWORK_WORTH_TRYING", 3)
    add_group(registry, *SIX[:3])
    assert ", slots " in run(registry, steps=2).message


def test_a_single_adapter_is_coded_alone(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, "a")
    summary = run(registry)
    assert "a@1 is coded alone: there is nothing to share with one adapter" in summary.message
    assert summary.by_tier == {"residual": 1}


def test_no_tolerance_is_lossless(registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    summary = run(registry, tolerance=0.0)
    assert summary.by_tier == {"lossless": 3}
    assert (summary.worst_relative_error, summary.generator) == (0.0, None)
    for adapter in registry.adapters():
        original = registry.read_file(adapter, "adapter_model.safetensors")
        assert restore_weights(registry, adapter, encodings(registry)[adapter.ref]) == original


def test_what_no_residual_holds_stays_lossless_and_says_why(
    registry: Registry, run: Run, encodings: ByRef, make_adapter: Callable[..., Path]
) -> None:
    registry.ingest(read_folder(make_adapter("a")), name="a")
    summary = run(registry, tolerance=1e-12)
    assert summary.by_tier == {"lossless": 1}
    (encoding,) = encodings(registry).values()
    assert "1e-12" in json.loads(encoding.fidelity)["reason"]


# -- real adapters -------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_end_to_end(registry: Registry, run: Run, sample_adapters: Path) -> None:
    pytest.importorskip("torch")
    for task in ("man-de", "man-fr", "man-nl", "src-rust"):
        registry.ingest(read_folder(sample_adapters / task), name=task)
    summary = run(registry, arch="slots", steps=5)
    assert (summary.encoded, summary.generator) == (4, "slots v1")
    assert summary.worst_relative_error <= 0.2
    assert summary.stored_bytes < 0.15 * summary.original_bytes


@pytest.mark.slow
@pytest.mark.shared
def test_a_bf16_adapter_of_all_layers(registry: Registry, run: Run, shared_adapters: Path) -> None:
    path = sorted((shared_adapters / "all-linear-bf16").iterdir())[0]
    registry.ingest(read_folder(path), name=path.name)
    summary = run(registry)
    assert summary.by_tier == {"residual": 1}
    assert summary.worst_relative_error <= 0.2
    assert summary.stored_bytes < 0.3 * summary.original_bytes
