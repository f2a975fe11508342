"""Bringing a registry's database to the schema that this lorareg knows, one process at a time.

A new database gets the current tables at once. An older one is copied first, where the database can be, and migrated by
Alembic in a single transaction.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sqlalchemy import text

from lorareg.registry.backend import BASE_REVISION, Backend
from lorareg.registry.database import writing
from lorareg.registry.home import BLOBS_FOLDER, IDENTITY, STORE
from lorareg.registry.revision import read_revision
from lorareg.registry.rows import SCHEMA_REVISION
from lorareg.registry.types import canonical_json


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did: from which schema to which, and where the copy from before it is, if there is one."""

    found: str
    current: str
    backup: Path | None


def migrate(backend: Backend, store: str | None = None) -> Migration:
    """Create or upgrade a registry's database; do nothing if it is current.

    One that is created remembers `store` as the URL of its blobs, in the transaction that makes its tables: another may
    not come between and put blobs elsewhere.

    Raises:
        RegistryError: the folder or the database cannot be written, or rows would lose what they refer to.
        NewerSchemaError: a newer lorareg wrote it.
        StoreError: `store` has another registry's blobs.
    """
    with backend.migrating():
        found = read_revision(backend)
        if found == SCHEMA_REVISION:
            return Migration(found, found, None)
        if found == BASE_REVISION:
            _create(backend, store)
            return Migration(found, SCHEMA_REVISION, None)
        backup = backend.back_up(found)
        move_schema(backend, SCHEMA_REVISION)
        return Migration(found, SCHEMA_REVISION, backup)


def move_schema(backend: Backend, revision: str) -> None:
    """Run Alembic's migrations up or down to `revision`, in one transaction.

    Raises:
        RegistryError: the database refused, or a row would refer to one that is gone.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("lorareg.migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    backend.acknowledge(None)
    engine = backend.engine(migrates=True)
    try:
        with writing(engine, backend) as session:
            connection = session.connection()
            at = connection.scalar(text("SELECT max(version_num) FROM alembic_version")) or BASE_REVISION
            down = revision == BASE_REVISION or (at != BASE_REVISION and revision < at)
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)
            backend.expect_references(connection)
    finally:
        engine.dispose()


def _create(backend: Backend, store: str | None) -> None:
    from lorareg.registry.blob_stores import expect_free, store_at
    from lorareg.registry.ingest import now
    from lorareg.registry.schema import Base, SettingRow

    if store is not None:
        expect_free(store_at(store, backend.home / BLOBS_FOLDER))
    backend.prepare()
    engine = backend.engine()
    try:
        with writing(engine, backend) as session:
            connection = session.connection()
            Base.metadata.create_all(connection)
            connection.execute(
                text("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            )
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})
            backend.complete(connection)
            if store is not None:
                for name, value in ((STORE, store), (IDENTITY, uuid.uuid4().hex)):
                    session.add(SettingRow(name=name, value=canonical_json(value), created_at=now()))
    finally:
        engine.dispose()
