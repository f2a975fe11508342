"""Pages of tasks: the same from both readers, in as few queries as there are pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry import lookup as lookup_module
from lorareg.registry.damage import Damage
from lorareg.registry.errors import IntegrityError, LoraregError
from lorareg.registry.listings import TaskBytes
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.schema import EncodingRow
from lorareg.registry.store import Registry
from lorareg.registry.types import NewEncoding


@pytest.fixture
def shelf(registry: Registry, make_adapter: Callable[..., Path]) -> Registry:
    """Tasks a, b (three versions, the newest removed; the first encoded twice) and c (removed)."""
    folders = [read_folder(make_adapter(f"of-{seed}", seed=seed)) for seed in range(3)]
    for name in ("c", "a", "b"):
        registry.ingest(folders[0], name=name)
    for folder in folders[1:]:
        registry.ingest(folder, name="b")
    for ref in ("c", "b@3"):
        registry.remove(registry.adapter(ref))
    for code in (b"older", b"code"):
        sha256, adapter = registry.blobs.put_bytes(code), registry.adapter("b@1")
        registry.record_encoding(
            NewEncoding(adapter.id, None, "fake-1", "residual", sha256, len(code), "0" * 64, 900, {}, {})
        )
    registry.tag(registry.adapter("b@1"), "stable")
    return registry


def test_names_are_the_keys_of_pages(shelf: Registry) -> None:
    assert shelf.names() == ["a", "b"]
    assert shelf.names(limit=1) == ["a"]
    assert shelf.names("a", 5) == ["b"]
    assert shelf.names("b") == []
    assert shelf.names(include_removed=True) == ["a", "b", "c"]


def test_the_newest_of_each_name_and_every_version_of_one(shelf: Registry) -> None:
    newest = shelf.newest(["b", "a", "c", "nobody", "b"])
    assert [(one.adapter.ref, one.encoding) for one in newest] == [("a@1", None), ("b@2", None)]
    assert newest[0].stored_bytes == newest[0].adapter.original_bytes
    first, second = shelf.versions("b")
    assert (first.adapter.ref, first.stored_bytes, second.adapter.ref) == ("b@1", 4, "b@2")
    assert first.encoding == shelf.encoding(first.adapter.id)
    assert [tag.label for tag in shelf.labels("b")] == ["stable"]


def test_cohorts_are_counted_without_what_is_removed(shelf: Registry) -> None:
    assert shelf.cohort_counts() == {1: (3, 1)}
    shelf.remove(shelf.adapter("b@1"))
    assert shelf.cohort_counts() == {1: (2, 0)}


def test_what_each_name_takes(shelf: Registry) -> None:
    size = shelf.adapter("a").original_bytes
    assert shelf.task_bytes() == [
        TaskBytes("a", 1, None, 1, size, size),
        TaskBytes("b", 1, None, 2, 2 * size, size + 4),
    ]


def test_both_readers_answer_alike(shelf: Registry) -> None:
    with Reader(shelf.home) as reader:
        assert reader.names("a", 5, include_removed=True) == shelf.names("a", 5, include_removed=True)
        assert reader.newest(["a", "b"]) == shelf.newest(["a", "b"])
        assert reader.versions("b") == shelf.versions("b")
        assert reader.task_bytes() == shelf.task_bytes()
        assert reader.labels("b") == shelf.labels("b")
        assert reader.generators() == shelf.generators() == []
        ids = [adapter.id for adapter in shelf.adapters()]
        shelf.put_task_vector(ids[1], "text:test", b"\1")
        assert set(reader.task_vectors_of(ids, "text:test")) == {ids[1]}
        assert reader.task_vectors_of(ids, "text:test") == shelf.task_vectors_of(ids, "text:test")
        assert reader.listed([*ids[::-1], 99]) == shelf.listed(ids[::-1])
        assert [one.adapter.id for one in reader.listed(ids[::-1])] == ids[::-1]
        assert list(reader.texts()) == list(shelf.texts())
        assert [task.name for tasks in reader.texts() for task in tasks] == ["a", "b"]
        for every in (False, True):
            found = [list(one.pages(Damage(), cohort_id=1, include_history=every)) for one in (reader, shelf)]
            assert found[0] == found[1]
            assert [len(page) for page in found[0]] == [5 if every else 2]


def test_a_page_verifies_both_rows_of_each_line(shelf: Registry) -> None:
    from sqlalchemy import update

    with shelf.writing() as session:
        session.execute(update(EncodingRow).values(size_bytes=5))
    with pytest.raises(IntegrityError, match="of table 'encoding' is damaged"):
        shelf.versions("b")


def test_an_adapter_whose_rows_of_files_are_lost(shelf: Registry, raw: Callable[..., Any]) -> None:
    adapter = shelf.adapter("a")
    raw("DELETE FROM adapter_file WHERE path = 'adapter_model.safetensors'")
    for ask in (shelf.files, shelf.original, lambda one: shelf.read_file(one, "adapter_config.json")):
        with pytest.raises(IntegrityError, match=r"Adapter a@1 is damaged.*no row of adapter_model\.safetensors"):
            ask(adapter)


@pytest.mark.sqlite_alone
def test_the_newest_version_is_looked_up_by_two_indexes(shelf: Registry) -> None:
    plan = " ".join(row["detail"] for row in shelf.fetch(f"EXPLAIN QUERY PLAN {lookup_module._NEWEST}", name="b"))
    assert "uq_adapter_name_version" in plan or "sqlite_autoindex_adapter" in plan
    assert "ix_adapter_cohort_id_name" in plan


@pytest.mark.sqlite_alone
def test_an_index_that_lost_the_newest_version(shelf: Registry, home: Path) -> None:
    """Neither its older version nor another task's is given out for it."""
    shelf.close()
    path = home / "registry.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        roots = dict(
            connection.execute("SELECT name, rootpage FROM sqlite_master WHERE tbl_name = 'adapter'").fetchall()
        )
    whole = path.read_bytes()
    refused = 0
    for page in (roots[name] for name in roots if name != "adapter"):
        for bit in range(8 * 3900, 8 * 4096, 7):
            data = bytearray(whole)
            data[(page - 1) * 4096 + bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            with Reader(home) as reader:
                try:
                    assert reader.adapter("b").ref == "b@2"
                except LoraregError:
                    refused += 1
    assert refused > 15


def test_a_row_that_was_not_asked_for(shelf: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shelf.fetch("SELECT * FROM tag")
    monkeypatch.setattr(shelf, "fetch", lambda sql, **parameters: rows)
    with pytest.raises(IntegrityError, match="An index of table 'tag' is damaged: expected the row asked for"):
        shelf.labels("a")


def test_a_list_is_whole_or_none(shelf: Registry, raw: Callable[..., Any]) -> None:
    raw("DELETE FROM adapter WHERE name = 'c'")
    with pytest.raises(IntegrityError, match=r"Table 'adapter' is damaged: expected 5 rows, .* found 4"):
        shelf.adapters()
