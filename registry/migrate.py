"""Bringing a registry's database to the schema that this lorareg knows.

A new database gets the current tables at once. An older one is copied (`VACUUM INTO`) before
Alembic touches it, and migrated in a single transaction with foreign keys off, because SQLite's
batch rebuild of a table would otherwise delete the rows that refer to it. One process at a time:
the lock is an exclusive transaction on an empty SQLite file, which dies with its process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import Connection

from lorareg.registry.database import create_registry_engine, writing
from lorareg.registry.errors import RegistryError
from lorareg.registry.files import sync_file, sync_folder
from lorareg.registry.home import BACKUPS_FOLDER, DATABASE_FILE, LOCK_FILE
from lorareg.registry.revision import BASE_REVISION, database_error, read_revision
from lorareg.registry.rows import SCHEMA_REVISION

LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did: from which schema to which, and where the copy from before it is."""

    found: str
    current: str
    backup: Path | None


def migrate(home: Path) -> Migration:
    """Create or upgrade the database at `home`; do nothing if it is current.

    Raises:
        RegistryError: the folder or the database cannot be written, or rows would lose what they refer to.
        NewerSchemaError: a newer lorareg wrote it.
    """
    with _locked(home):
        found = read_revision(home)
        if found == SCHEMA_REVISION:
            return Migration(found, found, None)
        if found == BASE_REVISION:
            _create(home)
            return Migration(found, SCHEMA_REVISION, None)
        backup = _back_up(home, found)
        move_schema(home, SCHEMA_REVISION)
        return Migration(found, SCHEMA_REVISION, backup)


def move_schema(home: Path, revision: str) -> None:
    """Run Alembic's migrations up or down to `revision`, in one transaction.

    Raises:
        RegistryError: the database refused, or a row would refer to one that is gone.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("lorareg.migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_registry_engine(home, foreign_keys=False)
    try:
        with writing(engine, home) as session:
            connection = session.connection()
            at = connection.scalar(text("SELECT max(version_num) FROM alembic_version")) or BASE_REVISION
            down = revision == BASE_REVISION or (at != BASE_REVISION and revision < at)
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
            _check_references(home, connection)
    finally:
        engine.dispose()


def _check_references(home: Path, connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).first()
    if broken:
        raise RegistryError(
            home=home,
            reason=f"after migrating, row {broken[1]} of table {broken[0]!r} would refer to one that is gone",
            remedy="Nothing was changed; run `lorareg check`.",
        )


def _create(home: Path) -> None:
    from lorareg.registry.schema import Base

    engine = create_registry_engine(home)
    try:
        with engine.connect() as connection:
            connection.connection.execute("PRAGMA journal_mode = WAL")
        with writing(engine, home) as session:
            connection = session.connection()
            Base.metadata.create_all(connection)
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})
    finally:
        engine.dispose()
    sync_folder(home)


def _back_up(home: Path, revision: str) -> Path:
    folder = home / BACKUPS_FOLDER
    folder.mkdir(exist_ok=True)
    backup = folder / f"registry-{revision}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.sqlite"
    try:
        with closing(sqlite3.connect(home / DATABASE_FILE)) as connection:
            connection.execute("VACUUM INTO ?", (str(backup),))
    except sqlite3.Error as error:
        raise database_error(home, error) from error
    sync_file(backup)
    sync_folder(folder)
    return backup


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RegistryError(
            home=home, reason="it is not a folder", remedy="Choose another folder with --home."
        ) from error
    try:
        lock = sqlite3.connect(home / LOCK_FILE, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    except sqlite3.Error as error:
        raise database_error(home, error) from error
    with closing(lock):
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise database_error(home, error) from error
        yield
