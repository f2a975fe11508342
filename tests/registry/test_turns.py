"""Who works at a registry while others do: nobody's blobs are swept from under them, and who has to wait is told."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from lorareg.registry import postgres as postgres_module
from lorareg.registry import sqlite as sqlite_module
from lorareg.registry.bundle import make_bundle, selected, write_bundle
from lorareg.registry.bundle_file import BundleFile
from lorareg.registry.errors import BusyError, RegistryError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.schema import AdapterFileRow, AdapterRow
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, sweep
from lorareg.registry.unbundle import import_bundle

MakeAdapter = Callable[..., Path]
NO_GRACE = timedelta(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a registry from now on waits for a second at most."""
    for module in (sqlite_module, postgres_module):
        monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 1)


@pytest.fixture
def swept_at_once(registry: Registry, impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Whatever is stored goes at once, if no row names it and nobody holds the write lock; how much went each time."""
    went: list[int] = []
    other = Registry.open(registry.home, create=False)
    publish = type(registry.blobs).publish

    def published(store: Any, blobs: Any) -> None:
        publish(store, blobs)
        with suppress(RegistryError):
            went.append(len(delete_orphans(other, NO_GRACE)))

    monkeypatch.setattr(type(registry.blobs), "publish", published)
    yield went
    other.close()


def errors(registry: Registry) -> list[Any]:
    return [finding for finding in registry.check(read_data=True) if finding.severity == "error"]


def test_what_is_ingested_stays_however_often_is_swept(
    registry: Registry, make_adapter: MakeAdapter, swept_at_once: list[int]
) -> None:
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    registry.put_files(adapter, {"notes.txt": b"Notes."})
    assert sum(swept_at_once) > 0
    assert registry.read_file(adapter, "notes.txt") == b"Notes."
    assert errors(registry) == []


def test_what_is_imported_stays_however_often_is_swept(
    registry: Registry, make_adapter: MakeAdapter, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    written = io.BytesIO()
    write_bundle(make_bundle(registry, selected(registry, [], []), originals=True), registry.blobs.get, written, abs)
    (tmp_path / "bundle.tar").write_bytes(written.getvalue())
    with registry.writing() as session:
        for model in (AdapterFileRow, AdapterRow):
            for row in session.scalars(select(model)):
                session.delete(row)
            session.flush()
    swept = request.getfixturevalue("swept_at_once")
    with BundleFile.open(tmp_path / "bundle.tar") as bundle:
        done = import_bundle(registry, bundle, lambda parcel, read: "", lambda _: None)
    assert done.added == [adapter.ref]
    assert sum(swept) > 0
    assert errors(registry) == []


WORKER = """
import sys
from pathlib import Path
from lorareg.registry.store import Registry
with Registry.open(Path(sys.argv[1]), create=False) as registry, registry.backend.working():
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("act", [sweep, delete_orphans])
def test_who_deletes_waits_for_who_compresses_and_then_says_so(registry: Registry, impatient: None, act: Any) -> None:
    command = [sys.executable, "-c", WORKER, str(registry.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdin is not None
        assert worker.stdout.readline() == "at work\n"
        with pytest.raises(BusyError, match=r"another process compresses, sweeps or collects there.*Try again"):
            act(registry, NO_GRACE)
        worker.kill()
    act(registry, NO_GRACE)  # the lock went with its process


def test_a_turn_comes(registry: Registry) -> None:
    brief = WORKER.replace("sys.stdin.read()", "import time; time.sleep(1)")
    command = [sys.executable, "-c", brief, str(registry.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        started = time.monotonic()
        sweep(registry, NO_GRACE)
        assert time.monotonic() - started < sqlite_module.BUSY_TIMEOUT_S
