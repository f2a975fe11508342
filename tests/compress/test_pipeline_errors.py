"""What must never happen in `compress`: what it refuses, and what it stops at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lorareg.compress import pipeline
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.crew import jobs
from lorareg.compress.generators.generator import pack_generator
from lorareg.compress.pipeline import CohortSummary, compress
from lorareg.compress.planning import plan
from lorareg.compress.progress import Silent
from lorareg.registry import sqlite as sqlite_module
from lorareg.registry.errors import (
    BaseModelError,
    BusyError,
    ContractError,
    IntegrityError,
    InvalidAdapterError,
    InvalidNameError,
    NothingToDoError,
    UnknownCohortError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding, Layout, NewGenerator

AddGroup = Callable[..., None]
Run = Callable[..., CohortSummary]
ByRef = Callable[[Registry], dict[str, Encoding]]
SIX = ("a", "b", "c", "d", "e", "f")


def test_nothing_is_recorded_when_decoding_differs(
    registry: Registry, encodings: ByRef, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_group(registry, *SIX[:2])
    real = jobs.decode
    monkeypatch.setattr(jobs, "decode", lambda *arguments: real(*arguments)[:-1] + b"\x7f")
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
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.pipeline import compress
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
    registry: Registry, run: Run, hidden_generator: str, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(ContractError, match=f"--tolerance {tolerance:g} is not valid"):
        CompressOptions(Contract(tolerance=tolerance))


def test_steps_and_architectures_are_checked() -> None:
    with pytest.raises(ContractError, match="--steps 0"):
        CompressOptions(steps=0)
    with pytest.raises(
        InvalidNameError, match=r"Architecture 'gan' is not valid.* auto, slots, conv1d, mean, linear, none"
    ):
        CompressOptions(arch="gan")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_masked_latents_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ContractError, match=f"--mask-latents {share:g} is not valid: it is a share"):
        CompressOptions(arch="slots", mask_latents=share)


@pytest.mark.parametrize("arch", ["auto", "conv1d", "linear", "mean", "none"])
def test_only_slots_masks_latents(arch: str) -> None:
    with pytest.raises(ContractError, match=f"--mask-latents 0.3 with --arch {arch} is not valid"):
        CompressOptions(arch=arch, mask_latents=0.3)


def test_an_architecture_that_no_generator_may_have_is_refused(
    registry: Registry, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_group(registry, *SIX[:3])
    monkeypatch.setattr(plan, "MAX_WEIGHTS", 1)
    with pytest.raises(ContractError, match=r"--arch linear is not valid: a table of \d+ weights is more than"):
        compress(registry, (), CompressOptions(Contract(), "linear"), Silent())
    compress(registry, (), CompressOptions(Contract(), "auto"), Silent())
    assert {record.arch for record in registry.generators(registry.cohorts()[0].id)} <= {"mean"}


def test_two_do_not_compress_at_once(registry: Registry, add_group: AddGroup) -> None:
    """The work would be done twice, and a sweep would take what is stored and not yet recorded."""
    add_group(registry, "a", "b")
    with pytest.MonkeyPatch.context() as patch, registry.backend.working():
        patch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)
        with pytest.raises(BusyError, match=r"another process compresses, sweeps or collects there.*Try again"):
            compress(registry, (), CompressOptions(arch="none"), Silent())
    assert registry.encoding(registry.adapter("a").id) is None
    compress(registry, (), CompressOptions(arch="none"), Silent())
    assert registry.encoding(registry.adapter("a").id) is not None
