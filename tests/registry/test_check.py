"""Each kind of damage, done with plain tools, is found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import blob_damage
import pytest

from lorareg.registry.check import TABLES, check
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.rows import REFERENCES, row_digest
from lorareg.registry.schema import Base
from lorareg.registry.store import Registry
from lorareg.registry.types import Finding, NewEncoding, NewGenerator

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]


@pytest.fixture
def filled(registry: Registry, make_adapter: MakeAdapter) -> Registry:
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    elsewhere = {"base_model_name_or_path": "tiny/other"}
    other = registry.ingest(read_folder(make_adapter("b", width=9, config=elsewhere)), name="other").adapter
    registry.tag(adapter, "stable")
    registry.put_task_vector(adapter.id, "text:v1", b"\0")
    body = registry.blobs.put_bytes(b"generator")
    generator = registry.record_generator(NewGenerator(adapter.cohort_id, body, 9, "slots", "text:v1", {}, {}))
    code = registry.blobs.put_bytes(b"code")
    for one, generator_id in ((adapter, generator.id), (other, None)):
        registry.record_encoding(
            NewEncoding(one.id, generator_id, "residual", "residual", code, 4, "0" * 64, 9, {}, {})
        )
    assert list(registry.check(read_data=True)) == []
    return registry


@pytest.fixture
def rewrite(raw: Raw) -> Callable[..., None]:
    """Change a column with raw SQL; `sign` forges the row's digest too."""

    def change(table: str, column: str, value: object, where: str = "1 = 1", *, sign: bool = True) -> None:
        raw(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,))
        for row in raw(f"SELECT * FROM {table}") if sign else []:
            new, old = row_digest(table, row), row["row_digest"]
            raw(f"UPDATE {table} SET row_digest = ? WHERE row_digest = ?", (new, old))

    return change


def problems(registry: Registry, read_data: bool = False) -> list[str]:
    return [f"{found.what}: {found.problem}" for found in registry.check(read_data) if found.severity == "error"]


@pytest.mark.folder_alone
@pytest.mark.parametrize("table", ["cohort", "adapter", "adapter_file", "tag", "task_vector", "generator", "encoding"])
def test_an_unsigned_change_to_any_table_is_found(filled: Registry, rewrite: Callable[..., None], table: str) -> None:
    column = "size_bytes" if table == "adapter_file" else "created_at"
    rewrite(table, column, 7, sign=False)
    assert any(f"of table '{table}'" in problem and "hash to" in problem for problem in problems(filled))


@pytest.mark.folder_alone
@pytest.mark.parametrize(
    ("table", "column", "value", "where", "problem"),
    [
        ("adapter", "base_model", "x", "id = 1", "task@1: its base model is x, but its cohort's is tiny/base-model"),
        ("adapter", "digest", "x", "id = 1", "task@1: its files are not those its digest was made from"),
        ("adapter_file", "path", "x", "path = 'adapter_config.json'", "task@1: it has no adapter_config.json"),
        ("cohort", "layout_digest", "x", "id = 1", "its layout does not match its layout digest"),
        ("cohort", "layout", "{}", "id = 1", "its layout does not match its layout digest"),
        ("tag", "adapter_name", "other", "1 = 1", "tag other@stable: it points at a version of task"),
        ("encoding", "generator_id", 1, "id = 2", "encoding 2: its generator 1 is for another base model"),
        ("encoding", "size_bytes", 5, "1 = 1", "has 4 bytes, not 5"),
        ("encoding", "sha256", "not a digest", "1 = 1", "code of"),
    ],
)
def test_signed_changes_that_contradict_each_other_are_found(
    filled: Registry, rewrite: Callable[..., None], table: str, column: str, value: object, where: str, problem: str
) -> None:
    rewrite(table, column, value, where)
    assert any(problem in found for found in problems(filled)), problems(filled)


def test_a_row_that_is_gone_is_missed_by_those_that_refer_to_it(filled: Registry, raw: Raw) -> None:
    raw("DELETE FROM generator")
    assert any("table 'encoding': row 1 refers to a row of table 'generator'" in found for found in problems(filled))
    raw("DELETE FROM adapter WHERE name = 'task'")
    gone = "refers to a row of table 'adapter' that is gone"
    for table in ("adapter_file", "tag", "task_vector", "encoding"):
        assert any(f"table {table!r}: row" in found and gone in found for found in problems(filled))


def test_every_foreign_key_is_looked_at() -> None:
    tables = Base.metadata.sorted_tables
    assert set(REFERENCES) == {(t.name, k.parent.name, k.column.table.name) for t in tables for k in t.foreign_keys}
    assert set(TABLES) == {table.name for table in tables}


def test_every_table_has_its_key_first() -> None:
    """So that `every_row` is in the order of keys."""
    for table in Base.metadata.sorted_tables:
        assert set(table.primary_key.columns.keys()) <= set(table.columns.keys()[:2])


def test_a_missing_blob_is_found(filled: Registry) -> None:
    adapter = filled.adapter("task")
    weights = next(file for file in filled.files(adapter) if file.path == "adapter_model.safetensors")
    blob_damage.lose(filled.blobs, weights.sha256)
    (found,) = problems(filled)
    assert found == f"blob {weights.sha256}: adapter_model.safetensors of task@1 is missing from the blob store"


def test_a_flipped_byte_is_found_when_data_is_read(filled: Registry) -> None:
    encoding = filled.encoding(1)
    assert encoding is not None
    blob_damage.overwrite(filled.blobs, encoding.sha256, b"cod3")
    assert problems(filled) == []
    (found,) = problems(filled, read_data=True)
    assert found.startswith(f"blob {encoding.sha256}: code of other@1 hashes to")


def test_what_nothing_refers_to_is_information(filled: Registry) -> None:
    digest = filled.blobs.put_bytes(b"orphan")
    assert list(filled.check()) == [
        Finding(f"blob {digest}", "nothing refers to it", "It does no harm; it takes space.", "information")
    ]


def test_a_database_that_cannot_be_walked_is_one_finding(filled: Registry, home: Path, raw: Raw) -> None:
    raw("DROP TABLE tag")
    (found,) = problems(filled)
    assert "no such table: tag" in found or 'relation "tag" does not exist' in found


@pytest.mark.sqlite_alone
def test_damaged_pages_are_found(filled: Registry, home: Path) -> None:
    filled.close()
    path = home / "registry.sqlite"
    with closing(sqlite3.connect(path)) as raw:
        (page,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_tag_adapter_id'").fetchone()
        (page_bytes,) = raw.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * page_bytes : (page - 1) * page_bytes + 200] = b"\xa5" * 200
    path.write_bytes(data)
    with Registry.open(home, create=False) as registry:
        assert problems(registry)


def test_a_read_only_reader_will_do(filled: Registry, home: Path) -> None:
    with Reader(home) as reader:
        assert list(check(reader, read_data=True)) == []
