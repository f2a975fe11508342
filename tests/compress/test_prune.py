"""Originals go only after what replaces them was proven, and mutants of the protocol are caught."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs import prune as prune_module
from lorareg.compress.proofs.prune import plan_of, prune
from lorareg.compress.proofs.verify import verify
from lorareg.registry import prune as plan_module
from lorareg.registry import sweep as sweep_module
from lorareg.registry.blob_stores import move_blobs
from lorareg.registry.errors import OriginalGoneError, RegistryError
from lorareg.registry.folder_blobs import FolderBlobs
from lorareg.registry.peft_format import read_folder
from lorareg.registry.replicate import replicate
from lorareg.registry.schema import EncodingRow
from lorareg.registry.store import Registry
from lorareg.registry.sweep import sweep
from lorareg.registry.types import WEIGHTS_FILE, NewEncoding, NewGenerator

NAMES = ("healthy", "damaged", "wrong", "stale", "pinned", "uncopied")
NO_GRACE = timedelta(0)


@pytest.fixture
def world(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, add_group: Callable[..., None]
) -> Iterator[Registry]:
    """Encoded adapters, each but one with something that must keep its original; made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "prune-world"
    if not kept.exists():
        with Registry.open(home, create=True) as registry:
            add_group(registry, *NAMES[:5], init=1, alike=0.4)
            add_group(registry, "uncopied", "other", init=2)
            add_group(registry, "third", "fourth", init=3)
            compress(registry, (), CompressOptions(arch="mean"), Silent())
        shutil.copytree(home, kept)
        shutil.rmtree(home)
    shutil.copytree(kept, home)
    with Registry.open(home, create=False) as registry:
        plant(registry, tmp_path / "copy")
        yield registry


def plant(registry: Registry, copy: Path) -> None:
    """Put the hazards in."""
    replicate(registry, str(copy), False, lambda n: None)
    code = registry.blobs.path(encoding_of(registry, "damaged").sha256)
    data = bytearray(code.read_bytes())
    data[-20] ^= 1
    code.chmod(0o644)
    code.write_bytes(data)
    another = encoding_of(registry, "third").generator_id
    change(registry, encoding_of(registry, "wrong").id, generator_id=another)
    # Certified anew, so that the wrong generator is not given away by the certificate alone.
    shift(registry, "wrong")
    fidelity = json.loads(encoding_of(registry, "stale").fidelity) | {"relative_error": 0.01}
    change(registry, encoding_of(registry, "stale").id, fidelity=json.dumps(fidelity))
    registry.put_pin(registry.adapter("pinned"), "a customer")
    generator = registry.generator(encoding_of(registry, "uncopied").generator_id)
    (copy / "blobs" / generator.sha256[:2] / generator.sha256[2:]).unlink()


def shift(registry: Registry, name: str) -> None:
    from lorareg.registry.certificate import Proof

    encoding = encoding_of(registry, name)
    found = registry.certificate(encoding.id)
    assert found is not None
    proof = Proof(json.loads(found.facts), found.module_errors, found.projections)
    registry.certify(registry.adapter(name), encoding, proof)


def encoding_of(registry: Registry, name: str) -> Any:
    encoding = registry.encoding(registry.adapter(name).id)
    assert encoding is not None
    return encoding


def change(registry: Registry, encoding_id: int, **columns: object) -> None:
    """Columns of an encoding, signed and in the ledger: what a bug of ours would do, not a bit flip."""
    with registry.writing() as session:
        row = session.get(EncodingRow, encoding_id)
        for name, value in columns.items():
            setattr(row, name, value)


def run_protocol(registry: Registry) -> list[str]:
    """Prune and sweep; every promise that was broken on the way."""
    broken: list[str] = []
    originals = {name: weights_of(registry, name) for name in NAMES}
    recorded = {name: encoding_of(registry, name).output_digest for name in NAMES}
    delete = FolderBlobs.delete

    def watched(store: FolderBlobs, given: Iterable[str]) -> None:
        digests = list(given)
        with closing(sqlite3.connect(registry.home / "registry.sqlite")) as raw:  # sees only what is committed
            marked = {row[0] for row in raw.execute("SELECT sha256 FROM retired_blob WHERE state = 'deleting'")}
        broken.extend(f"{digest} unlinked before `deleting` was committed" for digest in set(digests) - marked)
        delete(store, digests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderBlobs, "delete", watched)
        prune(registry, Silent())
        sweep(registry, NO_GRACE)
    for name in NAMES:
        if originals[name] in registry.blobs:
            continue
        if name != "healthy":
            broken.append(f"the original of {name} is gone")
            continue
        done = materialize(registry.home, name, registry.home.parent / "out", force=True)
        if done.output_digest != recorded[name]:
            broken.append(f"{name} came back as something else")
    return broken


