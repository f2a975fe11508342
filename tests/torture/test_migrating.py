"""Migrations killed at every statement that SQLite is given, and at every few hundred steps within one.

A child process migrates a populated database and is gone, as by `kill -9`, at the n-th of these moments; what it leaves
is looked at, then opened as anybody would open it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from frozen_registries import NAMES, rows_of, thaw
from sqlalchemy import event
from sqlalchemy.engine import Engine

from lorareg.registry.backend import Backend, backend_at
from lorareg.registry.copying import move_rows
from lorareg.registry.migrate import move_schema
from lorareg.registry.revision import read_revision
from lorareg.registry.rows import SCHEMA_REVISION, every_row
from lorareg.registry.sqlite import Sqlite
from lorareg.registry.store import Registry

KILLED, FAILED = 9, 70
STEPS = 50
"""Of SQLite's virtual machine: VACUUM takes some thousands, within one statement."""

OLDER = [name for name in NAMES if name[:4] < SCHEMA_REVISION]
Rows = dict[str, list[tuple[Any, ...]]]


def run_killed(act: Callable[[], object], at: int, count_moments: Callable[[int], None]) -> int:
    """Do it in a child that is gone at the moment `at`; how the child ended."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads, from Python 3.12 on: none of them holds a lock
        child = os.fork()
    if child == 0:
        try:
            count_moments(at)
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _count_moments(at: int) -> None:
    """From now on, the `at`-th moment of this process is its last: before each statement, and after every few steps."""
    numbers, connect = count(), sqlite3.connect

    def tick(statement: str = "") -> int:
        if next(numbers) == at:
            os._exit(KILLED)
        return 0

    def connect_counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(tick)
        connection.set_progress_handler(tick, STEPS)
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = connect_counted  # type: ignore[assignment]


def _count_requests(at: int) -> None:
    """The same for what SQLAlchemy asks of any database: each statement, and the commit."""
    numbers = count()

    def tick(*arguments: object) -> None:
        if next(numbers) == at:
            os._exit(KILLED)

    event.listen(Engine, "before_cursor_execute", tick)
    event.listen(Engine, "commit", tick)


def survivors(home: Path, content: bytes, act: Callable[[], object], ats: Iterator[int]) -> Iterator[int]:
    """Kill `act` at each moment of `ats`, the database being `content` again, until one is beyond its last."""
    database = home / "registry.sqlite"
    for at in ats:
        for path in (*home.glob("registry.*"), home / "backups", home / "open.lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        database.write_bytes(content)
        ended = run_killed(act, at, _count_moments)
        assert ended in (0, KILLED), f"moment {at}: the child failed"
        if ended == 0:
            return
        yield at


def expect_backups(home: Path, revision: str, before: Rows) -> int:
    """Every copy that goes by a backup's name is whole; how many there are."""
    backups = sorted((home / "backups").glob("registry-*.sqlite"))
    for backup in backups:
        with closing(sqlite3.connect(f"file:{backup}?mode=ro", uri=True)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",), backup
            assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)
        assert rows_of(backup) == before
    return len(backups)


@pytest.mark.parametrize("name", OLDER)
def test_going_up_is_whole_or_not_at_all(name: str, tmp_path: Path, torture: Any) -> None:
    torture.promise(f"A migration from {name} that is killed at any moment has happened or has not", fixed=1)
    home, revision = thaw(name, tmp_path) / "home", name[:4]
    content, before = (home / "registry.sqlite").read_bytes(), rows_of(home / "registry.sqlite")
    step = torture.runs(7, 1)
    tried = 0
    for at in survivors(home, content, lambda: Registry.open(home, create=False).close(), count(0, step)):
        found = read_revision(Sqlite(home))
        after = rows_of(home / "registry.sqlite")
        assert found in (revision, SCHEMA_REVISION), at
        assert {table: after.get(table) for table in before} == before, at
        assert set(after) == set(before) if found == revision else set(after) > set(before)
        made = expect_backups(home, revision, before)
        assert made >= (found != revision), "it was migrated without a copy from before"
        with Registry.open(home, create=False) as registry:
            assert [finding for finding in registry.check(read_data=False) if finding.severity == "error"] == []
        assert expect_backups(home, revision, before) >= 1
        tried += 1
    torture.held(tried)


@pytest.mark.parametrize("name", NAMES)
def test_going_down_is_whole_or_not_at_all(name: str, tmp_path: Path, torture: Any) -> None:
    """To the schema it was frozen with, and up again: what that schema has is untouched."""
    torture.promise(f"A migration back to {name}'s schema that is killed at any moment has happened or has not")
    home, revision = thaw(name, tmp_path) / "home", name[:4]
    before = rows_of(home / "registry.sqlite")
    Registry.open(home, create=False).close()
    if revision == SCHEMA_REVISION:
        revision = "0001"  # there is no older one that it was
        before = {table: rows for table, rows in before.items() if table in TABLES_0001}
    Sqlite(home).finished()
    content, tried = (home / "registry.sqlite").read_bytes(), 0
    head = rows_of(home / "registry.sqlite")
    step = torture.runs(7, 1)
    for at in survivors(home, content, lambda: move_schema(Sqlite(home), revision), count(0, step)):
        found, after = read_revision(Sqlite(home)), rows_of(home / "registry.sqlite")
        assert found in (revision, SCHEMA_REVISION), at
        assert after == (before if found == revision else head), at
        move_schema(Sqlite(home), SCHEMA_REVISION)
        assert {table: rows_of(home / "registry.sqlite")[table] for table in before} == before
        tried += 1
    torture.held(tried)


TABLES_0001 = ("cohort", "adapter", "adapter_file", "tag", "task_vector", "generator", "encoding")


def test_postgres_goes_down_and_up_whole_or_not_at_all(
    tmp_path: Path, empty_postgres: str, torture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torture.promise("A migration of PostgreSQL, down or up, that is killed at any statement has happened or has not")
    home = thaw(NAMES[-1], tmp_path) / "home"
    backend = backend_at(empty_postgres, home)
    with Registry.open(home, create=False) as registry:
        move_rows(registry, backend)
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    before, tried, step = postgres_rows(backend), 0, torture.runs(5, 1)
    for revision in (*sorted({name[:4] for name in NAMES} - {SCHEMA_REVISION}, reverse=True), SCHEMA_REVISION):
        start = backend.revision()
        for at in count(0, step):
            ended = run_killed(lambda: move_schema(backend, revision), at, _count_requests)  # noqa: B023
            assert ended in (0, KILLED)
            assert backend.revision() == (revision if ended == 0 else start)
            assert postgres_rows(backend) == before
            tried += 1
            if ended == 0:
                break
    with Registry.open(home, create=False) as registry:
        problems = [finding.problem for finding in registry.check(read_data=True) if finding.severity == "error"]
    # Schema 0001 does not know of originals that are gone on purpose: going back to it forgets that.
    assert [problem for problem in problems if "adapter_model.safetensors" not in problem] == []
    torture.held(tried)


def postgres_rows(backend: Backend) -> dict[str, list[dict[str, Any]]]:
    """Every row of the tables that every schema has."""
    with closing(backend.connect()) as rows:
        return {table: [dict(row) for row in rows.fetch(every_row(table), {})] for table in TABLES_0001}
