"""All rows of a registry from one database into another, as they are, each verified against its digest on the way."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, text

from lorareg.registry.backend import Backend
from lorareg.registry.database import writing
from lorareg.registry.errors import RegistryError
from lorareg.registry.home import MOVED
from lorareg.registry.migrate import migrate
from lorareg.registry.rows import verify_row
from lorareg.registry.schema import Base
from lorareg.registry.store import Registry

ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Copied:
    """How many rows there are now in the other database."""

    rows: int
    database: str


def copy_rows(source: Connection, target: Connection) -> int:
    """Copy every row into tables that have none, and compare how many each has then.

    Raises:
        IntegrityError: a row is damaged.
    """
    copied = 0
    for table in Base.metadata.sorted_tables:
        found = source.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE})
        in_table = 0
        for rows in found.mappings().partitions(ROWS_AT_ONCE):
            values = [dict(row) for row in rows]
            for row in values:
                verify_row(table.name, row)
            target.execute(insert(table), values)
            in_table += len(rows)
        assert target.scalar(select(func.count()).select_from(table)) == in_table
        copied += in_table
    return copied


def move_rows(registry: Registry, backend: Backend) -> Copied:
    """Copy a registry's rows into a database that has none, in one transaction.

    The registry remembers it: what the other database will come to mention must not be deleted as nobody's.

    Raises:
        RegistryError: the other database has rows, or refuses.
        IntegrityError: a row is damaged.
    """
    migrate(backend)
    engine = backend.engine()
    try:
        # Readers of the source see one moment of it; whoever writes there meanwhile writes what is left behind.
        with registry.writing() as locked, writing(engine, backend) as session:
            target = session.connection()
            taken = [t.name for t in Base.metadata.sorted_tables if target.execute(select(t).limit(1)).first()]
            if taken:
                reason = f"the other database has rows already (in {taken[0]!r})"
                raise RegistryError(home=registry.home, reason=reason, remedy="Name one that is empty.")
            copied = copy_rows(locked.connection(), target)
            registry.remember_in(session, MOVED, None)  # of an earlier copy
            registry.remember_in(locked, MOVED, backend.name)
            if backend.statistics:  # until then, pages of a large registry took a hundred times as long
                target.execute(text(backend.statistics))
            return Copied(copied, backend.name)
    finally:
        engine.dispose()
