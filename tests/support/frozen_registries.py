"""The registries of tests/torture/frozen, unpacked."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parents[1] / "torture" / "frozen"
NAMES = sorted(path.name.removesuffix(".tar.xz") for path in FROZEN.glob("*.tar.xz"))


def known(name: str) -> dict[str, Any]:
    """What its lorareg said of a frozen registry."""
    found: dict[str, Any] = json.loads((FROZEN / f"{name}.json").read_text())
    return found


def thaw(name: str, folder: Path) -> Path:
    """Unpack one below `folder`: `home`, and `bundle.tar` and `certificate.json` where there were any."""
    target = folder / f"thawed-{name}"
    with tarfile.open(FROZEN / f"{name}.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target


def rows_of(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but Alembic's."""
    with closing(sqlite3.connect(database)) as raw:
        tables = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'alembic_version'")
        return {name: sorted(raw.execute(f"SELECT * FROM {name}"), key=repr) for (name,) in tables.fetchall()}
