"""What a benchmark measured: rows saved as each is finished, so that a stopped run goes on, and a table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cohort import ROOT

ALL_SOURCES = ("bench/*.py", "compress/**/*.py", "registry/*.py")

Row = dict[str, Any]


class Results:
    """Rows by name in one JSON file. Rows of an earlier run stand only where all that decides them is the same."""

    def __init__(
        self, path: Path, inputs: dict[str, Any], *, fresh: bool, sources: Sequence[str] = ALL_SOURCES
    ) -> None:
        """Load the rows that `inputs` and the sources (patterns below the repository's root) still vouch for."""
        self.path = path
        self.inputs = {**inputs, "sources": _sources_digest(sources)}
        self.rows: dict[str, Row] = {}
        if path.exists() and not fresh:
            try:
                before = json.loads(path.read_text())
                self.rows = before["rows"] if before["inputs"] == self.inputs else {}
            except (ValueError, KeyError, TypeError) as error:
                sys.exit(f"{path} is not a benchmark's result ({error!r}). Move it away, or pass --fresh.")

    def row(self, name: str, measure: Callable[[], Row]) -> Row:
        """The row called `name`, measured unless it is there."""
        if name not in self.rows:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            self.rows[name] = measure()
            self.save()
        return self.rows[name]

    def save(self, **summary: Any) -> None:
        """Write all rows, and what is said about them; replaces the file at once."""
        write_json(self.path, {"inputs": self.inputs, "machine": machine(), "rows": self.rows, **summary})


def write_json(path: Path, document: object) -> None:
    """Write a file that is replaced at once, so that a stop leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(fresh, path)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns to stdout, the first to the left and the others to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for number, line in enumerate(lines):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def machine() -> Row:
    """What the figures were measured on, and how busy it was."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def files_digest(folders: Sequence[Path]) -> str:
    """SHA-256 over the names and bytes of the files in some folders."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.parent.name}/{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sources_digest(patterns: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
