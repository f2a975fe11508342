"""What the frontier is measured on: a collection, which of it is shared from, which is stored, which is evaluated."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cohort import FOLDERS, ROOT, BenchCohort, load_cohort
from methods import Method, compare, row_of
from results import Row

from lorareg.compress.factors.weights import write_weights
from lorareg.registry.types import CONFIG_FILE, sha256_hex

COLLECTIONS = ("same-seed", "own-seed", "trajectory", "all-linear-bf16")
EVERY = 4
FIRST = 2
FEWEST_HELD_OUT = 8
"""Adapters that a collection must have for some of them to be held out, unless that is asked for."""


@dataclass(frozen=True, slots=True)
class Study:
    """A collection and its parts."""

    collection: str
    setting: str  # "held-out" or "all"
    cohort: BenchCohort
    training: BenchCohort  # what `share` sees
    stored: BenchCohort  # what is encoded, measured and, as far as asked for, evaluated

    @property
    def title(self) -> str:
        part = f"{len(self.stored.originals)} of {len(self.cohort.originals)} adapters"
        if self.setting == "held-out":
            return f"{self.collection}: {part} held out, shared data made from the other {len(self.training.originals)}"
        return f"{self.collection}: {part} stored, shared data made from all of them"


def load_study(collection: str | None, setting: str | None) -> Study:
    """Read a collection and part it; ends the program with a message where there is too little."""
    top = find_collection(collection)
    folders = sorted(
        (path.parent for path in top.rglob(CONFIG_FILE)), key=lambda path: path.relative_to(top).as_posix()
    )
    if len(folders) < 2:
        sys.exit(f"{top}: {len(folders)} adapters here, at least 2 are needed. Give a folder that holds PEFT folders.")
    cohort = load_cohort(folders)
    setting = setting or ("held-out" if len(folders) >= FEWEST_HELD_OUT else "all")
    chosen = cohort.names[FIRST::EVERY] if len(folders) >= FEWEST_HELD_OUT else cohort.names
    stored = cohort.part(chosen)
    training = cohort
    if setting == "held-out":
        training = cohort.part([name for name in cohort.names if name not in chosen])
        if len(training.originals) < 2:
            sys.exit(f"{top} has too few adapters to hold some out. Pass --setting all.")
    return Study(top.name, setting, cohort, training, stored)


def find_collection(collection: str | None) -> Path:
    """The folder of a collection, by name or by path; ends the program with a message where it is not there."""
    if collection is None:
        return next((path for path in FOLDERS if path.is_dir()), FOLDERS[-1])
    named = FOLDERS[0].parent / collection
    found = named if collection in COLLECTIONS else Path(collection)
    if not found.is_dir():
        sys.exit(f"{found}: no such folder. Give one of {', '.join(COLLECTIONS)}, or a folder of PEFT folders.")
    return found.resolve()


class Stored:
    """A method at work on a study: everything it shares and stores, made when first needed and then kept."""

    def __init__(self, method: Method, study: Study) -> None:
        self.method, self.study = method, study
        self._originals = dict(zip(study.stored.names, study.stored.originals, strict=True))
        self._codes: dict[str, bytes] = {}

    @cached_property
    def shared(self) -> bytes:
        return self.method.share(self.study.training)

    def code(self, name: str) -> bytes:
        if name not in self._codes:
            self._codes[name] = self.method.encode(self._originals[name], self.shared)
        return self._codes[name]

    def restored(self, name: str) -> bytes:
        """The adapter's weights file after the round trip."""
        layout = self.study.cohort.layout
        return write_weights(layout, self.method.decode(self.code(name), self.shared, layout))

    def measure(self) -> Row:
        """Bytes, errors, and digests of what was restored."""
        started = time.monotonic()
        digests, measured = [], []
        for name, original in self._originals.items():
            restored = self.restored(name)
            digests.append(sha256_hex(restored))
            measured.append(compare(original, restored))
        sizes = [len(self.code(name)) for name in self._originals]
        return {**row_of(len(self.shared), sizes, measured, started), "digests": digests}


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """The installed versions, for what was measured with them."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def default_output(study: Study) -> Path:
    """Where a study's results go, unless told."""
    return ROOT / "build" / "bench" / f"frontier-{study.collection}-{study.setting}.json"
