"""`compress` where some adapters are encoded already: what is kept, what is made anew, what comes later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorareg.compress import pipeline
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.pipeline import CohortSummary, compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.peft_format import read_folder
from lorareg.registry.schema import CertificateRow
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding

AddGroup = Callable[..., None]
Run = Callable[..., CohortSummary]
ByRef = Callable[[Registry], dict[str, Encoding]]
SIX = ("a", "b", "c", "d", "e", "f")


def test_a_second_run_changes_nothing(registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged) == (0, 3)
    assert "every adapter is encoded already" in summary.message
    assert encodings(registry) == before


def test_another_tolerance_encodes_again(registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    before = encodings(registry)
    summary = run(registry, arch="mean", tolerance=0.05)
    assert (summary.encoded, summary.worst_relative_error <= 0.05) == (3, True)
    after = encodings(registry)
    assert all(after[ref].id != before[ref].id and after[ref].size_bytes > before[ref].size_bytes for ref in before)
    assert "3 encoded against generator mean v1" in summary.message


def test_without_a_tolerance_every_adapter_keeps_its_own(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean", tolerance=0.02)
    before = encodings(registry)
    add_group(registry, "late")
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged) == (1, 3)
    after = encodings(registry)
    assert {ref: after[ref] for ref in before} == before
    assert json.loads(after["late@1"].tolerance) == {"relative_error": 0.2}


def test_retraining_without_a_tolerance_loosens_no_contract(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean", tolerance=0.02)
    summary = run(registry, arch="none", retrain=True)
    assert summary.encoded == 3
    assert summary.worst_relative_error <= 0.02


def test_a_damaged_code_is_made_anew(registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup) -> None:
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


def test_a_code_without_a_certificate_is_certified(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    code = encodings(registry)["a@1"]
    certificate = registry.certificate(code.id)
    with registry.writing() as session:
        session.delete(session.get(CertificateRow, code.id))
    summary = run(registry)
    assert (summary.encoded, "a@1 had no certificate and has one now" in summary.message) == (0, True)
    again = registry.certificate(code.id)
    assert certificate is not None
    assert again is not None
    assert again.projections == certificate.projections


def test_a_missing_generator_is_replaced(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    (record,) = registry.generators(registry.cohorts()[0].id)
    registry.blobs.path(record.sha256).unlink()
    (summary,) = compress(registry, (), CompressOptions(arch="mean"), Silent())
    assert summary.encoded == 3
    assert "generator mean v1 is damaged and is not used" in summary.message
    assert list(check_encodings(registry)) == []


def test_damage_to_an_older_code_is_no_error(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:3])
    run(registry, arch="mean")
    older = encodings(registry)["a@1"]
    run(registry, arch="mean", tolerance=0.05)
    registry.blobs.path(older.sha256).unlink()
    (finding,) = registry.check()
    assert (finding.severity, finding.problem) == ("information", "older code of a@1 is missing from the blob store")


def test_an_update_of_zero_takes_a_few_bytes(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup, make_adapter: Callable[..., Path]
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
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from lorareg.compress.generators import train

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


def test_masked_latents_give_a_generator_with_a_prior(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    add_group(registry, *SIX[:3])
    run(registry, arch="slots", steps=3, mask_latents=0.5)
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert json.loads(record.config)["prior"] == 1
    assert json.loads(record.metrics)["mask_share"] == 0.5
    monkeypatch.setattr(pipeline, "FIT_STEPS", 5)
    add_group(registry, "late")
    run(registry)
    assert encodings(registry)["late@1"].generator_id == record.id


def test_a_checkpoint_is_of_one_share_of_masked_latents(
    registry: Registry, run: Run, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from lorareg.compress.generators import train

    paths = []

    def stopped(group: object, config: object, checkpoint: train.Checkpoint, reporter: object) -> None:
        paths.append(checkpoint.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_generator", stopped)
    add_group(registry, *SIX[:3])
    for share in (0.0, 0.5, 0.5):
        with pytest.raises(KeyboardInterrupt):
            run(registry, arch="slots", steps=3, mask_latents=share)
    assert paths[0] != paths[1] == paths[2]


def test_adapters_of_other_seeds_group_apart(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
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


def test_adapters_with_a_seed_each_go_without_a_shared_frame(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    for init, name in enumerate(SIX[:3]):
        add_group(registry, name, init=init)
    summary = run(registry)
    assert summary.by_tier == {"residual": 3}
    assert {encoding.codec for encoding in encodings(registry).values()} == {"residual-2"}


def test_retraining_makes_a_new_version(registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup) -> None:
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


def test_the_same_run_gives_the_same_bytes(
    tmp_path: Path, add_group: AddGroup, one_thread: None, run: Run, encodings: ByRef
) -> None:
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


def test_what_was_encoded_before_an_interruption_stays(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX)
    with pytest.raises(KeyboardInterrupt):
        run(registry, StopAfter("encoding", 2), arch="mean")
    before = encodings(registry)
    assert list(before) == ["a@1", "b@1"]
    summary = run(registry, arch="mean")
    assert (summary.encoded, summary.unchanged, summary.generator) == (4, 2, "mean v1")
    assert {ref: encodings(registry)[ref] for ref in before} == before
