"""All rows of a registry from one database into another, as they are; read back there, and compared."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, text

from lorareg.registry.backend import Backend
from lorareg.registry.database import writing
from lorareg.registry.errors import IntegrityError, RegistryError
from lorareg.registry.files import sync_file, sync_folder
from lorareg.registry.home import HEAD_FILE, MOVED, POSTGRES_FILE
from lorareg.registry.ledger import TABLE as LEDGER
from lorareg.registry.migrate import migrate
from lorareg.registry.rows import verify_row
from lorareg.registry.schema import Base
from lorareg.registry.sqlite import Sqlite
from lorareg.registry.store import Registry
from lorareg.registry.types import sha256_hex

ROWS_AT_ONCE = 500
_POSTGRES_REMEDY = "pg_dump and pg_restore bring them to another database, `lorareg migrate --to sqlite` to a file."


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows there are now in the other database, and where the file is that had them."""

    rows: int
    database: str
    before: Path | None


@dataclass(frozen=True, slots=True)
class Content:
    """What a table holds: how many rows, and a digest over theirs in any order."""

    rows: int
    digest: str


def contents(connection: Connection) -> dict[str, Content]:
    """By table, what is in it; but for the ledger, whose number goes on in either of two that hold the same.

    Raises:
        IntegrityError: a row is damaged.
    """
    found = {}
    for table in Base.metadata.sorted_tables:
        if table.name == LEDGER:
            continue
        digests = []
        with connection.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
            for row in rows.mappings():
                verify_row(table.name, dict(row))
                digests.append(bytes.fromhex(row["row_digest"]))
        found[table.name] = Content(len(digests), sha256_hex(b"".join(sorted(digests))))
    return found


def copy_rows(source: Connection, target: Connection) -> int:
    """Copy every row into tables that have none; how many there are.

    Raises:
        IntegrityError: a row is damaged, or the target holds something else afterwards.
    """
    expected = contents(source)
    for table in Base.metadata.sorted_tables:
        with source.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
            for some in rows.mappings().partitions(ROWS_AT_ONCE):
                target.execute(insert(table), [dict(row) for row in some])
    found = contents(target)
    for name, content in expected.items():
        if found[name] != content:
            raise IntegrityError(
                what=f"The copy of table {name!r}",
                expected=str(content),
                found=str(found[name]),
                remedy="Nothing was recorded; try again.",
            )
    return sum(content.rows for content in expected.values())


def move_rows(registry: Registry, backend: Backend) -> Moved:
    """Bring a registry's rows to a database that has none, or has just them since a move that was stopped.

    They come in one transaction, while nobody can write where they were; from then on nobody can at all, since that
    database remembers where its rows count now. A file that had them goes to the backups. One that was brought back
    counts again when it is asked to be moved to where it is. The registry is closed.

    Raises:
        RegistryError: the other database has other rows or belongs to another folder, or one of them refuses.
        IntegrityError: a row is damaged.
    """
    if registry.backend.name == backend.name:
        return _count_again(registry, backend)
    if isinstance(backend, Sqlite):
        return _move_back(registry, backend)
    migrate(backend)
    with closing(backend.connect()) as rows:
        backend.expect_folder(lambda sql: rows.fetch(sql, {}))
    count = _copy(registry, backend)
    return Moved(count, backend.name, registry.backend.retire())


def _copy(registry: Registry, backend: Backend) -> int:
    """Copy rows and mark those here as moved; how many. The registry is closed."""
    engine = backend.engine()
    try:
        with writing(registry.engine, registry.backend) as locked, writing(engine, backend) as session:
            registry.remember_in(locked, MOVED, None)  # of a move that was stopped
            locked.flush()
            count = _fill(locked.connection(), session.connection(), backend)
            registry.remember_in(locked, MOVED, backend.name)
    finally:
        engine.dispose()
    registry.close()
    return count


def _move_back(registry: Registry, backend: Sqlite) -> Moved:
    """From PostgreSQL to the folder's file, which is there only when it is whole and the rows before are marked."""
    _ = registry.blobs  # where they are in a folder, it is this one
    with tempfile.TemporaryDirectory(dir=registry.home, prefix="moving-") as folder:
        fresh = Sqlite(Path(folder))
        migrate(fresh)
        count = _copy(registry, fresh)
        file = fresh.finished()
        sync_file(file)
        (registry.home / HEAD_FILE).unlink(missing_ok=True)  # of the file that was there before
        file.rename(backend.path)
    _forget_postgres(registry.home)
    return Moved(count, backend.name, None)


def _count_again(registry: Registry, backend: Backend) -> Moved:
    """Rows that were copied elsewhere are the ones to go on with after all."""
    if registry.setting(MOVED) is None or registry.backend.place != backend.place:
        remedy = "Nothing was changed." if registry.backend.name == Sqlite.name else _POSTGRES_REMEDY
        reason = f"its rows are in {registry.backend.name} already"
        raise RegistryError(home=registry.home, reason=reason, remedy=remedy)
    with writing(registry.engine, registry.backend) as session:
        registry.remember_in(session, MOVED, None)
        session.flush()
        count = sum(content.rows for content in contents(session.connection()).values())
    if registry.backend.name == Sqlite.name:
        _forget_postgres(registry.home)
    registry.close()
    return Moved(count, registry.backend.name, None)


def _forget_postgres(home: Path) -> None:
    """The folder is no longer that database's; the next one gets a number of its own."""
    (home / POSTGRES_FILE).unlink(missing_ok=True)
    sync_folder(home)


def _fill(source: Connection, target: Connection, backend: Backend) -> int:
    there = contents(target)
    taken = [name for name, content in there.items() if content.rows]
    if not taken:
        count = copy_rows(source, target)
        if backend.statistics:  # until then, pages of a large registry took a hundred times as long
            target.execute(text(backend.statistics))
        return count
    if there != contents(source):
        reason = f"the other database has other rows already (in {taken[0]!r})"
        raise RegistryError(home=backend.home, reason=reason, remedy="Name one that is empty.")
    return sum(content.rows for content in there.values())
