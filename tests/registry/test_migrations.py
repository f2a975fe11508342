from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lorareg.registry import migrate as migrate_module
from lorareg.registry import revision as revision_module
from lorareg.registry import sqlite as sqlite_module
from lorareg.registry.backend import BASE_REVISION, backend_of
from lorareg.registry.errors import NewerSchemaError, RegistryError
from lorareg.registry.migrate import migrate, move_schema
from lorareg.registry.peft_format import read_folder
from lorareg.registry.revision import read_revision
from lorareg.registry.rows import SCHEMA_REVISION
from lorareg.registry.schema import Base
from lorareg.registry.sqlite import Sqlite
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]


def schema_of(home: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(home / "registry.sqlite")) as raw:
        tables = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'alembic_version'")
        return sorted(
            (name, repr(raw.execute(f"PRAGMA {kind}({name})").fetchall()))
            for (name,) in tables.fetchall()
            for kind in ("table_info", "index_list", "foreign_key_list")
        )


def test_the_constant_is_alembics_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(files("lorareg.migrations")))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION


def test_migrating_an_empty_database_gives_what_creating_one_gives(tmp_path: Path) -> None:
    created, migrated = tmp_path / "created", tmp_path / "migrated"
    Registry.open(created, create=True).close()
    Registry.open(migrated, create=True).close()
    move_schema(Sqlite(migrated), BASE_REVISION)
    assert schema_of(migrated) == []
    assert read_revision(Sqlite(migrated)) == BASE_REVISION
    move_schema(Sqlite(migrated), SCHEMA_REVISION)
    assert dict(schema_of(migrated)) == dict(schema_of(created))
    with Registry.open(migrated, create=False) as registry, registry.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_down_and_up_on_a_populated_database(registry: Registry, home: Path, make_adapter: MakeAdapter) -> None:
    folder = read_folder(make_adapter())
    registry.ingest(folder, name="task")
    registry.close()
    move_schema(backend_of(home), BASE_REVISION)
    move_schema(backend_of(home), SCHEMA_REVISION)
    with Registry.open(home, create=False) as again:
        assert again.adapters() == []
        assert again.ingest(folder, name="task").kind == "new"


def test_from_0001_with_rows(home: Path, make_adapter: MakeAdapter) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
        before = registry.adapters()
    move_schema(backend_of(home), "0001")
    assert Registry.migrate(home).found == "0001"
    with Registry.open(home, create=False) as registry:
        assert registry.adapters() == before
        assert list(registry.check(read_data=True)) == []
        registry.remember("base_model:tiny", "/models/tiny")
    move_schema(backend_of(home), "0001")
    move_schema(backend_of(home), SCHEMA_REVISION)
    with Registry.open(home, create=False) as registry:
        assert registry.adapters() == before
        assert registry.setting("base_model:tiny") is None


def test_from_0002_with_rows(home: Path, make_adapter: MakeAdapter) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
        before = registry.adapters()
        create_token(registry, "ci", "read", "*")
    move_schema(backend_of(home), "0002")
    assert Registry.migrate(home).found == "0002"
    with Registry.open(home, create=False) as registry:
        assert (registry.adapters(), registry.tokens()) == (before, [])
        create_token(registry, "ci", "read", "*")
        assert list(registry.check(read_data=True)) == []


LATER = f"{int(SCHEMA_REVISION) + 1:04}"


