"""Deleting in steps: stopped anywhere, run twice, run by two; and what nothing ever named."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import blob_damage
import pytest

from lorareg.registry import sweep as sweep_module
from lorareg.registry.certificate import Proof
from lorareg.registry.encodings import claim_blobs
from lorareg.registry.errors import IntegrityError, MissingBlobError, OriginalGoneError, UnknownAdapterError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.prune import plan
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, find_orphans, retire, sweep
from lorareg.registry.types import WEIGHTS_FILE, Adapter, NewEncoding, NewGenerator

MakeAdapter = Callable[..., Path]
NO_GRACE, GRACE = timedelta(0), timedelta(days=7)
PROOF = Proof({"lorareg": "0", "fidelity": {}, "projection_scale": 1.0, "original_norm": 1.0}, b"\0" * 8, b"\0" * 8)


@pytest.fixture
def filled(registry: Registry, make_adapter: MakeAdapter) -> Registry:
    """Three adapters with certified codes that need no generator."""
    for seed, name in enumerate(("one", "two", "three")):
        adapter = registry.ingest(read_folder(make_adapter(name, seed=seed)), name=name).adapter
        encode(registry, adapter, name.encode())
    return registry


def encode(registry: Registry, adapter: Adapter, code: bytes, generator_id: int | None = None) -> None:
    sha256 = registry.blobs.put_bytes(code)
    new = NewEncoding(
        adapter.id, generator_id, "c-1", "residual", sha256, len(code), "0" * 64, 9, {}, {"relative_error": 0.1}
    )
    registry.certify(adapter, registry.record_encoding(new), PROOF)


def weights(registry: Registry, name: str) -> str:
    files = registry.files(registry.adapter(name))
    return next(file.sha256 for file in files if file.path == WEIGHTS_FILE)


def retire_all(registry: Registry) -> int:
    return len(retire(registry, {blob.sha256: blob.proof for blob in plan(registry.fetch).fresh}))


def states(registry: Registry) -> dict[str, str]:
    return {row["sha256"]: row["state"] for row in registry.fetch("SELECT * FROM retired_blob")}


def test_the_grace_is_kept(filled: Registry) -> None:
    assert retire_all(filled) == 3
    assert sweep(filled, GRACE).deleted == []
    assert set(states(filled).values()) == {"quarantined"}
    swept = sweep(filled, NO_GRACE)
    assert {blob.sha256 for blob in swept.deleted} == {weights(filled, name) for name in ("one", "two", "three")}
    assert all(blob.deleted_at for blob in swept.deleted)
    assert not any(blob.sha256 in filled.blobs for blob in swept.deleted)
    assert plan(filled.fetch).removable == {}


def test_a_run_deletes_at_most_its_limit(filled: Registry) -> None:
    retire_all(filled)
    counts = [(len(swept.deleted), swept.left) for swept in (sweep(filled, NO_GRACE, 2) for _ in range(3))]
    assert counts == [(2, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_sweep_that_was_stopped_goes_on(filled: Registry, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    retire_all(filled)
    unlink, done = Path.unlink, 0

    def stopping(path: Path, missing_ok: bool = False) -> None:
        nonlocal done
        if done == after:
            raise KeyboardInterrupt
        done += 1
        unlink(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", stopping)
        if after < 3:
            with pytest.raises(KeyboardInterrupt):
                sweep(filled, NO_GRACE)
            assert set(states(filled).values()) == {"deleting"}
            assert "a sweep was stopped" in "".join(finding.problem for finding in filled.check())
            assert not any(finding.severity == "error" for finding in filled.check())
        else:
            sweep(filled, NO_GRACE)
    assert len(sweep(filled, NO_GRACE).deleted) == (3 if after < 3 else 0)
    assert set(states(filled).values()) == {"deleted"}
    assert not any(weights(filled, name) in filled.blobs for name in ("one", "two", "three"))


def test_a_pin_that_comes_late_still_counts(filled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    retire_all(filled)
    mark = sweep_module._mark

    def pin_after(registry: Registry, grace: timedelta, limit: int) -> object:
        marked = mark(registry, grace, limit)
        registry.put_pin(registry.adapter("two"), "wait")
        return marked

    monkeypatch.setattr(sweep_module, "_mark", pin_after)
    swept = sweep(filled, NO_GRACE)
    assert [blob.sha256 for blob in swept.stay] == [weights(filled, "two")]
    assert weights(filled, "two") in filled.blobs
    assert weights(filled, "two") not in states(filled)


def test_who_waits_for_a_sweep_looks_afterwards(filled: Registry) -> None:
    """A blob is looked for under the lock, not before it: the sweep that holds it may take the blob away."""
    cohort, sha256 = filled.adapter("one").cohort_id, filled.blobs.put_bytes(b"generator")
    found: list[object] = []

    def record() -> None:
        with Registry.open(filled.home, create=False) as other:
            try:
                found.append(other.record_generator(NewGenerator(cohort, sha256, 9, "mean", "", {}, {})))
            except MissingBlobError as error:
                found.append(error)

    writer = threading.Thread(target=record)
    with filled.writing() as session:
        session.connection()
        writer.start()
        writer.join(1)  # it waits by now
        filled.blobs.delete([sha256])
    writer.join()
    assert isinstance(found[0], MissingBlobError)
    assert filled.generators() == []


def test_pins(filled: Registry) -> None:
    retire_all(filled)
    pin = filled.put_pin(filled.adapter("one"), "for a customer")
    assert filled.pin(filled.adapter("one").id) == pin
    assert weights(filled, "one") not in states(filled)
    assert {one.what: one.reason for one in plan(filled.fetch).staying} == {"one@1": "is pinned: for a customer"}
    assert filled.put_pin(filled.adapter("one"), "other").reason == "other"
    assert filled.take_pin(filled.adapter("one"))
    assert not filled.take_pin(filled.adapter("one"))
    sweep(filled, NO_GRACE)
    with pytest.raises(OriginalGoneError, match=r"of two@1 was pruned on"):
        filled.put_pin(filled.adapter("two"), "too late")


def test_restoring_takes_blobs_off_the_way_out(filled: Registry) -> None:
    retire_all(filled)
    restored = filled.restore("one")
    assert (restored.adapter.name, restored.was_removed) == ("one", False)
    assert [blob.sha256 for blob in restored.blobs] == [weights(filled, "one")]
    with pytest.raises(UnknownAdapterError, match="Nothing removed or in quarantine goes by that name"):
        filled.restore("one")
    sweep(filled, NO_GRACE)
    assert weights(filled, "one") in filled.blobs


def test_bytes_that_two_share_need_both(filled: Registry, make_adapter: MakeAdapter) -> None:
    again = filled.ingest(read_folder(make_adapter("one", seed=0)), name="again").adapter
    reasons = {one.what: one.reason for one in plan(filled.fetch).staying}
    assert reasons == {"again@1, one@1": "again@1 has no code yet; `lorareg compress` makes one"}
    encode(filled, again, b"again")
    assert plan(filled.fetch).removable[weights(filled, "one")].what == "again@1, one@1"


def test_an_adapter_that_comes_to_share_bytes_on_their_way_out_keeps_them(
    filled: Registry, make_adapter: MakeAdapter
) -> None:
    retire_all(filled)
    filled.ingest(read_folder(make_adapter("one", seed=0)), name="again")
    assert weights(filled, "one") not in states(filled)


def test_files_unlinked_between_storing_and_recording_are_stored_again(
    filled: Registry, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    retire_all(filled)
    once: list[int] = []

    def claim(session: object, blobs: object, sizes: dict[str, int]) -> None:
        if not once:
            once.append(1)
            blob_damage.lose(filled.blobs, min(sizes))
        claim_blobs(session, blobs, sizes)  # type: ignore[arg-type]

    monkeypatch.setattr("lorareg.registry.intake.claim_blobs", claim)
    filled.ingest(read_folder(make_adapter("one", seed=0)), name="one")
    assert not [finding for finding in filled.check(read_data=True) if finding.severity == "error"]


def test_older_codes_and_generators_go_too(filled: Registry) -> None:
    cohort = filled.cohorts()[0]
    body = filled.blobs.put_bytes(b"generator")
    generator = filled.record_generator(NewGenerator(cohort.id, body, 9, "mean", "", {}, {}))
    encode(filled, filled.adapter("one"), b"with it", generator.id)
    found = plan(filled.fetch)
    assert {(blob.kind, blob.what) for blob in found.fresh if blob.kind != "original"} == {("older code", "one@1")}
    assert "needs generator mean v1, which has no second copy" in found.staying[0].reason
    encode(filled, filled.adapter("one"), b"without it")
    found = plan(filled.fetch)
    assert {blob.kind for blob in found.fresh} == {"original", "older code", "older generator"}
    retire_all(filled)
    sweep(filled, NO_GRACE)
    assert body not in filled.blobs
    assert not [finding for finding in filled.check() if finding.severity == "error"]


def test_what_was_deleted_and_is_needed_is_missed(filled: Registry) -> None:
    retire_all(filled)
    sweep(filled, NO_GRACE)
    with filled.writing() as session:
        session.connection().exec_driver_sql("DELETE FROM certificate")
        session.connection().exec_driver_sql("DELETE FROM encoding WHERE adapter_id = 1")
    problems = [finding for finding in filled.check() if finding.severity == "error"]
    assert [problem.what for problem in problems[:-1]] == ["table 'encoding'", "table 'certificate'"]  # the ledger's
    assert problems[-1].problem == f"{WEIGHTS_FILE} of one@1 is missing from the blob store"


# -- orphans -------------------------------------------------------------------------------------


@pytest.mark.folder_alone
def test_orphans_go_when_they_are_old_enough(filled: Registry) -> None:
    young, old = filled.blobs.put_bytes(b"young"), filled.blobs.put_bytes(b"old")
    os.utime(filled.blobs.path(old), (time.time() - 8 * 86400,) * 2)
    assert [orphan.sha256 for orphan in find_orphans(filled, GRACE)] == [old]
    assert old in filled.blobs
    assert [(orphan.sha256, orphan.size_bytes) for orphan in delete_orphans(filled, GRACE)] == [(old, 3)]
    assert (old in filled.blobs, young in filled.blobs) == (False, True)
    assert [json.loads(row["value"]) for row in filled.fetch("SELECT value FROM setting")] == []


def test_what_a_row_names_is_no_orphan(filled: Registry) -> None:
    retire_all(filled)
    assert find_orphans(filled, NO_GRACE) == []


def test_recording_needs_its_blob(filled: Registry) -> None:
    with pytest.raises(MissingBlobError, match=f"Blob {'ab' * 32} is missing"):
        filled.record_generator(NewGenerator(1, "ab" * 32, 3, "mean", "", {}, {}))


@pytest.mark.folder_alone
def test_what_happened_while_orphans_were_listed_counts(
    filled: Registry, monkeypatch: pytest.MonkeyPatch, make_adapter: MakeAdapter
) -> None:
    """Others write while a large bucket is listed: what they name, stored anew or deleted is judged as it is then."""
    wanted, fresh, gone, orphan = (filled.blobs.put_bytes(data) for data in (b"wanted", b"fresh", b"gone", b"orphan"))
    find = sweep_module.find_orphans
    for sha256 in (wanted, fresh, gone, orphan):
        age(filled, sha256, 8)

    def find_and_wait(registry: Registry, grace: timedelta) -> list[sweep_module.Orphan]:
        found = find(registry, grace)
        with Registry.open(filled.home, create=False) as other:
            other.put_files(other.adapter("one"), {"extras/late": b"wanted"})
            other.blobs.delete([gone])
        age(filled, fresh, 0)
        return found

    monkeypatch.setattr(sweep_module, "find_orphans", find_and_wait)
    monkeypatch.setattr(sweep_module, "ORPHANS_AT_ONCE", 3)
    assert [found.sha256 for found in delete_orphans(filled, GRACE)] == [orphan]
    assert orphan not in filled.blobs
    assert wanted in filled.blobs
    assert fresh in filled.blobs
    assert not [finding for finding in filled.check(read_data=True) if finding.severity == "error"]


def age(registry: Registry, sha256: str, days: int) -> None:
    path = registry.home / "blobs" / sha256[:2] / sha256[2:]
    os.utime(path, (time.time() - days * 86400,) * 2)


def test_nothing_goes_because_the_row_that_named_it_is_damaged(filled: Registry, raw: Callable[..., Any]) -> None:
    """Or lost: what is left of it would be deleted as nobody's."""
    kept, damages = set(filled.blobs), ["UPDATE encoding SET sha256 = 'x' WHERE id = 1"]
    damages += ["DELETE FROM certificate WHERE encoding_id = 1", "DELETE FROM encoding WHERE id = 1"]
    for damage in damages:
        raw(damage)
        for act in (lambda: delete_orphans(filled, NO_GRACE), lambda: sweep(filled, NO_GRACE)):
            with pytest.raises(IntegrityError, match="damaged"):
                act()
    assert set(filled.blobs) == kept
