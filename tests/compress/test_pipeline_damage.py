"""`compress` and damaged rows: what they say is passed over, all else is done, and the end tells."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.damage import Damage
from lorareg.registry.errors import DamagedRowsError
from lorareg.registry.store import Registry

AddGroup = Callable[..., None]


def change(registry: Registry, sql: str) -> None:
    """Change rows behind the registry's back."""
    with closing(sqlite3.connect(registry.home / "registry.sqlite")) as connection, connection:
        connection.execute(sql)


def coded(registry: Registry) -> set[str]:
    """The names of all that has a code."""
    sql = "SELECT name FROM adapter WHERE id IN (SELECT adapter_id FROM encoding)"
    return {row["name"] for row in registry.fetch(sql)}


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE adapter SET rank = 9 WHERE name = 'b'", "Row 2 of table 'adapter'"),
        ("UPDATE adapter_file SET size_bytes = 9 WHERE adapter_id = 2 AND path = 'README.md'", "Row 2 of table"),
        ("UPDATE task_vector SET vector = x'00' WHERE adapter_id = 2", "Row 2 of table 'task_vector'"),
    ],
)
def test_an_adapter_whose_rows_are_damaged_is_passed_over(
    registry: Registry, add_group: AddGroup, sql: str, what: str
) -> None:
    add_group(registry, "a", "b", "c")
    registry.put_task_vector(2, "text:made-up", b"\1")
    change(registry, sql)
    with pytest.raises(DamagedRowsError, match=what):
        compress(registry, (), CompressOptions(arch="mean"), Silent())
    assert set(coded(registry)) == {"a", "c"}


def test_what_hangs_on_a_damaged_encoding_stays_as_it_is(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, "a", "b", "c")
    compress(registry, (), CompressOptions(arch="mean"), Silent())
    change(registry, "UPDATE encoding SET codec = 'x' WHERE adapter_id = 2")
    damage = Damage()
    (summary,) = compress(registry, (), CompressOptions(arch="mean", retrain=True), Silent(), damage=damage)
    assert list(damage.rows) == ["Row 2 of table 'encoding'"]
    assert summary.encoded == 2


@pytest.mark.parametrize("table", ["cohort", "generator"])
def test_a_damaged_cohort_or_generator_does_not_stop_the_others(
    registry: Registry, add_group: AddGroup, table: str
) -> None:
    add_group(registry, "a", "b", "c")
    compress(registry, (), CompressOptions(arch="mean"), Silent())
    add_group(registry, "d")
    add_group(registry, "x", "y", width=40)
    change(registry, f"UPDATE {table} SET created_at = 'x' WHERE id = 1")
    damage = Damage()
    summaries = compress(registry, (), CompressOptions(arch="mean"), Silent(), damage=damage)
    assert list(damage.rows) == [f"Row 1 of table {table!r}"]
    assert {summary.encoded for summary in summaries} >= {2}
    assert {"x", "y"} <= set(coded(registry))


def test_an_adapter_of_a_damaged_generator_is_encoded_anew_from_its_original(
    registry: Registry, add_group: AddGroup
) -> None:
    add_group(registry, "a", "b", "c")
    compress(registry, (), CompressOptions(arch="mean"), Silent())
    change(registry, "UPDATE generator SET created_at = 'x'")
    with pytest.raises(DamagedRowsError, match=r"\(1\) were passed over.* Row 1 of table 'generator'"):
        compress(registry, (), CompressOptions(arch="none"), Silent())
    assert [registry.encoding(number).generator_id for number in (1, 2, 3)] == [None] * 3  # type: ignore[union-attr]


def test_nothing_but_damage_says_so(registry: Registry, add_group: AddGroup) -> None:
    add_group(registry, "a")
    change(registry, "UPDATE cohort SET created_at = 'x'")
    with pytest.raises(DamagedRowsError, match="Row 1 of table 'cohort'"):
        compress(registry, (), CompressOptions(), Silent())