@pytest.fixture
def later_schema(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This lorareg knows a later schema; what moves to it is noted, not done."""
    moved: list[str] = []
    for module in (migrate_module, revision_module):
        monkeypatch.setattr(module, "SCHEMA_REVISION", LATER)

    def move(backend: object, revision: str) -> None:
        raw("UPDATE alembic_version SET version_num = ?", (revision,))
        moved.append(revision)

    monkeypatch.setattr(migrate_module, "move_schema", move)
    return moved


@pytest.mark.sqlite_alone
def test_opening_an_older_registry_backs_it_up_and_migrates_once(
    home: Path, make_adapter: MakeAdapter, request: pytest.FixtureRequest
) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    moved = request.getfixturevalue("later_schema")
    for _ in range(2):
        with Registry.open(home, create=False) as registry:
            assert registry.adapter("task").version == 1
    assert moved == [LATER]
    (backup,) = (home / "backups").iterdir()
    assert backup.name.startswith(f"registry-{SCHEMA_REVISION}-")
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT name FROM adapter").fetchall() == [("task",)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == (SCHEMA_REVISION,)


def test_migrate_says_what_it_did(home: Path, request: pytest.FixtureRequest) -> None:
    Registry.open(home, create=True).close()
    assert Registry.migrate(home) == migrate_module.Migration(SCHEMA_REVISION, SCHEMA_REVISION, None)
    request.getfixturevalue("later_schema")
    migration = Registry.migrate(home)
    assert (migration.found, migration.current) == (SCHEMA_REVISION, LATER)
    assert backend_of(home).name == "PostgreSQL" or migration.backup.is_file()  # type: ignore[union-attr]


@pytest.mark.sqlite_alone
def test_a_backup_that_cannot_be_written_stops_the_migration(
    home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry.open(home, create=True).close()
    moved = request.getfixturevalue("later_schema")
    monkeypatch.setattr(sqlite_module, "BACKUPS_FOLDER", "blocked")
    monkeypatch.setattr(sqlite_module, "datetime", FixedTime)
    (home / "blocked" / f"registry-{SCHEMA_REVISION}-then.sqlite.part").mkdir(parents=True)
    with pytest.raises(RegistryError, match="unable to open database"):
        Registry.open(home, create=False)
    assert moved == []


@pytest.mark.sqlite_alone
def test_what_a_killed_backup_left_goes(home: Path, request: pytest.FixtureRequest) -> None:
    Registry.open(home, create=True).close()
    (home / "backups").mkdir()
    (home / "backups" / "registry-0001-20260101T000000.000000Z.sqlite.part").write_bytes(b"")
    request.getfixturevalue("later_schema")
    backup = Registry.migrate(home).backup
    assert list((home / "backups").iterdir()) == [backup]


class FixedTime:
    @classmethod
    def now(cls, zone: object) -> FixedTime:
        return cls()

    def __format__(self, spec: str) -> str:
        return "then"


@pytest.mark.sqlite_alone
def test_a_migration_that_would_break_references_is_rolled_back(
    registry: Registry, home: Path, raw: Raw, make_adapter: MakeAdapter
) -> None:
    registry.ingest(read_folder(make_adapter()), name="task")
    registry.close()
    raw("DELETE FROM cohort")
    with pytest.raises(RegistryError, match="of table 'adapter' would refer to one that is gone"):
        move_schema(backend_of(home), SCHEMA_REVISION)
    with closing(sqlite3.connect(home / "registry.sqlite")) as raw:
        assert raw.execute("SELECT count(*) FROM adapter").fetchone() == (1,)


def test_a_newer_registry_is_refused_untouched(home: Path, raw: Raw) -> None:
    Registry.open(home, create=True).close()
    raw("UPDATE alembic_version SET version_num = ?", (LATER,))
    for act in (lambda: Registry.open(home, create=True), lambda: migrate(backend_of(home))):
        with pytest.raises(NewerSchemaError, match=f"written by a newer lorareg .schema {LATER}"):
            act()
    assert not (home / "backups").exists()


@pytest.mark.sqlite_alone
def test_the_lock_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    monkeypatch.setattr(sqlite_module, "LOCK_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(home / "open.lock", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryError, match="kept its database busy"):
            Registry.open(home, create=True)


@pytest.mark.sqlite_alone
def test_a_lock_that_cannot_be_made(home: Path) -> None:
    (home / "open.lock").mkdir(parents=True)
    with pytest.raises(RegistryError, match=r"unable to open database file.*permissions"):
        Registry.open(home, create=True)
