"""Rows as records: each intact, and what was asked for.

An index is not covered by digests: one that is damaged leads to an intact row that was not asked for, or past one
that was. So a record is compared with what was asked, and whoever reads a whole table compares it with the ledger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lorareg.registry import ledger
from lorareg.registry.backend import Backend
from lorareg.registry.damage import Damage
from lorareg.registry.rows import expect_asked, expect_count, expect_whole, misled, record_from_row

Record = TypeVar("Record")

VALUES_A_QUERY = 500
NOTHING: Mapping[str, object] = {}


class RowReading(ABC):
    """A database that is read."""

    home: Path
    backend: Backend

    @abstractmethod
    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        """Run a SELECT with `:named` parameters and return its rows."""

    @abstractmethod
    def fetch_together(self, statements: Sequence[str]) -> list[Sequence[Mapping[str, Any]]]:
        """Run several SELECTs that see one moment."""

    def _all(self, record: type[Record], table: str, order: str = "", /, **asked: object) -> list[Record]:
        return self._past(None, record, table, order, asked)

    def _past(
        self, damage: Damage | None, record: type[Record], table: str, order: str, asked: Mapping[str, object] = NOTHING
    ) -> list[Record]:
        """The rows whose columns are as `asked`, None being NULL."""
        conditions = [f"{name} IS NULL" if value is None else f"{name} = :{name}" for name, value in asked.items()]
        where = f"WHERE {' AND '.join(conditions)}" if asked else ""
        rows = self.fetch(f"SELECT * FROM {table} {where} {order}", **given(**asked))
        return self._records(record, table, rows, asked) if damage is None else list(damage.sound(record, table, rows))

    def _first(self, record: type[Record], table: str, /, **asked: object) -> Record | None:
        return next(iter(self._all(record, table, "", **asked)), None)

    def _records(
        self, record: type[Record], table: str, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, object]
    ) -> list[Record]:
        """Rows as records, each intact and what was asked for."""
        records = [record_from_row(record, table, row) for row in rows]
        for row in rows:
            expect_asked(table, row, asked)
        return records

    def expect_counts(self, *tables: str) -> None:
        """As many rows are there as were written; their digests are not compared.

        Raises:
            IntegrityError: some are lost.
        """
        counts = [f"SELECT count(*) AS n FROM {table}" for table in tables]
        *found, kept = self.fetch_together([*counts, f"SELECT * FROM {ledger.TABLE}"])
        for table, rows in zip(tables, found, strict=True):
            expect_count(table, rows[0]["n"], kept)

    def _whole(self, table: str) -> Sequence[Mapping[str, Any]]:
        """Every row of a table.

        Raises:
            IntegrityError: not all of them are there.
        """
        rows, kept = self.fetch_together([f"SELECT * FROM {table}", f"SELECT * FROM {ledger.TABLE}"])
        expect_whole(table, rows, kept)
        return rows

    def _among(
        self, record: type[Record], table: str, column: str, values: Sequence[object], rest: str, **more: object
    ) -> Iterator[Record]:
        for start in range(0, len(values), VALUES_A_QUERY):
            asked = {f"value_{number}": value for number, value in enumerate(values[start : start + VALUES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            rows = self.fetch(f"SELECT * FROM {table} WHERE {column} IN ({among}) {rest}", **asked, **more)
            if any(row[column] not in asked.values() for row in rows):
                raise misled(table)
            yield from self._records(record, table, rows, more)


def given(**parameters: object) -> dict[str, object]:
    """Those that are not None."""
    return {name: value for name, value in parameters.items() if value is not None}
