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
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import small_registry

from lorareg.compress.materialize import restore_weights
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.backend import backend_of
from lorareg.registry.check import check, expect_sound_rows
from lorareg.registry.errors import LoraregError
from lorareg.registry.home import DATABASE_FILE, HEAD_FILE
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.report import build_report
from lorareg.registry.revision import is_current
from lorareg.registry.rows import every_row
from lorareg.registry.schema import Base
from lorareg.registry.store import Registry
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, AdapterFile, sha256_hex

REFS = ("one", "one@1", "one@stable", "one@old", "two", "two@1", "three", "four", "exact", "raw", "gone", "none")
PAGE_BYTES = 4096
TABLES = tuple(table.name for table in Base.metadata.sorted_tables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with rows in every table; beside it, its database from before each of the last changes."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("rot")
    home = folder / "home"
    with Registry.open(home, create=True) as registry:
        small_registry.fill(registry, folder)
    for number, act in enumerate(LAST_CHANGES):
        write_back(home)
        shutil.copy(home / DATABASE_FILE, folder / f"older-{number}.sqlite")
        with Registry.open(home, create=False) as registry:
            act(registry, folder)
    write_back(home)
    return home


def write_back(home: Path) -> None:
    """All that is in the log goes into the database."""
    with closing(sqlite3.connect(home / DATABASE_FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


LAST_CHANGES: tuple[Callable[[Registry, Path], object], ...] = (
    lambda registry, folder: registry.tag(registry.adapter("one@1"), "stable"),
    lambda registry, folder: registry.ingest(
        read_folder(small_registry.write_alike(folder / "late", "late")), name="two"
    ),
    lambda registry, folder: registry.describe(registry.adapter("three"), "something else"),
    lambda registry, folder: registry.untag(registry.adapter("one@1"), "old"),
)


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
    """Which version it is, and digests of its config and its weights."""
    adapter = reader.adapter(ref)
    weights = restore_weights(reader, adapter, reader.encoding(adapter.id))
    return adapter.ref, sha256_hex(reader.read_file(adapter, CONFIG_FILE)), sha256_hex(weights)


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
        report = build_report(connection, registry)
        adapters = [asdict(adapter) for adapter in report.adapters]
        return json.dumps({**report.summary(), "adapters": adapters, "created_at": "", "home": ""})


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
    originals: dict[str, tuple[str, ...]]  # what may be given out as well, where a code is not found
    earlier: dict[str, Any] = field(default_factory=dict)  # what was right before a page was written

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
        right = (self.originals, self.earlier)
        given = [key for key in given if all(wrong[key][1] != answers.get(key) for answers in right)]
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
    for file in (DATABASE_FILE, HEAD_FILE):
        shutil.copy(whole / file, home / file)
    before = everything(home)
    assert not found_by_check(home, read_data=True)
    assert {key for key, answer in before.items() if is_refusal(answer)} == {
        f"{kind} {ref}" for ref in ("one@old", "gone", "none") for kind in ("bytes", "show")
    }
    with Reader(home) as reader:
        weights = {file.adapter_id: file.sha256 for file in all_files(reader) if file.path == WEIGHTS_FILE}
        numbers = {ref: reader.adapter(ref).id for ref in REFS if not is_refusal(before[f"bytes {ref}"])}
    originals = {f"bytes {ref}": (*before[f"bytes {ref}"][:2], weights[number]) for ref, number in numbers.items()}
    return Patient(home, whole, before, dumped(home), originals)


def all_files(reader: Reader) -> list[AdapterFile]:
    return [file for files in reader.files_of([one.id for one in reader.adapters()]).values() for file in files]


def flips(random_source: random.Random, data: bytes, runs: int) -> Iterator[tuple[int, bytes]]:
    """`runs` times one flipped bit, anywhere."""
    for bit in random_source.sample(range(8 * len(data)), runs):
        yield bit, with_flipped(data, bit)


@pytest.mark.parametrize("part", range(4))
def test_bits_of_the_database(part: int, patient: Patient, torture: Any) -> None:
    torture.promise(
        "A flipped bit in the database is found by `check`, or is not used; no wrong byte is given out", fixed=6
    )
    runs, data = torture.runs(20, 5_000), (patient.whole / DATABASE_FILE).read_bytes()
    damaged = 0
    for bit, changed in flips(random.Random(torture.seed * 4 + part), data, runs):
        patient.with_database(changed)
        damaged += patient.examine(f"bit {bit}")
    assert damaged > runs / 10
    torture.held(runs)


def test_pages_of_the_database(patient: Patient, torture: Any) -> None:
    """A page that was never written is as it was before, or nothing; one that went astray is another's."""
    torture.promise(
        "A page of the database that is lost, old, or another's is found by `check`; what is given out is what was then"
    )
    source, data = random.Random(torture.seed), (patient.whole / DATABASE_FILE).read_bytes()
    older = (patient.whole.parent / "older-0.sqlite").read_bytes()
    patient.earlier = answers_of(older, patient)
    pages = range(len(data) // PAGE_BYTES)
    cases = [(page, bytes(PAGE_BYTES)) for page in pages]
    cases += [(page, page_of(older, page)) for page in pages if page_of(older, page) != page_of(data, page)]
    cases += [(page, page_of(data, source.choice([other for other in pages if other != page]))) for page in pages]
    chosen = source.sample(cases, min(torture.runs(30, len(cases)), len(cases)))
    damaged = 0
    for page, content in chosen:
        patient.with_database(data[: page * PAGE_BYTES] + content + data[(page + 1) * PAGE_BYTES :])
        damaged += patient.examine(f"page {page + 1}")
    assert damaged > len(chosen) / 2
    torture.held(len(chosen))


def test_the_log(patient: Patient, torture: Any, tmp_path: Path) -> None:
    """Cut off or with a flipped bit, SQLite drops the rest of it without a word."""
    torture.promise("A log (WAL) that lost acknowledged changes, by a flipped bit or cut short, is refused")
    source = random.Random(torture.seed)
    data, wal, head = a_log(patient.whole, tmp_path)
    (patient.home / HEAD_FILE).write_bytes(head)
    patient.with_database(data, wal)
    patient.before, patient.rows = everything(patient.home), dumped(patient.home)
    runs = torture.runs(30, 40_000)
    cases = [changed for _, changed in flips(source, wal, runs)]
    cases += [wal[:size] for size in source.sample(range(len(wal)), runs // 4)]
    damaged = 0
    for number, changed in enumerate(cases):
        patient.with_database(data, changed)
        damaged += patient.examine(f"case {number} of the log")
    assert damaged > len(cases) / 2
    torture.held(len(cases))


def test_an_older_database_beside_newer_blobs(patient: Patient, torture: Any) -> None:
    torture.promise("A database of an earlier time, put back beside newer blobs, is refused")
    moments = sorted(patient.whole.parent.glob("older-*.sqlite"))
    assert len(moments) == len(LAST_CHANGES)
    for number, moment in enumerate(moments):
        patient.with_database(moment.read_bytes())
        assert everything(patient.home) == {"open": "error: IntegrityError"}, f"moment {number}"
        assert found_by_check(patient.home)
    torture.held(len(moments))


# -- files --------------------------------------------------------------------------------------


def test_bits_of_files(patient: Patient, torture: Any) -> None:
    """Originals, configs, cards, codes, generators and packed extras."""
    torture.promise("A flipped bit in any file is refused when it is read, and found by `check --read-data`")
    source, files = random.Random(torture.seed), own_files(patient)
    cases = [(kind, bit) for kind, file in files.items() for bit in range(8 * file.size_bytes)]
    chosen = source.sample(cases, min(torture.runs(80, len(cases)), len(cases)))
    for kind, bit in chosen:
        with files[kind].replaced(with_flipped(files[kind].data, bit)):
            refused(patient, files[kind], f"bit {bit} of the {kind}")
    torture.held(len(chosen))


def test_files_cut_short(patient: Patient, torture: Any) -> None:
    torture.promise("A file that is cut short anywhere, or has bytes more, is refused and found")
    source, files = random.Random(torture.seed), own_files(patient)
    cases = [(kind, size) for kind, file in files.items() for size in [*range(file.size_bytes), file.size_bytes + 1]]
    chosen = source.sample(cases, min(torture.runs(40, len(cases)), len(cases)))
    for kind, size in chosen:
        with files[kind].replaced((files[kind].data + b"\0")[:size]):
            refused(patient, files[kind], f"the {kind}, {size} bytes long")
            assert found_by_check(patient.home), f"its size gives the {kind} away"
    torture.held(len(chosen))


def test_files_that_are_each_others(patient: Patient, torture: Any) -> None:
    torture.promise("Two files swapped are refused and found, whatever they are")
    files = own_files(patient)
    pairs = [(one, other) for one, other in combinations(files, 2) if files[one].data != files[other].data]
    pairs = random.Random(torture.seed).sample(pairs, torture.runs(10, len(pairs)))
    for one, other in pairs:
        with files[one].replaced(files[other].data), files[other].replaced(files[one].data):
            for kind in (one, other):
                refused(patient, files[kind], f"{one} and {other} swapped")
    torture.held(len(pairs))


@dataclass
class OwnFile:
    """A blob, and the adapter that cannot be given back without it; None where nothing reads it but `check`."""

    path: Path
    ref: str | None
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @contextmanager
    def replaced(self, data: bytes) -> Iterator[None]:
        self.path.write_bytes(data)
        try:
            yield
        finally:
            self.path.write_bytes(self.data)


def own_files(patient: Patient) -> dict[str, OwnFile]:
    """Blobs of every kind, in a store of the patient's own, by kind."""
    (patient.home / "blobs").unlink()
    shutil.copytree(patient.whole / "blobs", patient.home / "blobs")
    found: dict[str, OwnFile] = {}

    def add(kind: str, sha256: str, ref: str | None) -> None:
        path = patient.home / "blobs" / sha256[:2] / sha256[2:]
        path.chmod(0o644)
        found[kind] = OwnFile(path, ref, path.read_bytes())

    with Reader(patient.home) as reader:
        for ref in ("raw", "three", "exact"):
            adapter = reader.adapter(ref)
            encoding = reader.encoding(adapter.id)
            for file in reader.files(adapter):
                is_read = encoding is None or file.path != WEIGHTS_FILE
                add(f"{file.path} of {ref}", file.sha256, ref if is_read and file.path != CARD_FILE else None)
            if encoding is not None:
                add(f"code of {ref}", encoding.sha256, ref)
                if encoding.generator_id is not None:
                    add(f"generator of {ref}", reader.generator(encoding.generator_id).sha256, ref)
    assert any(kind.startswith("extras/") for kind in found)
    assert any(kind.startswith("generator") for kind in found)
    return found


def refused(patient: Patient, file: OwnFile, what: str) -> None:
    """The file is not used, and `check --read-data` knows."""
    with Reader(patient.home) as reader:
        if file.ref is not None:
            answer = asked(partial(given_out, reader, file.ref))
            assert is_refusal(answer), f"{what}: {answer}"
        findings = [one.what for one in check(reader, read_data=True) if one.severity == "error"]
    assert f"blob {file.path.parent.name}{file.path.name}" in findings, f"{what}: {findings}"


# -- what they damage ---------------------------------------------------------------------------


def with_flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def answers_of(database: bytes, patient: Patient) -> dict[str, Any]:
    """What an earlier database said in its time."""
    head = (patient.home / HEAD_FILE).read_bytes()
    (patient.home / HEAD_FILE).unlink()
    patient.with_database(database)
    answers = everything(patient.home)
    (patient.home / HEAD_FILE).write_bytes(head)
    return answers


def page_of(data: bytes, page: int) -> bytes:
    return data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].ljust(PAGE_BYTES, b"\0")


def a_log(whole: Path, tmp_path: Path) -> tuple[bytes, bytes, bytes]:
    """A database, a log of later changes that nobody has written back, and the head after them."""
    home = tmp_path / "logged"
    shutil.copytree(whole, home)
    with Registry.open(home, create=False) as registry:
        for number in range(6):
            registry.tag(registry.adapter("one@2"), f"label-{number}")
            registry.remember("x", {"y": number})
        files = [(home / name).read_bytes() for name in (DATABASE_FILE, f"{DATABASE_FILE}-wal", HEAD_FILE)]
    database, log, head = files
    return database, log, head
