"""Bits flip, pages are lost, files are swapped: `check` says so, and nothing wrong is given out meanwhile.

One small registry has everything a registry may have. A run damages a copy of it once, asks it all that can be asked,
and compares with what it said before.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_registry

from lorareg.compress.materialize import restore_weights
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.backend import backend_of
from lorareg.registry.check import check, expect_sound_rows
from lorareg.registry.errors import LoraregError
from lorareg.registry.home import DATABASE_FILE
from lorareg.registry.reader import Reader
from lorareg.registry.report import build_report
from lorareg.registry.revision import is_current
from lorareg.registry.rows import every_row
from lorareg.registry.schema import Base
from lorareg.registry.store import Registry
from lorareg.registry.types import CONFIG_FILE, sha256_hex

REFS = ("one", "one@1", "one@stable", "one@old", "two", "three", "four", "exact", "raw", "gone", "none")
TABLES = tuple(table.name for table in Base.metadata.sorted_tables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with rows in every table, its log written back."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("rot")
    home = folder / "home"
    with Registry.open(home, create=True) as registry:
        small_registry.fill(registry, folder)
    with closing(sqlite3.connect(home / DATABASE_FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return home


class SilenceError(Exception):
    """Something wrong was given out, or nothing was said of damage."""


def asked(question: Callable[[], Any]) -> Any:
    """An answer, or the name of the error there was instead; any other exception is a fault."""
    try:
        return question()
    except LoraregError as error:
        return f"error: {type(error).__name__}"


def is_refusal(answer: Any) -> bool:
    return isinstance(answer, str) and answer.startswith("error: ")


def everything(home: Path) -> dict[str, Any]:
    """All that can be asked of a registry that reads, by question: `bytes`, which must never be wrong, and the rest."""
    try:
        reader = Reader(home)
    except LoraregError as error:
        return {"open": f"error: {type(error).__name__}"}
    answers: dict[str, Any] = {"open": "done"}
    with reader:
        for ref in REFS:
            answers[f"bytes {ref}"] = asked(partial(given_out, reader, ref))
            answers[f"show {ref}"] = asked(partial(shown, reader, ref))
        answers["list"] = asked(lambda: (reader.cohorts(), reader.adapters(include_removed=True), reader.encodings()))
        answers["page"] = asked(lambda: (reader.names(), reader.newest(reader.names()), reader.task_bytes()))
        answers["token"] = asked(lambda: reader.token(1))
        answers["setting"] = asked(lambda: reader.setting("x"))
        answers["report"] = asked(lambda: reported(reader))
    return answers


def given_out(reader: Reader, ref: str) -> tuple[str, ...]:
    """Which version it is, and digests of the files of it that an engine loads."""
    adapter = reader.adapter(ref)
    weights = restore_weights(reader, adapter, reader.encoding(adapter.id))
    return adapter.ref, sha256_hex(weights), sha256_hex(reader.read_file(adapter, CONFIG_FILE))


def shown(reader: Reader, ref: str) -> list[Any]:
    adapter = reader.adapter(ref)
    encoding = reader.encoding(adapter.id)
    parts: list[Any] = [
        adapter,
        encoding,
        reader.cohort(adapter.cohort_id),
        reader.files(adapter),
        reader.tags(adapter),
    ]
    parts += [reader.versions(adapter.name), reader.task_vectors(adapter.id), reader.pin(adapter.id)]
    if encoding is not None:
        parts.append(reader.certificate(encoding.id))
        parts.append(encoding.generator_id and reader.generator(encoding.generator_id))
    return parts


def reported(reader: Reader) -> str:
    """What `lorareg report` does."""
    expect_sound_rows(reader)
    with opened(reader.home) as registry, registry.reading() as connection:
        return json.dumps({**build_report(connection, registry).to_dict(), "created_at": "", "home": ""})


OPENED: dict[Path, Registry] = {}


@contextmanager
def opened(home: Path) -> Iterator[Registry]:
    """As `lorareg` opens it, but that SQL is compiled once for all runs, which takes longer than all else."""
    if not is_current(backend_of(home)):
        with Registry.open(home, create=False) as registry:
            yield registry
        return
    registry = OPENED.setdefault(home, Registry(backend_of(home)))
    try:
        yield registry
    finally:
        registry.engine.dispose()


def found_by_check(home: Path, *, read_data: bool = False) -> bool:
    """Whether `lorareg check` says that something is wrong."""
    try:
        with opened(home) as registry:
            findings = list(check(registry, read_data))
            findings += check_encodings(registry) if read_data else []
    except LoraregError:
        return True
    return any(finding.severity == "error" for finding in findings)


def dumped(home: Path) -> Any:
    with Reader(home) as reader:
        return reader.fetch_together([every_row(table) for table in TABLES])


@dataclass
class Patient:
    """A copy of the whole registry, sharing its blobs, to damage; `before` is what the whole one says."""

    home: Path
    whole: Path
    before: dict[str, Any]
    rows: Any

    def with_database(self, data: bytes, wal: bytes = b"") -> None:
        for leftover in self.home.glob(f"{DATABASE_FILE}*"):
            leftover.unlink()
        (self.home / DATABASE_FILE).write_bytes(data)
        if wal:
            (self.home / f"{DATABASE_FILE}-wal").write_bytes(wal)

    def examine(self, what: str) -> bool:
        """Ask everything; whether there is any damage that matters."""
        after = everything(self.home)
        found = found_by_check(self.home)
        wrong = {
            key: (self.before[key], answer)
            for key, answer in after.items()
            if answer != self.before.get(key) and not is_refusal(answer)
        }
        refused = {key for key, answer in after.items() if is_refusal(answer) and answer != self.before.get(key)}
        given = [key for key in wrong if key.startswith("bytes ") or key in ("list", "report")]
        if given:
            raise SilenceError(f"{what}: wrong {given[0]}: {wrong[given[0]]}")
        if not found and (wrong or refused or dumped(self.home) != self.rows):
            raise SilenceError(f"{what}: check found nothing, but {wrong or refused or 'other rows'}")
        return found


@pytest.fixture
def patient(whole: Path, tmp_path: Path) -> Patient:
    home = tmp_path / "patient"
    home.mkdir()
    (home / "blobs").symlink_to(whole / "blobs")
    shutil.copy(whole / DATABASE_FILE, home / DATABASE_FILE)
    before = everything(home)
    assert not found_by_check(home, read_data=True)
    assert [key for key, answer in before.items() if is_refusal(answer)] == [
        f"{kind} {ref}" for ref in ("gone", "none") for kind in ("bytes", "show")
    ]
    return Patient(home, whole, before, dumped(home))


def flips(random_source: random.Random, data: bytes, runs: int) -> Iterator[tuple[int, bytes]]:
    """`runs` times one flipped bit, anywhere."""
    for bit in random_source.sample(range(8 * len(data)), runs):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def test_bits_of_the_database(patient: Patient, torture: Any) -> None:
    torture.promise("A flipped bit in the database is found by `check`, or is not used; no wrong byte is given out")
    runs, data = torture.runs(150, 20_000), (patient.whole / DATABASE_FILE).read_bytes()
    damaged = 0
    for bit, changed in flips(random.Random(torture.seed), data, runs):
        patient.with_database(changed)
        damaged += patient.examine(f"bit {bit}")
    assert damaged > runs / 10
    torture.held(runs)
