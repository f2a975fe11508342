"""Some space that a registry keeps back, so that on a full disk something can still be deleted.

To delete a file, rows are written first, and SQLite writes before it can free anything. Who deletes, or looks at what
could go, gives the reserve up while at work where there is no other room; it is kept again as soon as there is.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE_FILE = "reserve"
RESERVE_BYTES = 1 << 20
"""To let a thousand blobs go SQLite writes 0.4 MB, and to delete them 0.7 MB."""

PIECE_BYTES = 1 << 14


def reserve_bytes(home: Path) -> int:
    """How much is kept back now."""
    path = home / RESERVE_FILE
    return path.stat().st_size if path.exists() else 0


def keep_reserve(home: Path) -> None:
    """Keep a reserve, as much of it as there is room for."""
    path = home / RESERVE_FILE
    if path.exists() and path.stat().st_size >= RESERVE_BYTES:
        return
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.tell() < RESERVE_BYTES:
            file.write(os.urandom(PIECE_BYTES))  # zeros would take no space on a disk that packs them


def spend_reserve(home: Path) -> bool:
    """Give the reserve up, if there is no other room; whether it was, and has to be kept again."""
    path = home / RESERVE_FILE
    if shutil.disk_usage(home).free >= RESERVE_BYTES or not path.exists():
        return False
    path.unlink(missing_ok=True)
    return True
