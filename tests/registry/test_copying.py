"""Rows go from SQLite to PostgreSQL whole or not at all, and a folder never has two databases."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")

from lorareg.registry import copying
from lorareg.registry.backend import backend_at
from lorareg.registry.errors import RowsMovedError
from lorareg.registry.migrate import migrate
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.sqlite import Sqlite
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, sweep

MakeAdapter = Callable[..., Path]
Run = Callable[..., Any]
Raw = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def home(tmp_path: Path, empty_postgres: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    return tmp_path / "home"


@pytest.fixture
def there(tmp_path: Path, empty_postgres: str, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry in SQLite with three adapters; LORAREG_DATABASE is not set."""
    monkeypatch.delenv("LORAREG_DATABASE", raising=False)
    with Registry.open(tmp_path / "there", create=True) as registry:
        for seed in range(3):
            registry.ingest(read_folder(make_adapter(f"a{seed}", seed=seed)), name=f"task-{seed}")
        registry.tag(registry.adapter("task-1"), "stable")
    return tmp_path / "there"


def test_moving_there(
    there: Path, empty_postgres: str, make_adapter: MakeAdapter, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry.open(there, create=False) as registry:
        before = registry.adapters()
    moved = run("migrate", "--to", empty_postgres, "--home", there, "--json")
    assert (moved.exit_code, moved.data["database"]) == (0, "PostgreSQL")
    assert Path(moved.data["rows_before"]).parent == there / "backups"
    assert not list(there.glob("registry.sqlite*"))
    for forgotten in (("list",), ("gc", "--apply"), ("migrate", "--to", empty_postgres)):
        said = run(*forgotten, "--home", there)
        assert said.exit_code == 20
        assert "its rows are in PostgreSQL. Set LORAREG_DATABASE" in said.err
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    with Registry.open(there, create=False) as registry:
        assert registry.adapters() == before
        assert registry.adapter("task-1@stable") == before[1]
        assert not list(registry.check(read_data=True))
        assert registry.ingest(read_folder(make_adapter("new", seed=9)), name="new").kind == "new"
        assert delete_orphans(registry, timedelta(0)) == []
    assert "its rows are in PostgreSQL already" in run("migrate", "--to", empty_postgres, "--home", there).err


def test_a_file_that_was_brought_back_deletes_nothing(
    there: Path, empty_postgres: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = run("migrate", "--to", empty_postgres, "--home", there, "--json")
    shutil.copy(moved.data["rows_before"], there / "registry.sqlite")
    with Registry.open(there, create=False) as left:
        left.blobs.put_bytes(b"nobody's")
        for write in (
            lambda: delete_orphans(left, timedelta(0)),
            lambda: sweep(left, timedelta(0)),
            lambda: left.tag(left.adapter("task-2"), "late"),
        ):
            with pytest.raises(RowsMovedError, match=r"were copied to PostgreSQL.*Set LORAREG_DATABASE"):
                write()
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    assert "its rows are in its registry.sqlite" in run("list", "--home", there).err


def test_a_file_that_was_brought_back_can_count_again(
    there: Path, empty_postgres: str, make_postgres: Callable[[], str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the other database is no more."""
    assert "its rows are in SQLite already" in run("migrate", "--to", "sqlite", "--home", there).err
    moved = run("migrate", "--to", empty_postgres, "--home", there, "--json")
    shutil.copy(moved.data["rows_before"], there / "registry.sqlite")
    assert "`lorareg migrate --to sqlite`, where they are" in run("tag", "task-2", "late", "--home", there).err
    again = run("migrate", "--to", "sqlite", "--home", there, "--json")
    assert (again.data["database"], again.data["rows"]) == ("SQLite", moved.data["rows"])
    for words in (("tag", "task-2", "late"), ("gc", "--apply"), ("check", "--read-data")):
        assert run(*words, "--home", there).exit_code == 0
    anew = make_postgres()
    assert run("migrate", "--to", anew, "--home", there).exit_code == 0
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)  # the one before
    assert "its blobs are not those of the database" in run("gc", "--apply", "--home", there).err
    monkeypatch.setenv("LORAREG_DATABASE", anew)
    assert run("show", "task-2@late", "--home", there).exit_code == 0


def test_moving_there_and_back(
    there: Path, empty_postgres: str, make_adapter: MakeAdapter, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("migrate", "--to", empty_postgres, "--home", there).exit_code == 0
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    assert run("ingest", make_adapter("new", seed=9), "--name", "new", "--home", there).exit_code == 0
    back = run("migrate", "--to", "sqlite", "--home", there)
    assert back.exit_code == 0
    assert "rows are in SQLite, and count there: unset LORAREG_DATABASE" in back.out
    assert not (there / "registry.postgresql").exists()
    assert not list(there.glob("moving-*"))
    assert "its rows are in its registry.sqlite" in run("list", "--home", there).err
    monkeypatch.delenv("LORAREG_DATABASE")
    with Registry.open(there, create=False) as registry:
        assert registry.names() == ["new", "task-0", "task-1", "task-2"]
        assert registry.adapter("task-1@stable").version == 1
        assert delete_orphans(registry, timedelta(0)) == []
        assert list(registry.check(read_data=True)) == []
        registry.tag(registry.adapter("new"), "stable")


def test_who_goes_on_with_postgresql_after_the_way_back(
    home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Run
) -> None:
    """Another machine, whose blobs are in the same store: each would delete what the other came to name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAREG_STORE", f"file://{tmp_path}/blobs")
        Registry.open(home, create=True).close()
    with Registry.open(tmp_path / "another-machine", create=False) as other:
        assert run("migrate", "--to", "sqlite", "--home", home).exit_code == 0
        match = r"were copied to SQLite.*Unset LORAREG_DATABASE.*migrate --to URL`, where they are"
        with pytest.raises(RowsMovedError, match=match):
            other.ingest(read_folder(make_adapter()), name="task")
        url = os.environ["LORAREG_DATABASE"]
        assert run("migrate", "--to", url, "--home", tmp_path / "another-machine").exit_code == 0
        assert other.ingest(read_folder(make_adapter()), name="task").kind == "new"
    assert "already. pg_dump" in run("migrate", "--to", url, "--home", tmp_path / "another-machine").err


@pytest.mark.parametrize("stopped_at", ["_fill", "finished", "rename"])
def test_a_way_back_that_was_stopped_goes_on(
    there: Path, empty_postgres: str, run: Run, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    assert run("migrate", "--to", empty_postgres, "--home", there).exit_code == 0
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    with Registry.open(there, create=False) as registry, pytest.MonkeyPatch.context() as patch:
        before = registry.adapters()
        patch.setattr({"_fill": copying, "finished": Sqlite, "rename": Path}[stopped_at], stopped_at, stop)
        assert run("migrate", "--to", "sqlite", "--home", there).exit_code == 130
        assert registry.adapters() == before
    assert not (there / "registry.sqlite").exists()
    assert run("migrate", "--to", "sqlite", "--home", there).exit_code == 0
    monkeypatch.delenv("LORAREG_DATABASE")
    with Registry.open(there, create=False) as registry:
        assert registry.adapters() == before
        registry.tag(registry.adapter("task-2"), "late")


@pytest.mark.parametrize("stopped_at", ["_fill", "copy_rows", "retire"])
def test_a_move_that_was_stopped_goes_on(
    there: Path, empty_postgres: str, run: Run, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with Registry.open(there, create=False) as registry, pytest.MonkeyPatch.context() as patch:
        before = registry.adapters()
        patch.setattr(Sqlite if stopped_at == "retire" else copying, stopped_at, stop)
        assert run("migrate", "--to", empty_postgres, "--home", there).exit_code == 130
        assert registry.adapters() == before  # its rows are still here, and are the ones that count
    assert run("migrate", "--to", empty_postgres, "--home", there).exit_code == 0
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    with Reader(there) as reader:
        assert reader.adapters() == before


def test_nothing_is_written_where_rows_do_not_count(
    there: Path, empty_postgres: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that was stopped after they were copied: what came then would be lost."""

    def busy(backend: Sqlite) -> None:
        raise backend.error(sqlite3.OperationalError("database is locked"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sqlite, "finished", busy)
        assert "database is locked" in run("migrate", "--to", empty_postgres, "--home", there).err
    with Registry.open(there, create=False) as registry, pytest.raises(RowsMovedError, match="run it again"):
        registry.tag(registry.adapter("task-2"), "late")
    assert run("migrate", "--to", empty_postgres, "--home", there).exit_code == 0
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    assert run("check", "--home", there).exit_code == 0


def test_other_rows_are_not_mixed(there: Path, empty_postgres: str, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAREG_DATABASE", empty_postgres)
        with Registry.open(there.parent / "other", create=True) as registry:
            registry.remember("base_model:tiny", "/models/tiny")
    moved = run("migrate", "--to", empty_postgres, "--home", there)
    assert moved.exit_code == 20
    with Registry.open(there, create=False) as registry:
        registry.tag(registry.adapter("task-2"), "late")


def test_what_comes_out_otherwise_than_it_went_in_is_not_kept(
    there: Path, empty_postgres: str, run: Run, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(backend_at(empty_postgres, there))
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    body = "'BEGIN NEW.label := upper(NEW.label); RETURN NEW; END'"
    raw(f"CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS {body}")
    raw("CREATE TRIGGER shout BEFORE INSERT ON tag FOR EACH ROW EXECUTE FUNCTION shout()")
    monkeypatch.delenv("LORAREG_DATABASE")
    moved = run("migrate", "--to", empty_postgres, "--home", there)
    assert moved.exit_code == 22
    assert "of table 'tag' is damaged" in moved.err
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    assert raw("SELECT * FROM adapter") == []


def test_rows_that_are_lost_on_the_way_are_missed(
    there: Path, empty_postgres: str, run: Run, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(backend_at(empty_postgres, there))
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    raw("CREATE RULE swallow AS ON INSERT TO tag DO INSTEAD NOTHING")
    monkeypatch.delenv("LORAREG_DATABASE")
    moved = run("migrate", "--to", empty_postgres, "--home", there)
    assert moved.exit_code == 22
    assert "The copy of table 'tag' is damaged" in moved.err


def test_one_folder_has_one_database(
    home: Path,
    tmp_path: Path,
    make_postgres: Callable[[], str],
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    """What one database does not name is not deleted because somebody named the other."""
    url = os.environ["LORAREG_DATABASE"]
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    sweeping = ("gc", "--apply", "--grace-days", "0")
    monkeypatch.setenv("LORAREG_DATABASE", make_postgres())
    for words in (("ingest", make_adapter("b", seed=2)), sweeping):  # an empty database, by mistake
        assert run(*words, "--home", home).exit_code == 20
    Registry.open(tmp_path / "others", create=True).close()
    for words in (("ingest", make_adapter("b", seed=2)), sweeping, ("check",)):  # another registry's
        said = run(*words, "--home", home)
        assert said.exit_code == 20
        assert "its blobs are not those of the database that LORAREG_DATABASE names" in said.err
    monkeypatch.delenv("LORAREG_DATABASE")
    for words in (("ingest", make_adapter("b", seed=2)), sweeping):  # none, by mistake
        said = run(*words, "--home", home)
        assert said.exit_code == 20
        assert "its rows are in PostgreSQL" in said.err
    Registry.open(tmp_path / "sqlite", create=True).close()
    monkeypatch.setenv("LORAREG_DATABASE", url)
    assert "its rows are in its registry.sqlite" in run("list", "--home", tmp_path / "sqlite").err
    with Registry.open(home, create=False) as registry:
        assert list(registry.check(read_data=True)) == []


def test_a_folder_from_a_copy_is_told_its_database(home: Path, make_adapter: MakeAdapter, run: Run) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    number = (home / "registry.postgresql").read_text()
    (home / "registry.postgresql").unlink()
    said = run("check", "--home", home)
    assert "are in another folder, that of the machine where the registry was made" in said.err
    assert said.exit_code == 20
    assert f"needs {number.strip()} in its file registry.postgresql" in said.err
    (home / "registry.postgresql").write_text(number)
    assert run("check", "--home", home).exit_code == 0


def test_another_machine_without_a_store(home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Run) -> None:
    """Its rows would have blobs here and there, and no machine all of them."""
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    there = tmp_path / "another-machine"
    second = make_adapter("b", seed=2)
    for words in (("ingest", second), ("check",), ("gc",), ("materialize", "task", "-o", tmp_path / "out")):
        said = run(*words, "--home", there)
        assert said.exit_code == 20, words
        assert "run `lorareg migrate --store s3://bucket/prefix`; or share that folder" in said.err
    assert run("migrate", "--store", f"file://{tmp_path}/shared", "--home", home).exit_code == 0
    for words in (("ingest", second), ("check", "--read-data"), ("materialize", "task", "-o", tmp_path / "out")):
        assert run(*words, "--home", there).exit_code == 0, words
    assert run("check", "--read-data", "--home", home).exit_code == 0


def test_a_database_from_a_dump_without_comments(home: Path, make_adapter: MakeAdapter, run: Run, raw: Raw) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    number = (home / "registry.postgresql").read_text().strip()
    raw("COMMENT ON TABLE alembic_version IS NULL")
    for words in (("gc", "--apply"), ("ingest", make_adapter("b", seed=2))):
        said = run(*words, "--home", home)
        assert said.exit_code == 20
        assert f"Have the database run: COMMENT ON TABLE alembic_version IS '{number}'" in said.err
    raw(f"COMMENT ON TABLE alembic_version IS '{number}'")
    assert run("check", "--home", home).exit_code == 0
