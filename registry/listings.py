"""Adapters in lists and pages, beside their codes: by name, so many at once, in SQL that both readers speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorareg.registry.damage import Damage
from lorareg.registry.row_reading import VALUES_A_QUERY, RowReading, given
from lorareg.registry.rows import expect_asked, record_from_row
from lorareg.registry.types import Adapter, Encoding

ROWS_A_PAGE = 200
TEXTS_A_PAGE = 4096
_CURRENT = "FROM adapter LEFT JOIN encoding ON encoding.adapter_id = adapter.id AND encoding.superseded_at IS NULL"
_IS_LATER = "later.name = adapter.name AND later.version > adapter.version AND later.removed_at IS NULL"
_PARTS = {
    table: [(column, f"{table}_{column}") for column in (*(field.name for field in fields(record)), "row_digest")]
    for table, record in (("adapter", Adapter), ("encoding", Encoding))
}
_LISTED = ", ".join(f"{table}.{column} AS {label}" for table, columns in _PARTS.items() for column, label in columns)
"""The columns of both tables side by side, told apart by their table's name."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A version of an adapter and its current encoding, if it has one."""

    adapter: Adapter
    encoding: Encoding | None

    @property
    def stored_bytes(self) -> int:
        """Of its code, or of its weights while it has none; what it shares with others is not in it."""
        return self.adapter.original_bytes if self.encoding is None else self.encoding.size_bytes


@dataclass(frozen=True, slots=True)
class TaskBytes:
    """What the versions under one name that use one generator, or none, take."""

    name: str
    cohort_id: int
    generator_id: int | None
    versions: int
    original_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TaskText:
    """What a task's newest version says of itself, to be searched in: not verified, as what is found will be."""

    id: int
    name: str
    description: str


class Listings(RowReading):
    """What is asked of many adapters at once."""

    def names(self, after: str = "", limit: int | None = None, include_removed: bool = False) -> list[str]:
        """Names of tasks in order, those past `after`: the keys of pages."""
        live = "" if include_removed else "AND removed_at IS NULL"
        most = "" if limit is None else "LIMIT :limit"
        sql = f"SELECT DISTINCT name FROM adapter WHERE name > :after {live} ORDER BY name {most}"
        return [row["name"] for row in self.fetch(sql, after=after, **given(limit=limit))]

    def newest(self, names: Sequence[str]) -> list[Listed]:
        """The newest version under each of these names, by name, some hundred names a query."""
        found = []
        for start in range(0, len(names), VALUES_A_QUERY):
            asked = {f"name_{number}": name for number, name in enumerate(names[start : start + VALUES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            where = f"adapter.name IN ({among}) AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {_IS_LATER})"
            found += self._listed(where, **asked)
        return sorted(found, key=lambda listed: listed.adapter.name)

    def pages(
        self, damage: Damage, *, cohort_id: int | None = None, include_history: bool = False
    ) -> Iterator[list[Listed]]:
        """Every adapter, or those of a cohort, by name and version, so many at once, past damaged rows.

        The newest version under each name; with `include_history`, all versions and removed ones as well.
        """
        mine = "" if cohort_id is None else "AND {0}.cohort_id = :cohort_id"
        is_later = f"{_IS_LATER} {mine.format('later')}"
        newest = f"AND adapter.removed_at IS NULL AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {is_later})"
        where = f"WHERE (adapter.name, adapter.version) > (:name, :version) {mine.format('adapter')}"
        rest = f"{'' if include_history else newest} ORDER BY adapter.name, adapter.version LIMIT {ROWS_A_PAGE}"
        only, key = given(cohort_id=cohort_id), {"name": "", "version": 0}
        while True:
            rows = self.fetch(f"SELECT {_LISTED} {_CURRENT} {where} {rest}", **key, **only)
            found = []
            for row in rows:
                with damage.passed_over():
                    found.append(_listed(row))
            yield found
            if len(rows) < ROWS_A_PAGE:
                return
            key = {"name": rows[-1]["adapter_name"], "version": rows[-1]["adapter_version"]}

    def texts(self) -> Iterator[list[TaskText]]:
        """What every task says of itself, by name, so many at once."""
        newest = f"removed_at IS NULL AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {_IS_LATER})"
        sql = f"SELECT id, name, description FROM adapter WHERE name > :after AND {newest} ORDER BY name LIMIT :limit"
        after = ""
        while True:
            found = [TaskText(**row) for row in self.fetch(sql, after=after, limit=TEXTS_A_PAGE)]
            yield found
            if len(found) < TEXTS_A_PAGE:
                return
            after = found[-1].name

    def listed(self, adapter_ids: Sequence[int]) -> list[Listed]:
        """Adapters that are not removed, in this order."""
        found: dict[int, Listed] = {}
        for start in range(0, len(adapter_ids), VALUES_A_QUERY):
            asked = {f"id_{number}": one for number, one in enumerate(adapter_ids[start : start + VALUES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            found |= {one.adapter.id: one for one in self._listed(f"adapter.id IN ({among})", **asked)}
        return [found[one] for one in adapter_ids if one in found]

    def versions(self, name: str) -> list[Listed]:
        """Every version under a name, the oldest first."""
        return self._listed("adapter.name = :name", name=name)

    def task_bytes(self) -> list[TaskBytes]:
        """What each name takes, over its versions, by name; once for each generator that its versions use."""
        columns = "adapter.name, adapter.cohort_id, encoding.generator_id"
        sums = (
            "COUNT(*) AS versions, CAST(SUM(adapter.original_bytes) AS BIGINT) AS original_bytes, "
            "CAST(SUM(COALESCE(encoding.size_bytes, adapter.original_bytes)) AS BIGINT) AS stored_bytes"
        )
        rest = f"WHERE adapter.removed_at IS NULL GROUP BY {columns} ORDER BY {columns}"
        return [TaskBytes(**row) for row in self.fetch(f"SELECT {columns}, {sums} {_CURRENT} {rest}")]

    def cohort_counts(self) -> dict[int, tuple[int, int]]:
        """How many adapters that are not removed each cohort has, and how many of them have a code."""
        counts = "COUNT(*) AS adapters, COUNT(encoding.id) AS encoded"
        rest = "WHERE adapter.removed_at IS NULL GROUP BY adapter.cohort_id"
        rows = self.fetch(f"SELECT adapter.cohort_id, {counts} {_CURRENT} {rest}")
        return {row["cohort_id"]: (row["adapters"], row["encoded"]) for row in rows}

    def _listed(self, where: str, **parameters: object) -> list[Listed]:
        """Adapters that are not removed and their current encodings, by name and version."""
        rest = f"WHERE adapter.removed_at IS NULL AND {where} ORDER BY adapter.name, adapter.version"
        return [_listed(row) for row in self.fetch(f"SELECT {_LISTED} {_CURRENT} {rest}", **parameters)]


def _listed(row: Mapping[str, Any]) -> Listed:
    adapter, encoding = ({column: row[label] for column, label in columns} for columns in _PARTS.values())
    found, known = record_from_row(Adapter, "adapter", adapter), None
    if encoding["id"] is not None:
        known = record_from_row(Encoding, "encoding", encoding)
        expect_asked("encoding", encoding, {"adapter_id": found.id, "superseded_at": None})
    return Listed(found, known)
