"""All rows of a registry from one database into another, as they are; read back there, and compared."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, select, text

from lorareg.registry.backend import Backend
from lorareg.registry.database import writing
from lorareg.registry.errors import IntegrityError, RegistryError
from lorareg.registry.home import MOVED
from lorareg.registry.migrate import migrate
from lorareg.registry.rows import verify_row
from lorareg.registry.schema import Base
from lorareg.registry.store import Registry
from lorareg.registry.types import sha256_hex

ROWS_AT_ONCE = 500


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
    """By table, what is in it.

    Raises:
        IntegrityError: a row is damaged.
    """
    found = {}
    for table in Base.metadata.sorted_tables:
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

    They come in one transaction, while nobody can write where they were. Then the file that had them goes to the
    backups, so that nobody goes on with it. Should it be brought back, it remembers that what the other database has
    come to mention must not be deleted as nobody's. The registry is closed.

    Raises:
        RegistryError: the other database has other rows or belongs to another folder, or one of them refuses.
        IntegrityError: a row is damaged.
    """
    if registry.backend.name == backend.name:
        remedy = "pg_dump and pg_restore bring them to another database."
        raise RegistryError(home=registry.home, reason=f"its rows are in {backend.name} already", remedy=remedy)
    migrate(backend)
    with closing(backend.connect()) as rows:
        backend.expect_folder(lambda sql: rows.fetch(sql, {}))
    engine = backend.engine()
    try:
        with registry.writing() as locked, writing(engine, backend) as session:
            registry.remember_in(locked, MOVED, None)  # of a move that was stopped
            locked.flush()
            count = _fill(locked.connection(), session.connection(), backend)
            registry.remember_in(locked, MOVED, backend.name)
    finally:
        engine.dispose()
    registry.close()
    return Moved(count, backend.name, registry.backend.retire())


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
