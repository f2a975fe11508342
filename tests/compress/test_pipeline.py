"""`compress` from end to end, on small synthetic cohorts and on a few of the samples."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress import materialize, pipeline
from lorareg.compress.generator import pack_generator
from lorareg.compress.materialize import restore_weights
from lorareg.compress.pipeline import CohortSummary, CompressOptions, compress
from lorareg.compress.progress import Silent
from lorareg.compress.verify import check_encodings
from lorareg.registry.errors import (
    BaseModelError,
    IntegrityError,
    InvalidAdapterError,
    InvalidNameError,
    NothingToDoError,
    ToleranceError,
    UnknownCohortError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.report import ALONE_BYTES
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding, Layout, NewGenerator

AddGroup = Callable[..., None]
SIX = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(autouse=True)
def quick_refinement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of refinement, where there is torch: what it gains is measured elsewhere."""
    if importlib.util.find_spec("torch"):
        from lorareg.compress import train

        monkeypatch.setattr(train, "PRESETS", {k: replace(v, refine_steps=3) for k, v in train.PRESETS.items()})


def run(registry: Registry, reporter: Any = None, **options: Any) -> CohortSummary:
    """Compress the only cohort; every encoding is then decoded from the store."""
    (summary,) = compress(registry, (), CompressOptions(**options), reporter or Silent())
    assert list(check_encodings(registry)) == []
    return summary


def encodings(registry: Registry) -> dict[str, Encoding]:
    """Current encodings by adapter."""
    (cohort,) = registry.cohorts()
    by_id = {encoding.adapter_id: encoding for encoding in registry.encodings(cohort.id)}
    return {adapter.ref: by_id[adapter.id] for adapter in registry.adapters() if adapter.id in by_id}


def test_a_cohort_is_encoded_within_its_tolerance(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX)
    summary = run(registry, arch="mean")
    assert (summary.adapters, summary.encoded, summary.unchanged) == (6, 6, 0)
    assert summary.generator == "mean v1"
    assert summary.worst_relative_error <= 0.2
    assert summary.by_tier == {"residual": 6}
    stored = encodings(registry)
    assert {encoding.codec for encoding in stored.values()} == {"predicted-1"}
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert summary.generator_bytes == record.size_bytes
    assert summary.stored_bytes == record.size_bytes + sum(e.size_bytes for e in stored.values())
    for adapter in registry.adapters():
        encoding = stored[adapter.ref]
        assert json.loads(encoding.tolerance) == {"relative_error": 0.2}
        assert json.loads(encoding.fidelity)["relative_error"] <= 0.2
        assert len(restore_weights(registry, adapter, encoding)) == encoding.output_bytes


@pytest.mark.parametrize("arch", ["slots", pytest.param("conv1d", marks=pytest.mark.slow), "none"])
def test_every_architecture_can_be_asked_for(arch: str, registry: Registry, add_group: AddGroup) -> None:
    if arch != "none":
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


def test_a_cohort_too_small_for_a_generator_says_so(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, "a", "b", alike=0.0)
    summary = run(registry)
    assert summary.generator is None
    assert summary.generator_bytes == 0
    assert "no generator" in summary.message
    assert "stored with no generator" in summary.message


@pytest.mark.slow
def test_a_generator_that_pays_is_chosen(registry: Registry, add_group: AddGroup) -> None:
    pytest.importorskip("torch")
    add_group(registry, *SIX, "g", "h", alike=0.99)
    summary = run(registry, steps=2)
    assert summary.generator is not None
    assert "estimated for 8 adapters in all: no generator" in summary.message
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert json.loads(record.metrics)[ALONE_BYTES] > 0


def test_a_single_adapter_is_coded_alone(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, "a")
    summary = run(registry)
    assert "a@1 is coded alone: there is nothing to share with one adapter" in summary.message
    assert summary.by_tier == {"residual": 1}


