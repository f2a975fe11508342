"""The ledger knows what every way of writing wrote, and the head how far it had come."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry.backend import backend_of
from lorareg.registry.errors import IntegrityError
from lorareg.registry.head import advance_head, read_head
from lorareg.registry.home import HEAD_FILE
from lorareg.registry.ledger import Sum, change, load, sum_of, sums_of
from lorareg.registry.migrate import move_schema
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.replicate import replicate
from lorareg.registry.rows import SCHEMA_REVISION, every_row
from lorareg.registry.schema import Base, RetiredBlobRow
from lorareg.registry.store import Registry
from lorareg.registry.types import NewEncoding, NewGenerator

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]


@pytest.fixture
def filled(registry: Registry, make_adapter: MakeAdapter) -> Registry:
    """Rows that came, changed and went in most of the ways there are."""
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    other = registry.ingest(read_folder(make_adapter("b", seed=2)), name="task").adapter
    registry.tag(adapter, "stable")
    registry.tag(other, "stable")
    registry.tag(other, "gone")
    registry.untag(other, "gone")
    registry.put_task_vector(adapter.id, "text:v1", b"\0")
    registry.put_task_vector(adapter.id, "text:v1", b"\1")
    registry.put_task_vector(other.id, "text:v1", b"\2")
    registry.describe(other, "something else")
    body, code = registry.blobs.put_bytes(b"generator"), registry.blobs.put_bytes(b"code")
    generator = registry.record_generator(NewGenerator(adapter.cohort_id, body, 9, "slots", "text:v1", {}, {}))
    for number in (generator.id, None):
        registry.record_encoding(NewEncoding(adapter.id, number, "c", "residual", code, 4, "0" * 64, 9, {}, {}))
    registry.remove(other)
    return registry


def written(registry: Registry) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """What the ledger says of tables that have rows, and what they have."""
    tables = {table.name: registry.fetch(every_row(table.name)) for table in Base.metadata.sorted_tables}
    return load(tables["ledger"][0]["sums"]), {name: one for name, one in sums_of(tables).items() if one.rows}


def problems(registry: Registry) -> list[str]:
    return [f"{found.what}: {found.problem}" for found in registry.check() if found.severity == "error"]


def test_sums_have_no_order_and_know_what_came_twice() -> None:
    one, two = "1" * 64, "f" * 64
    assert sum_of([one, two]) == sum_of([two, one]) == Sum().changed(change(added=two)).changed(change(added=one))
    assert sum_of([one, two]).changed(change(added=one, taken=two)) == sum_of([one, one]) != sum_of([])


def test_it_knows_what_was_written(filled: Registry) -> None:
    said, found = written(filled)
    assert said == found
    tables = {"cohort", "adapter", "adapter_file", "tag", "task_vector", "generator", "encoding"}
    assert set(said) - {"setting"} == tables
    assert problems(filled) == []


def test_a_row_that_takes_the_place_of_one_deleted_in_the_same_breath(registry: Registry) -> None:
    def row(size_bytes: int) -> RetiredBlobRow:
        values = {"kind": "original", "proof": "", "state": "deleted", "retired_at": "", "deleted_at": None}
        return RetiredBlobRow(sha256="0" * 64, size_bytes=size_bytes, **values)

    with registry.writing() as session:
        session.add(row(1))
    with registry.writing() as session:
        session.delete(session.get(RetiredBlobRow, "0" * 64))
        session.add(row(2))
    said, found = written(registry)
    assert said == found


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("cohort", "id = 1"),
        ("adapter_file", "path = 'README.md' AND adapter_id = 1"),
        ("tag", "label = 'stable'"),
        ("task_vector", "adapter_id = 1"),
        ("generator", "id = 1"),
        ("encoding", "id = 1"),
    ],
)
def test_a_row_that_is_gone_is_missed(filled: Registry, raw: Raw, table: str, where: str) -> None:
    (before,) = raw(f"SELECT count(*) AS n FROM {table}")
    raw(f"DELETE FROM {table} WHERE {where}")
    assert f"table {table!r}: it has {before['n'] - 1} rows, not {before['n']}" in problems(filled)


def test_a_row_of_an_earlier_time_is_noticed(filled: Registry, raw: Raw) -> None:
    (before,) = raw("SELECT * FROM tag")
    filled.tag(filled.adapter("task@1"), "stable")
    assert problems(filled) == []
    columns = ("adapter_id", "row_digest")
    for column in columns:
        raw(f"UPDATE tag SET {column} = ?", (before[column],))
    raw("UPDATE tag SET created_at = ?", (before["created_at"],))
    assert problems(filled) == ["table 'tag': its rows are not those that were written last: some are older or lost"]


def test_without_its_row(filled: Registry, raw: Raw) -> None:
    raw("DELETE FROM ledger")
    assert problems(filled) == ["table 'ledger': its row is gone"]


def test_a_damaged_ledger_is_not_signed_anew(filled: Registry, raw: Raw) -> None:
    raw("UPDATE ledger SET sums = '{}'")
    assert [found.partition(":")[0] for found in problems(filled)] == ["Row 1 of table 'ledger'"]
    with pytest.raises(IntegrityError, match="Row 1 of table 'ledger'"):
        filled.tag(filled.adapter("task@1"), "new")
    assert [tag.label for tag in filled.labels("task")] == ["stable"]


def test_what_was_undone_is_not_in_it(filled: Registry) -> None:
    def write_and_fail() -> None:
        with filled.writing() as session:
            filled.remember_in(session, "x", 1)
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert written(filled)[0] == written(filled)[1]


def test_from_0003_with_rows(filled: Registry, home: Path) -> None:
    expected = written(filled)[0]
    filled.close()
    move_schema(backend_of(home), "0003")
    move_schema(backend_of(home), SCHEMA_REVISION)
    with Registry.open(home, create=False) as again:
        assert written(again) == (expected, expected)
        again.tag(again.adapter("task"), "new")
        assert problems(again) == []


def test_a_second_copy_has_one_of_its_own(filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        replicate(filled, str(tmp_path / "copy"), False, lambda n: None)
        with monkeypatch.context() as here:
            here.delenv("LORAREG_DATABASE", raising=False)
            here.delenv("LORAREG_STORE", raising=False)
            with Registry.open(tmp_path / "copy", create=False) as copy:
                assert problems(copy) == []
                for name in range(9):  # it comes further than what it is a copy of
                    copy.remember(str(name), 1)


# -- the head -----------------------------------------------------------------------------------


def number(registry: Registry) -> int:
    (row,) = registry.fetch("SELECT number FROM ledger")
    return int(row["number"])


@pytest.mark.sqlite_alone
def test_the_head_is_where_the_ledger_is(filled: Registry, home: Path) -> None:
    assert read_head(home) == number(filled)
    advance_head(home, 1)
    assert read_head(home) == number(filled)


@pytest.mark.sqlite_alone
def test_an_older_database_is_refused(filled: Registry, home: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    filled.close()
    shutil.copy(home / "registry.sqlite", tmp_path / "older")
    with Registry.open(home, create=False) as registry:
        before = number(registry)
        registry.ingest(read_folder(make_adapter("later", seed=5)), name="later")
        after = number(registry)
    shutil.copy(tmp_path / "older", home / "registry.sqlite")
    for act in (lambda: Reader(home), lambda: Registry.open(home, create=False)):
        with pytest.raises(IntegrityError, match=f"expected all {after} changes .* found {before} of them.*older copy"):
            act()
    (home / HEAD_FILE).unlink()
    with Registry.open(home, create=False) as registry:
        assert problems(registry) == []


@pytest.mark.sqlite_alone
def test_every_bit_of_the_head(filled: Registry, home: Path) -> None:
    whole = (home / HEAD_FILE).read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (home / HEAD_FILE).write_bytes(data)
        with pytest.raises(ValueError, match="does not hash"):
            read_head(home)
    with Registry.open(home, create=False) as registry:
        (found,) = registry.check()
        assert (found.what, found.severity) == ("registry.head", "information")
        assert found.problem.startswith("registry.head does not hash to what it says")
        registry.remember("x", 1)
        assert list(registry.check()) == []
