"""Damage in a registry's rows and blobs, mended from second copies (see `replicate`) where that can be proven right.

A blob proves itself by its digest. Rows are proven by the ledger: those that are intact here, together with those of a
copy that are damaged or missing here, are what was written exactly when their number and the sum of their digests say
so. What cannot be proven is left as it is, for `check` to name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, update
from sqlalchemy.engine import Connection

from lorareg.registry import ledger
from lorareg.registry.errors import IntegrityError, LoraregError
from lorareg.registry.migrate import migrate
from lorareg.registry.replicate import fetch_database, repair
from lorareg.registry.rows import every_row, row_digest, verify_row
from lorareg.registry.schema import Base
from lorareg.registry.sqlite import Sqlite

if TYPE_CHECKING:
    from lorareg.registry.store import Registry

MOST_TRIES = 10_000
"""Combinations of a copy's rows that are tried for one table."""

Row = Mapping[str, Any]
Rows = Sequence[Row]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Mended:
    """Something that is as it was again, or as good, and how that came."""

    what: str
    how: str


def mend_database(registry: Registry, locations: Sequence[str]) -> Iterator[Mended | LoraregError]:
    """Indexes from their tables, rows from copies, the ledger from rows; yields what was mended, or why it was not."""
    try:
        if list(registry.backend.problems(registry.fetch)):
            registry.backend.rebuild_indexes()
            if not list(registry.backend.problems(registry.fetch)):
                yield Mended("database", "its indexes were built again from its tables")
        yield from _mend_rows(registry, locations)
        yield from _mend_ledger(registry)
    except LoraregError as error:
        yield error


def mend_blobs(registry: Registry, location: str) -> Iterator[Mended | LoraregError]:
    """Blobs that are damaged or missing here and intact there."""
    try:
        for sha256 in repair(registry, location, lambda n: None):
            yield Mended(f"blob {sha256}", f"copied from {location}")
    except LoraregError as error:
        yield error


def known_copies(registry: Registry) -> list[str]:
    """Where second copies were made, as far as rows say so that are intact."""
    try:
        rows = registry.fetch(every_row("generator_copy"))
    except LoraregError:
        return []
    return sorted({row["location"] for row in rows if _is_intact("generator_copy", row)})


def _mend_rows(registry: Registry, locations: Sequence[str]) -> Iterator[Mended | LoraregError]:
    broken = _broken_tables(registry)
    for location in locations if broken else []:
        try:
            copy = _rows_at(location, broken)
        except LoraregError as error:
            yield error
            continue
        for table in list(broken):
            here, due = broken[table]
            proven = _proven(table, here, copy[table], due)
            if proven is not None:
                with registry.writing() as session:
                    _write(session.connection(), table, here, proven)
                del broken[table]
                yield Mended(f"table {table!r}", f"rows as they were, with those at {location}; the ledger proves it")


def _broken_tables(registry: Registry) -> dict[str, tuple[Rows, ledger.Sum]]:
    """Tables that are not what was written, parents first: what they hold, and what they should add up to."""
    names = [table.name for table in Base.metadata.sorted_tables if table.name != ledger.TABLE]
    *tables, kept = registry.fetch_together([every_row(name) for name in (*names, ledger.TABLE)])
    if not kept or not _is_intact(ledger.TABLE, kept[0]):
        return {}
    sums = ledger.load(kept[0]["sums"])
    due = {name: sums.get(name, ledger.Sum()) for name in names}
    return {
        name: (rows, due[name])
        for name, rows in zip(names, tables, strict=True)
        if ledger.sum_of(row.get("row_digest") for row in rows) != due[name]
        or not all(_is_intact(name, row) for row in rows)
    }


def _rows_at(location: str, tables: Mapping[str, object]) -> dict[str, Rows]:
    """What a copy's database holds, brought to this schema.

    Raises:
        LoraregError: there is none, or it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        fetch_database(location, Path(folder))
        backend = Sqlite(Path(folder))
        migrate(backend)
        with closing(backend.connect()) as connection:
            return {table: connection.fetch(every_row(table), {}) for table in tables}


def _proven(table: str, here: Rows, there: Rows, due: ledger.Sum) -> list[Row] | None:
    """Rows of both that add up to what the ledger says, if any do."""
    mine = {_key(table, row): row for row in here if _is_intact(table, row)}
    theirs = {_key(table, row): row for row in there if _is_intact(table, row)}
    new = [row for key, row in theirs.items() if key not in mine]
    for rows in (mine | theirs, theirs):
        if _sum(rows.values()) == due:
            return list(rows.values())
    for chosen in islice(combinations(new, max(due.rows - len(mine), 0)), MOST_TRIES):
        if _sum([*mine.values(), *chosen]) == due:
            return [*mine.values(), *chosen]
    return None


def _write(connection: Connection, table: str, here: Rows, proven: Rows) -> None:
    """Make a table hold these rows; past the session, because the ledger knows them already."""
    model = Base.metadata.tables[table]
    present, wanted = {_key(table, row): row for row in here}, {_key(table, row): row for row in proven}

    def is_row(key: Key) -> list[Any]:
        return [column == value for column, value in zip(model.primary_key.columns, key, strict=True)]

    for key in present.keys() - wanted.keys():
        connection.execute(delete(model).where(*is_row(key)))
    for key, row in wanted.items():
        if key not in present:
            connection.execute(insert(model).values(dict(row)))
        elif dict(present[key]) != dict(row):
            connection.execute(update(model).where(*is_row(key)).values(dict(row)))


def _mend_ledger(registry: Registry) -> Iterator[Mended]:
    """Where the ledger alone is damaged: what is there is all that is known, so that is what it says from now on."""
    names = [table.name for table in Base.metadata.sorted_tables if table.name != ledger.TABLE]
    *tables, kept = registry.fetch_together([every_row(name) for name in (*names, ledger.TABLE)])
    found = ledger.sums_of(dict(zip(names, tables, strict=True)))
    is_kept = bool(kept) and _is_intact(ledger.TABLE, kept[0])
    is_intact = all(_is_intact(name, row) for name, rows in zip(names, tables, strict=True) for row in rows)
    if is_kept or not is_intact or found == {name: ledger.Sum() for name in names}:
        return
    number = max([row["number"] for row in kept if isinstance(row["number"], int)], default=0)
    row = {"id": 1, "number": max(number, registry.backend.acknowledged()) + 1, "sums": ledger.dump(found)}
    table = Base.metadata.tables[ledger.TABLE]
    with registry.writing() as session:
        session.connection().execute(delete(table))
        session.connection().execute(insert(table).values({**row, "row_digest": row_digest(ledger.TABLE, row)}))
    yield Mended("table 'ledger'", "written anew from the rows there are; any that were lost before are not missed")


def _sum(rows: Sequence[Row] | Any) -> ledger.Sum:
    return ledger.sum_of(row["row_digest"] for row in rows)


def _key(table: str, row: Row) -> Key:
    return tuple(row[column.name] for column in Base.metadata.tables[table].primary_key.columns)


def _is_intact(table: str, row: Row) -> bool:
    try:
        verify_row(table, row)
    except IntegrityError:
        return False
    return True