def weights_of(registry: Registry, name: str) -> str:
    files = registry.files(registry.adapter(name))
    return next(file.sha256 for file in files if file.path == WEIGHTS_FILE)


def test_the_protocol_keeps_its_promises(world: Registry) -> None:
    assert run_protocol(world) == []
    assert weights_of(world, "healthy") not in world.blobs
    verdict = verify(world, world.adapter("healthy"))
    assert (verdict.original, verdict.holds) == ("pruned", True)
    error = json.loads(encoding_of(world, "healthy").fidelity)["relative_error"]
    assert verdict.estimated["low"] <= error <= verdict.estimated["high"]


def test_what_keeps_each_original_is_said(world: Registry) -> None:
    found = plan_of(world)
    reasons = {one.what: one.reason for one in found.staying}
    assert "is pinned: a customer" in reasons["pinned@1"]
    assert "stale certificate" in reasons["stale@1"]
    others = {"other@1", "third@1", "fourth@1"}
    assert {blob.what for blob in found.fresh} == {"healthy@1", "damaged@1", "wrong@1", "uncopied@1", *others}
    retired, refused = prune(world, Silent())
    assert {blob.sha256 for blob in retired} == {weights_of(world, name) for name in ("healthy", "third", "fourth")}
    assert any(problem.startswith("damaged@1: ") and "is damaged" in problem for problem in refused)
    assert any(problem.startswith("wrong@1: ") for problem in refused)
    copies = [problem for problem in refused if problem.startswith("uncopied@1: ")]
    assert any("the second copy of generator mean v" in problem and "cannot be read" in problem for problem in copies)


def holds_all(home: Path, refs: list[str]) -> list[dict[str, Any]]:
    """A verification that looks at nothing."""
    with Registry.open(home, create=False) as registry:
        by_ref = {adapter.ref: adapter for adapter in registry.adapters()}
        return [
            {"ref": ref, "adapter_id": by_ref[ref].id, "problems": [], "encoding_id": encoding_of(registry, ref).id}
            for ref in refs
        ]


def unlink_first(registry: Registry, grace: timedelta, limit: int) -> Any:
    with registry.writing() as session:
        rows = session.query(sweep_module.RetiredBlobRow).all()
        registry.blobs.delete([row.sha256 for row in rows])
    return MARK(registry, grace, limit)


MARK = sweep_module._mark

MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "skip verify": (prune_module, "_verify_cold", holds_all, "the original of damaged is gone"),
    "wrong generator": (prune_module, "_verify_cold", holds_all, "the original of wrong is gone"),
    "stale certificate": (plan_module, "is_stale", lambda *_: False, "the original of stale is gone"),
    "unlink before commit": (sweep_module, "_mark", unlink_first, "unlinked before `deleting` was committed"),
    "no second copy": (prune_module, "_copy_problem", lambda *_: "", "the original of uncopied is gone"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_the_protocol_are_caught(world: Registry, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    module, name, replacement, caught = MUTANTS[mutant]
    monkeypatch.setattr(module, name, replacement)
    if mutant == "stale certificate":  # its figures were forged too well for the measurement to notice
        monkeypatch.setattr(prune_module, "_verify_cold", holds_all)
    assert any(caught in broken for broken in run_protocol(world))


def test_an_encoding_made_meanwhile_is_not_what_was_verified(world: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def verified_before(home: Path, refs: list[str]) -> list[dict[str, Any]]:
        verdicts = holds_all(home, refs)
        with Registry.open(home, create=False) as other:
            compress(other, (), CompressOptions(Contract(tolerance=0.1), arch="none"), Silent())
        return verdicts

    monkeypatch.setattr(prune_module, "_verify_cold", verified_before)
    retired, _ = prune(world, Silent())
    assert retired == []


def test_a_second_copy_that_became_the_store_is_none(
    registry: Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    body, code = registry.blobs.put_bytes(b"generator"), registry.blobs.put_bytes(b"code")
    generator = registry.record_generator(NewGenerator(adapter.cohort_id, body, 9, "mean", "", {}, {}))
    registry.record_encoding(NewEncoding(adapter.id, generator.id, "c", "residual", code, 4, "0" * 64, 9, {}, {}))
    replicate(registry, str(tmp_path / "copy"), False, lambda n: None)
    assert prune_module._copy_problem(registry, generator.id) == ""
    move_blobs(registry, f"file://{tmp_path}/copy/blobs", lambda n: None)
    with Registry.open(registry.home, create=False) as moved:
        assert "is the registry's own store" in prune_module._copy_problem(moved, generator.id)


def test_what_changed_in_quarantine_stays(world: Registry) -> None:
    prune(world, Silent())
    compress(world, (), CompressOptions(Contract(tolerance=0.1), arch="none"), Silent())
    swept = sweep(world, NO_GRACE)
    assert weights_of(world, "healthy") in {blob.sha256 for blob in swept.stay}
    assert weights_of(world, "healthy") in world.blobs
    assert materialize(world.home, "healthy", world.home.parent / "out").tier == "residual"


def test_a_verifying_process_that_fails_stops_it(world: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module.sys, "executable", "/bin/false")
    with pytest.raises(RegistryError, match=r"the process that was to verify it failed .*Nothing was changed"):
        prune(world, Silent())
    assert world.fetch("SELECT * FROM retired_blob") == []


# -- with the original gone ----------------------------------------------------------------------


@pytest.fixture
def pruned(world: Registry) -> Registry:
    prune(world, Silent())
    sweep(world, NO_GRACE)
    return world


def test_what_is_gone_is_said_to_be(pruned: Registry) -> None:
    with pytest.raises(OriginalGoneError, match=r"adapter_model.safetensors of healthy@1 was pruned on \d{4}-"):
        pruned.read_file(pruned.adapter("healthy"), WEIGHTS_FILE)
    assert not any("healthy" in str(finding) for finding in pruned.check(read_data=True))


def test_errors_add_up_and_are_refused_past_the_tolerance(pruned: Registry) -> None:
    before = encoding_of(pruned, "healthy")
    error = json.loads(before.fidelity)["relative_error"]

    def again(**asked: Any) -> str:
        (summary,) = compress(pruned, (), CompressOptions(Contract(**asked), arch="mean"), Silent())
        return summary.message

    assert f"healthy@1 stays as it is: its original is gone, and its code is at an error of {error:.4f}" in again(
        tolerance=0.1
    )
    assert "nothing but the error of its weights can still be promised" in again(budget=0.3)
    assert encoding_of(pruned, "healthy") == before
    again(tolerance=0.6)
    after = encoding_of(pruned, "healthy")
    found = json.loads(after.fidelity)
    assert after.size_bytes < before.size_bytes
    assert error < found["relative_error"] <= 0.6
    assert found["carried_error"] == error
    verdict = verify(pruned, pruned.adapter("healthy"))
    assert verdict.problems == []
    assert verdict.estimated["low"] <= found["relative_error"]


def test_a_lie_about_the_error_is_noticed_without_the_original(pruned: Registry) -> None:
    encoding = encoding_of(pruned, "healthy")
    fidelity = json.loads(encoding.fidelity) | {"relative_error": 0.02}
    change(pruned, encoding.id, fidelity=json.dumps(fidelity))
    shift(pruned, "healthy")
    (problem,) = verify(pruned, pruned.adapter("healthy")).problems
    assert problem.startswith("its certificate claims a relative error of 0.02, and the projections of its original")


def test_ingesting_the_same_bytes_brings_an_original_back(pruned: Registry, add_group: Callable[..., None]) -> None:
    add_group(pruned, "healthy", init=1)
    assert weights_of(pruned, "healthy") in pruned.blobs
    assert pruned.retired(weights_of(pruned, "healthy")) is None
    verdict = verify(pruned, pruned.adapter("healthy"))
    assert (verdict.original, verdict.holds) == ("kept", True)
