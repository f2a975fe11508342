"""Where a registry lives: one folder, and the names in it."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "LORAREG_HOME"
DEFAULT_HOME = ".lorareg"
DATABASE_VARIABLE = "LORAREG_DATABASE"
STORE = "store"
"""What a registry remembers the URL of its blobs under, where they are not in its folder."""

IDENTITY = "registry_id"
"""What a registry remembers its own number under, by which a store knows whose it is; the database's copies have it."""

MOVED = "rows_copied_to"
"""What a registry remembers the kind of database under that its rows were copied to."""

STORE_VARIABLE = "LORAREG_STORE"
READ_CACHE_VARIABLE = "LORAREG_STORE_CACHE_BYTES"
READ_CACHE_BYTES = 2_000_000_000
DATABASE_FILE = "registry.sqlite"
HEAD_FILE = "registry.head"
"""Has the number of the last change that was acknowledged in `registry.sqlite`."""

POSTGRES_FILE = "registry.postgresql"
"""Has the number of the PostgreSQL database whose blobs are in the folder."""

BLOBS_FOLDER = "blobs"
BACKUPS_FOLDER = "backups"
SERVING_FOLDER = "serving"
LOCK_FILE = "open.lock"
WORK_FILE = "work.lock"
BUSY_TIMEOUT_S = 30.0
LOCK_TIMEOUT_S = 120.0
"""For its turn to migrate, which may take longer than to write."""


def resolve_home(home: Path | None = None) -> Path:
    """The folder asked for, else the one `LORAREG_HOME` names, else `./.lorareg`."""
    return home or Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)