def test_no_tolerance_is_lossless(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    summary = run(registry, tolerance=0.0)
    assert summary.by_tier == {"lossless": 3}
    assert (summary.worst_relative_error, summary.generator) == (0.0, None)
    for adapter in registry.adapters():
        original = registry.read_file(adapter, "adapter_model.safetensors")
        assert restore_weights(registry, adapter, encodings(registry)[adapter.ref]) == original


def test_what_no_residual_holds_stays_lossless_and_says_why(
    registry: Registry, make_adapter: Callable[..., Path]
) -> None:
    registry.ingest(read_folder(make_adapter("a")), name="a")
    summary = run(registry, tolerance=1e-12)
    assert summary.by_tier == {"lossless": 1}
    (encoding,) = encodings(registry).values()
    assert "1e-12" in json.loads(encoding.fidelity)["reason"]


# -- again, and later ----------------------------------------------------------------------------


def test_a_second_run_changes_nothing(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged) == (0, 3)
    assert "every adapter is encoded already" in summary.message
    assert encodings(registry) == before


def test_another_tolerance_encodes_again(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)
    summary = run(registry, arch="mean", tolerance=0.05)
    assert (summary.encoded, summary.worst_relative_error <= 0.05) == (3, True)
    after = encodings(registry)
    assert all(after[ref].id != before[ref].id and after[ref].size_bytes > before[ref].size_bytes for ref in before)
    assert "3 encoded against generator mean v1" in summary.message


def test_without_a_tolerance_every_adapter_keeps_its_own(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean", tolerance=0.02)
    before = encodings(registry)
    add_group(registry, "late")
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged) == (1, 3)
    after = encodings(registry)
    assert {ref: after[ref] for ref in before} == before
    assert json.loads(after["late@1"].tolerance) == {"relative_error": 0.2}


def test_retraining_without_a_tolerance_loosens_no_contract(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean", tolerance=0.02)
    summary = run(registry, arch="none", retrain=True)
    assert summary.encoded == 3
    assert summary.worst_relative_error <= 0.02


def test_a_damaged_code_is_made_anew(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)["a@1"]
    path = registry.blobs.path(before.sha256)
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (summary,) = compress(registry, (), CompressOptions(), Silent())
    assert (summary.encoded, summary.unchanged) == (1, 2)
    assert f"stored bytes are damaged: Blob {before.sha256}" in summary.message
    assert [finding for finding in registry.check(read_data=True) if finding.severity == "error"] == []
    assert list(check_encodings(registry)) == []


def test_a_missing_generator_is_replaced(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    (record,) = registry.generators(registry.cohorts()[0].id)
    registry.blobs.path(record.sha256).unlink()
    (summary,) = compress(registry, (), CompressOptions(arch="mean"), Silent())
    assert summary.encoded == 3
    assert "generator mean v1 is damaged and is not used" in summary.message
    assert list(check_encodings(registry)) == []


def test_damage_to_an_older_code_is_no_error(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    older = encodings(registry)["a@1"]
    run(registry, arch="mean", tolerance=0.05)
    registry.blobs.path(older.sha256).unlink()
    (finding,) = registry.check()
    assert (finding.severity, finding.problem) == ("information", "older code of a@1 is missing from the blob store")


def test_an_update_of_zero_takes_a_few_bytes(
    registry: Registry, add_group: AddGroup, make_adapter: Callable[..., Path]
) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    source = read_folder(Path(registry.adapter("a").source))
    keys = {slot.key: np.zeros(slot.shape, np.float32) for slot in source.layout.slots}
    zero = make_adapter("zero", modules=source.layout.modules, width=48, tensors=keys)
    registry.ingest(read_folder(zero), name="zero")
    run(registry)
    encoding = encodings(registry)["zero@1"]
    assert encoding.tier == "residual"
    assert json.loads(encoding.fidelity)["relative_error"] == 0
    assert encoding.size_bytes < 100


def test_a_later_adapter_needs_no_training(
    registry: Registry, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from lorareg.compress import train

    add_group(registry, *SIX[:4])
    run(registry, arch="slots", steps=3)
    before = encodings(registry)
    monkeypatch.setattr(train, "train_generator", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(pipeline, "FIT_STEPS", 5)
    add_group(registry, "late")
    summary = run(registry)
    assert (summary.encoded, summary.unchanged) == (1, 4)
    assert "1 encoded against generator slots v1" in summary.message
    after = encodings(registry)
    assert after.pop("late@1").generator_id == before["a@1"].generator_id
    assert after == before


def test_adapters_of_other_seeds_group_apart(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3], init=1)
    add_group(registry, *SIX[3:], init=2)
    summary = run(registry, arch="mean")
    by_adapter = {ref[0]: encoding.generator_id for ref, encoding in encodings(registry).items()}
    assert len({by_adapter[name] for name in "abc"}) == len({by_adapter[name] for name in "def"}) == 1
    assert by_adapter["a"] != by_adapter["d"]
    assert summary.generator == "mean v1, mean v2"
    add_group(registry, "late", init=2)
    run(registry, arch="mean")
    assert encodings(registry)["late@1"].generator_id == by_adapter["d"]


def test_adapters_with_a_seed_each_go_without_a_shared_frame(registry: Registry, add_group: AddGroup) -> None:
    for init, name in enumerate(SIX[:3]):
        add_group(registry, name, init=init)
    summary = run(registry)
    assert summary.by_tier == {"residual": 3}
    assert {encoding.codec for encoding in encodings(registry).values()} == {"residual-1"}


def test_retraining_makes_a_new_version(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)
    summary = run(registry, arch="mean", retrain=True, seed=1)
    assert summary.generator == "mean v2"
    assert all(encoding.id != before[ref].id for ref, encoding in encodings(registry).items())
    with registry.reading() as connection:
        superseded = connection.exec_driver_sql(
            "SELECT count(*) FROM encoding WHERE superseded_at IS NOT NULL"
        ).scalar()
    assert superseded == 3


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, add_group: AddGroup, one_thread: None) -> None:
    stored = []
    for home in ("one", "two"):
        with Registry.open(tmp_path / home, create=True) as registry:
            add_group(registry, *SIX[:3])
            run(registry, arch="slots", steps=3)
            stored.append({ref: (e.sha256, e.output_digest) for ref, e in encodings(registry).items()})
    assert stored[0] == stored[1]


class StopAfter(Silent):
    """A user who presses Ctrl-C in a stage, after some units."""

    def __init__(self, stage: str, units: int) -> None:
        self.stage, self.units, self.current = stage, units, ""

    def start(self, stage: str, total: int) -> None:
        self.current = stage

    def advance(self, n: int = 1, **figures: float) -> None:
        if self.stage in self.current:
            self.units -= n
            if self.units == 0:
                raise KeyboardInterrupt


def test_what_was_encoded_before_an_interruption_stays(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX)
    with pytest.raises(KeyboardInterrupt):
        run(registry, StopAfter("encoding", 2), arch="mean")
    before = encodings(registry)
    assert list(before) == ["a@1", "b@1"]
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged, summary.generator) == (4, 2, "mean v1")
    assert {ref: encodings(registry)[ref] for ref in before} == before


# -- what must never happen ----------------------------------------------------------------------


def test_nothing_is_recorded_when_decoding_differs(
    registry: Registry, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_group(registry, *SIX[:2])
    real = materialize.decode
    monkeypatch.setattr(materialize, "decode", lambda *arguments: real(*arguments)[:-1] + b"\x7f")
    with pytest.raises(IntegrityError, match="decoded output of Adapter 'a@1' is damaged: expected sha256"):
        compress(registry, (), CompressOptions(arch="mean"), Silent())
    assert encodings(registry) == {}


def test_damaged_originals_stop_the_run(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, "a")
    (adapter,) = registry.adapters()
    sha256 = next(f.sha256 for f in registry.files(adapter) if f.path == "adapter_model.safetensors")
    path = registry.blobs.path(sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xee")
    with pytest.raises(IntegrityError, match=sha256):
        compress(registry, (), CompressOptions(), Silent())


def test_weights_that_are_not_finite_never_come_in(registry: Registry, make_adapter: Callable[..., Path]) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    bad = np.zeros((2, 6), np.float32)
    bad[1, 2] = np.nan
    with pytest.raises(InvalidAdapterError, match="lora_A"):
        registry.ingest(read_folder(make_adapter("a", tensors={key: bad})), name="a")
    assert registry.adapters() == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from lorareg.compress.pipeline import CompressOptions, compress
from lorareg.compress.progress import Silent
from lorareg.registry.errors import MissingExtraError
from lorareg.registry.store import Registry
with Registry.open(Path(sys.argv[1]), create=False) as registry:
    try:
        compress(registry, (), CompressOptions(arch="slots"), Silent())
    except MissingExtraError as error:
        print(error)
    for arch in ("mean", "none"):
        print(compress(registry, (), CompressOptions(arch=arch, retrain=True), Silent())[0].by_tier)
"""


def test_without_torch_only_training_is_missing(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(registry.home)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines() == [
        "Training a generator needs the package 'torch', which is not installed. Run: pip install 'lorareg[train]'.",
        "{'residual': 3}",
        "{'residual': 3}",
    ], ran.stderr


@pytest.fixture
def hidden_generator(registry: Registry, add_group: AddGroup, make: ModuleType) -> str:
    """A generator that is conditioned on hidden states of a base model; gives the encoder's name."""
    add_group(registry, "a", "b")
    (cohort,) = registry.cohorts()
    layout = Layout.from_json(cohort.layout)
    made = replace(make.generator("slots", layout), encoder="hidden:llama-abc-1")
    file = pack_generator(made, layout)
    sha256 = registry.blobs.put_bytes(file)
    registry.record_generator(NewGenerator(cohort.id, sha256, len(file), "slots", made.encoder, {}, {}))
    return made.encoder


def test_a_generator_that_needs_a_base_model_asks_for_it(registry: Registry, hidden_generator: str) -> None:
    with pytest.raises(BaseModelError, match=f"takes task vectors by '{hidden_generator}', and a@1 has none"):
        compress(registry, (), CompressOptions(), Silent())


def test_stored_task_vectors_stand_in_for_the_base_model(
    registry: Registry, hidden_generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(pipeline, "FIT_STEPS", 2)
    for adapter in registry.adapters():
        registry.put_task_vector(adapter.id, hidden_generator, bytes(5))
    summary = run(registry)
    assert "2 encoded against generator slots v1" in summary.message


def test_an_empty_registry_has_nothing_to_do(registry: Registry) -> None:
    with pytest.raises(NothingToDoError, match=f"no adapters in {registry.home}"):
        compress(registry, (), CompressOptions(), Silent())


def test_an_unknown_cohort_is_refused(registry: Registry) -> None:
    with pytest.raises(UnknownCohortError, match="No cohort 'nobody'"):
        compress(registry, ("nobody",), CompressOptions(), Silent())


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_tolerance_outside_its_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ToleranceError, match=f"Tolerance {tolerance!r} is not valid"):
        CompressOptions(tolerance=tolerance)


def test_steps_and_architectures_are_checked() -> None:
    with pytest.raises(ToleranceError, match="--steps 0"):
        CompressOptions(steps=0)
    with pytest.raises(InvalidNameError, match=r"Architecture 'gan' is not valid.* auto, slots, conv1d, mean, none"):
        CompressOptions(arch="gan")


# -- real adapters -------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_end_to_end(registry: Registry, sample_adapters: Path) -> None:
    pytest.importorskip("torch")
    for task in ("man-de", "man-fr", "man-nl", "src-rust"):
        registry.ingest(read_folder(sample_adapters / task), name=task)
    summary = run(registry, arch="slots", steps=5)
    assert (summary.encoded, summary.generator) == (4, "slots v1")
    assert summary.worst_relative_error <= 0.2
    assert summary.stored_bytes < 0.15 * summary.original_bytes


@pytest.mark.slow
@pytest.mark.shared
def test_a_bf16_adapter_of_all_layers(registry: Registry, shared_adapters: Path) -> None:
    path = sorted((shared_adapters / "all-linear-bf16").iterdir())[0]
    registry.ingest(read_folder(path), name=path.name)
    summary = run(registry)
    assert summary.by_tier == {"residual": 1}
    assert summary.worst_relative_error <= 0.2
    assert summary.stored_bytes < 0.3 * summary.original_bytes
