"""Adapters taken in by batches: blobs last before rows, rows before anybody hears of them; none takes others along."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import blob_damage
import pytest

from lorareg.registry import intake
from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.ingest import IngestOutcome, IngestRequest, Staged
from lorareg.registry.store import Registry

MakeAdapter = Callable[..., Path]


@pytest.fixture
def requests(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> list[IngestRequest]:
    """Ten adapters, to be taken in by four; the sixth is refused."""
    monkeypatch.setattr(intake, "BATCH_ADAPTERS", 4)
    folders = [make_adapter(f"t{number}", seed=number) for number in range(10)]
    (folders[5] / "adapter_config.json").write_text("{")
    return [IngestRequest(folder, folder.name) for folder in folders]


def there(registry: Registry) -> list[str]:
    return [adapter.name for adapter in registry.adapters()]


def test_who_is_told_of_an_adapter_finds_it_and_its_batch(registry: Registry, requests: list[IngestRequest]) -> None:
    seen = []
    for request, outcome in zip(requests, registry.ingest_each(requests), strict=True):
        assert isinstance(outcome, InvalidAdapterError if request.name == "t5" else IngestOutcome)
        seen.append(len(there(registry)))
    assert seen == [4, 4, 4, 4, 7, 7, 7, 7, 9, 9]
    assert not [finding for finding in registry.check(read_data=True)]
    assert not list(registry.blobs.tmp.iterdir())


@pytest.mark.folder_alone
def test_blobs_and_their_folders_are_flushed_before_the_rows(
    registry: Registry, requests: list[IngestRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[Path] = set()
    batches = 0
    record = intake.record_adapters

    def sync_all(sync: object, paths: Iterable[Path]) -> None:
        flushed.update(path for path in paths if path.exists())

    def recorded(session: Any, coming: Sequence[Staged]) -> list[IngestOutcome]:
        nonlocal batches
        batches += 1
        blobs = [blob for one in coming for blob in one.files.values()]
        copies = {blob.sha256: blob.path for blob in blobs if blob.is_new}  # of equal files the last is kept
        assert all(blob.sha256 in registry.blobs for blob in blobs)
        assert {registry.blobs.path(blob.sha256).parent for blob in blobs} <= flushed
        assert set(copies.values()) <= flushed
        return record(session, coming)

    monkeypatch.setattr("lorareg.registry.folder_blobs.sync_all", sync_all)
    monkeypatch.setattr(intake, "record_adapters", recorded)
    assert len(list(registry.ingest_each(requests))) == len(requests)
    assert batches == 3


def test_what_the_rows_of_one_run_into_does_not_stop_the_others(
    registry: Registry, requests: list[IngestRequest], raw: Callable[..., Any]
) -> None:
    """t1 is there, and its row is damaged: its batch is recorded one by one."""
    list(registry.ingest_each(requests[1:2]))
    raw("UPDATE adapter SET rank = 77")
    outcomes = list(registry.ingest_each(requests[:4]))
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "IngestOutcome",
        "DamagedRowError",
        *["IngestOutcome"] * 2,
    ]
    assert [row["name"] for row in raw("SELECT name FROM adapter ORDER BY id")] == ["t1", "t0", "t2", "t3"]


def test_a_full_disk_stops_it_and_keeps_what_came_before(
    registry: Registry, requests: list[IngestRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = intake.stage_files

    def full(staging: Any, folder: Any) -> Any:
        if folder.path.name == "t6":
            raise OSError(errno.ENOSPC, "No space left on device")
        return stage(staging, folder)

    monkeypatch.setattr(intake, "stage_files", full)
    outcomes = registry.ingest_each(requests)
    for _ in range(6):
        next(outcomes)
    with pytest.raises(OSError, match="No space left"):
        next(outcomes)
    assert there(registry) == ["t0", "t1", "t2", "t3", "t4"]
    assert not list(registry.blobs.tmp.iterdir())


def test_who_stops_listening_leaves_nothing_behind(registry: Registry, requests: list[IngestRequest]) -> None:
    outcomes = registry.ingest_each(requests)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert there(registry) == ["t0", "t1", "t2", "t3"]
    assert not list(registry.blobs.tmp.iterdir())


def test_what_a_sweep_unlinked_meanwhile_is_stored_again_for_one_and_all(
    registry: Registry, requests: list[IngestRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    once: list[int] = []
    claim = intake.claim_blobs

    def swept(session: Any, blobs: Any, sizes: Any) -> None:
        if not once:
            once.append(1)
            blob_damage.lose(blobs, min(sizes))
        claim(session, blobs, sizes)

    monkeypatch.setattr(intake, "claim_blobs", swept)
    assert [type(outcome) for outcome in registry.ingest_each(requests[:4])] == [IngestOutcome] * 4
    assert once
    assert not [finding for finding in registry.check(read_data=True)]


def test_large_adapters_do_not_wait_for_each_other(
    registry: Registry, requests: list[IngestRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BATCH_BYTES", 1)
    next(registry.ingest_each(requests))
    assert there(registry) == ["t0"]
