"""Ingest against copy and hash within one process, in turn, and print the times as JSON.

A child of `main_job.py`: without start-up, what is left is the work itself.

    python bench/ingest_inside.py WORK_FOLDER ROUNDS ADAPTER_FOLDER...
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path


def copy_and_hash(folders: list[Path], target: Path) -> float:
    """Seconds to copy the folders and hash the copies."""
    started = time.perf_counter()
    for folder in folders:
        shutil.copytree(folder, target / folder.name)
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - started


def ingest(folders: list[Path], home: Path) -> float:
    """Seconds to ingest the folders into a new registry."""
    from lorareg.registry.ingest import IngestRequest
    from lorareg.registry.store import Registry

    started = time.perf_counter()
    with Registry.open(home, create=True) as registry:
        for outcome in registry.ingest_each([IngestRequest(folder, folder.name) for folder in folders]):
            if isinstance(outcome, Exception):
                raise outcome
    return time.perf_counter() - started


def main(work: Path, rounds: int, folders: list[Path]) -> None:
    times: dict[str, list[float]] = {"copy_s": [], "ingest_s": []}
    for number in range(rounds + 1):  # the first loads modules and fills caches, and does not count
        for name, job in (("copy_s", copy_and_hash), ("ingest_s", ingest)):
            target = work / name
            shutil.rmtree(target, ignore_errors=True)
            elapsed_s = job(folders, target)
            shutil.rmtree(target)
            os.sync()  # what one job left to write must not slow down the next
            if number:
                times[name].append(elapsed_s)
    print(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
