"""Which schema a registry's database has, found without SQLAlchemy or Alembic."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from lorareg.registry.errors import NewerSchemaError, RegistryError, RegistryRefusedError
from lorareg.registry.home import BUSY_TIMEOUT_S, DATABASE_FILE
from lorareg.registry.rows import SCHEMA_REVISION

BASE_REVISION = "base"
"""What Alembic calls a database with no tables yet."""


def is_current(home: Path) -> bool:
    """Whether the registry at `home` has the schema that this lorareg knows.

    Raises:
        RegistryError: there is no registry, or its database cannot be read.
        NewerSchemaError: a newer lorareg wrote it.
    """
    if not (home / DATABASE_FILE).is_file():
        raise RegistryError(
            home=home,
            reason="there is no registry here",
            remedy="`lorareg ingest PATH` makes one; --home names another.",
        )
    return read_revision(home) == SCHEMA_REVISION


def read_revision(home: Path) -> str:
    """The schema revision of the database at `home`, `BASE_REVISION` if it has no tables.

    Raises:
        RegistryError: its database cannot be read, or is not a registry's.
        NewerSchemaError: a newer lorareg wrote it.
    """
    if not (home / DATABASE_FILE).exists():
        return BASE_REVISION
    try:
        with closing(connect_read_only(home)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            found = (
                "alembic_version" in tables and connection.execute("SELECT version_num FROM alembic_version").fetchone()
            )
    except sqlite3.Error as error:
        raise database_error(home, error) from error
    if tables - {"alembic_version"} and not found:
        raise RegistryError(
            home=home, reason=f"{DATABASE_FILE} is not a lorareg database", remedy="Choose another folder with --home."
        )
    revision = str(found[0]) if found else BASE_REVISION
    if revision != BASE_REVISION and revision > SCHEMA_REVISION:
        raise NewerSchemaError(home=home, found=revision, expected=SCHEMA_REVISION)
    return revision


def connect_read_only(home: Path) -> sqlite3.Connection:
    """Open the database at `home` without the means to change it; read-only media will do.

    Threads may hand the connection on; one at a time uses it.

    Raises:
        RegistryError: it cannot be opened.
    """
    path = (home / DATABASE_FILE).absolute()
    uri = f"file:{quote(path.as_posix())}?mode=ro"
    if not os.access(home, os.W_OK) and not path.with_name(f"{DATABASE_FILE}-wal").exists():
        # WAL needs a shared-memory file beside the database, which read-only media cannot be given.
        uri += "&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    except sqlite3.Error as error:
        raise database_error(home, error) from error
    connection.row_factory = sqlite3.Row
    return connection


def database_error(home: Path, error: BaseException) -> RegistryError:
    """Say what the database said, and what to do about it."""
    reason, kind = str(error), RegistryError
    if "locked" in reason or "busy" in reason:
        remedy = f"Another process has been writing for {BUSY_TIMEOUT_S:.0f} s; try again when it is done."
    elif "disk I/O" in reason:
        remedy, kind = (
            "The disk may be full or failing: free some space, then run `lorareg check`.",
            RegistryRefusedError,
        )
    elif "full" in reason:
        remedy, kind = "Free some space; nothing was half written.", RegistryRefusedError
    elif "readonly" in reason or "unable to open" in reason:
        remedy, kind = "Check the permissions of the folder and the files in it.", RegistryRefusedError
    else:
        remedy = "Run `lorareg check`; copies from before each migration are in its backups folder."
    return kind(home=home, reason=f"the database says: {reason}", remedy=remedy)
