from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry import reader as reader_module
from lorareg.registry.check import check
from lorareg.registry.errors import (
    IntegrityError,
    NewerSchemaError,
    RegistryError,
    RegistryRefusedError,
    UnknownAdapterError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.rows import SCHEMA_REVISION
from lorareg.registry.sqlite import database_error
from lorareg.registry.store import Registry

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]


@pytest.fixture
def filled(registry: Registry, make_adapter: MakeAdapter) -> Registry:
    adapter = registry.ingest(read_folder(make_adapter()), name="man-nl").adapter
    registry.put_task_vector(adapter.id, "text:v1", b"\0\1")
    registry.tag(adapter, "stable")
    return registry


def test_both_readers_say_the_same(filled: Registry, home: Path) -> None:
    with Reader(home) as reader:
        adapter = reader.adapter("man-nl@stable")
        assert adapter == filled.adapter("man-nl") == reader.adapter("man-nl@1")
        assert reader.files(adapter) == filled.files(adapter)
        assert reader.cohort(adapter.cohort_id) == filled.cohorts()[0]
        assert reader.task_vector(adapter.id, "text:v1") == filled.task_vector(adapter.id, "text:v1")
        assert reader.encoding(adapter.id) is None
        assert b"Continue" in reader.read_file(adapter, "README.md")


def test_an_unknown_task_suggests_near_names(filled: Registry, home: Path) -> None:
    with Reader(home) as reader, pytest.raises(UnknownAdapterError, match="Did you mean 'man-nl'") as caught:
        reader.adapter("man-nn")
    assert caught.value.fields["hint"] == " Did you mean 'man-nl'?"


def test_removed_adapters_do_not_resolve(filled: Registry, home: Path) -> None:
    filled.remove(filled.adapter("man-nl"))
    for ref in ("man-nl", "man-nl@1", "man-nl@stable"):
        with Reader(home) as reader, pytest.raises(UnknownAdapterError, match="It was removed"):
            reader.adapter(ref)


def test_it_cannot_write(filled: Registry, home: Path) -> None:
    with (
        Reader(home) as reader,
        pytest.raises(RegistryError, match=r"readonly database.*permissions|read-only transaction"),
    ):
        reader.fetch("DELETE FROM adapter")


def test_tampering_is_noticed(filled: Registry, home: Path, raw: Raw) -> None:
    raw("UPDATE adapter SET version = 2")
    with Reader(home) as reader, pytest.raises(IntegrityError, match="Row 1 of table 'adapter'"):
        reader.adapter("man-nl")


def test_no_registry_here(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no registry here.*lorareg ingest"):
        Reader(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused(filled: Registry, home: Path, raw: Raw) -> None:
    raw("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerSchemaError, match=f"schema 9999, this one knows {SCHEMA_REVISION}"):
        Reader(home)


@pytest.mark.sqlite_alone
def test_an_older_schema_is_migrated_first(home: Path) -> None:
    home.mkdir()
    (home / "registry.sqlite").touch()
    with Reader(home) as reader:
        assert reader.adapters() == []


@pytest.mark.sqlite_alone
def test_read_only_media(filled: Registry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.close()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Reader(home) as reader:
        assert reader.adapter("man-nl").version == 1
    assert not (home / "registry.sqlite-shm").exists()


@pytest.mark.sqlite_alone
def test_a_database_that_cannot_be_opened(filled: Registry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(reader_module, "is_current", lambda home: True)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(RegistryError, match=r"unable to open.*permissions"):
        Reader(home)


@pytest.mark.sqlite_alone
def test_a_journal_that_a_killed_writer_left_is_rolled_back(filled: Registry, home: Path) -> None:
    filled.close()
    program = (
        "import os, sqlite3, sys\n"
        "writer = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for told in ('journal_mode = DELETE', 'cache_size = 1', 'cache_spill = 1'): writer.execute(f'PRAGMA {told}')\n"
        "writer.execute('BEGIN'); writer.execute('DELETE FROM tag'); writer.execute('DELETE FROM adapter')\n"
        "writer.execute('CREATE TABLE much (x)')\n"
        "for _ in range(100): writer.execute('INSERT INTO much VALUES (randomblob(5000))')\n"
        "os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(home / "registry.sqlite")], check=False)
    assert killed.returncode == 9
    assert (home / "registry.sqlite-journal").stat().st_size > 0
    with Reader(home) as reader:
        assert reader.adapter("man-nl@stable").version == 1


@pytest.mark.sqlite_alone
def test_where_nothing_can_be_shared_each_question_has_a_connection_of_its_own(
    filled: Registry, home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with filled.reading():  # or the last connection takes the WAL into the database
        copy.mkdir()
        for name in ("registry.sqlite", "registry.sqlite-wal"):
            (copy / name).write_bytes((home / name).read_bytes())
    assert (copy / "registry.sqlite-wal").stat().st_size > 0
    (copy / "registry.sqlite-shm").mkdir()  # as on a full disk, where that file cannot be made
    with Reader(copy) as reader, Reader(copy) as another:
        assert reader.adapter("man-nl@stable").version == 1
        assert another.adapter("man-nl").version == 1
        assert list(check(reader, read_data=False)) != []  # its blobs were not copied


def test_neither_torch_nor_sqlalchemy_nor_numpy_is_imported(filled: Registry, home: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lorareg.registry.reader import Reader\n"
        "reader = Reader(Path(sys.argv[1])); print(len(reader.read_file(reader.adapter('man-nl'), 'README.md')))\n"
        "print(sorted({'torch', 'sqlalchemy', 'alembic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "[]"


def test_what_a_full_disk_makes_sqlite_say(home: Path) -> None:
    error = database_error(home, sqlite3.OperationalError("disk I/O error"))
    assert isinstance(error, RegistryRefusedError)
    assert "the database says: disk I/O error. The disk may be full or failing: free some space" in str(error)


@pytest.mark.sqlite_alone
def test_what_sqlite_says_of_damage_need_not_be_text(filled: Registry, home: Path) -> None:
    """It quotes the name of a table that has a flipped bit."""
    filled.close()
    path = home / "registry.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes().replace(b"tabletagtag", b"tablet\xe5gtag"))
    for act in (lambda: Reader(home), lambda: Registry.open(home, create=False)):
        with pytest.raises(RegistryError, match=r"the database says: .*Run `lorareg check`"):
            act()
