"""Many hands at one registry: processes that write, read, compress, prune and delete at once, and a server beside them.

Everything is asked of one tolerance, 0, so that whatever is done to an adapter it has to give back the bytes that were
ingested. Who is in whose way waits; nobody is told of a lock.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import restore_weights
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.prune import prune
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.peft_format import read_folder
from lorareg.registry.report import build_report
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, sweep
from lorareg.registry.types import WEIGHTS_FILE, sha256_hex

HAND = Path(__file__).with_name("hand.py")
PATIENCE_S = 6 * 3600
NO_GRACE = timedelta(0)


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "postgresql":
        monkeypatch.setenv("LORAREG_DATABASE", request.getfixturevalue("empty_postgres"))
    return tmp_path / "home"


class Crowd:
    """Processes at one registry, and what they write down."""

    def __init__(self, home: Path, pool: Path, logs: Path) -> None:
        self.home, self.pool, self.logs = home, pool, logs
        self.logs.mkdir()
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, part: str, seed: int, count: int = 0) -> subprocess.Popen[bytes]:
        log = self.logs / f"{part}-{seed}.jsonl"
        command = [sys.executable, str(HAND), part, str(self.home), str(self.pool), str(log), str(seed), str(count)]
        with log.with_suffix(".err").open("w") as said:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        self.running.append((log.stem, process))
        return process

    def stop(self) -> None:
        (self.pool / "stop").touch()
        for name, process in self.running:
            assert process.wait(timeout=PATIENCE_S) == 0, (self.logs / f"{name}.err").read_text()[-3000:]

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for log in sorted(self.logs.glob("*.jsonl")) for line in log.read_text().splitlines()]


def test_many_hands_at_one_registry(
    torture: Any, home: Path, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    torture.promise(
        "Processes that ingest, tag, describe, remove, pin, read and export, beside compress, prune, sweep and gc "
        "without a grace: no error, no lock is seen, nothing acknowledged is lost, every byte is right",
        fixed=3,
    )
    hands, count = torture.runs(4, 16), torture.runs(15, 2000)
    pool = make_adapter("content-0", seed=0).parent
    for seed in range(1, 12):
        make_adapter(f"content-{seed}", seed=seed, width=6 + 2 * (seed % 4 == 3))
    crowd = Crowd(home, pool, tmp_path / "logs")
    writers = [crowd.start("writer", torture.seed * 1000 + number, count) for number in range(hands)]
    for number, part in enumerate(("reader", "coder", "keeper", "keeper")):
        crowd.start(part, torture.seed * 1000 + hands + number)
    for writer in writers:
        writer.wait(timeout=PATIENCE_S)
    crowd.stop()
    told = crowd.told()
    done = Counter(line["what"] for line in told if "what" in line)
    print(dict(done), Counter(line["expected"] for line in told if "expected" in line))
    assert [line for line in told if "error" in line] == []
    assert sum("done" in line for line in told) == hands + 4
    everything = "".join(path.read_text() for path in crowd.logs.iterdir())
    assert "database is locked" not in everything
    expect_all_there(home, pool, told)
    torture.held(hands * count)


def expect_all_there(home: Path, pool: Path, told: list[dict[str, Any]]) -> None:
    """Nothing that was acknowledged is lost or other, and the registry is in order."""
    originals = {
        path.name: (path / WEIGHTS_FILE).read_bytes() for path in pool.iterdir() if path.name.startswith("content-")
    }
    with Registry.open(home, create=False) as registry:
        assert [one for one in registry.check(read_data=True) if one.severity == "error"] == []
        assert list(check_encodings(registry)) == []
        by_ref = {adapter.ref: adapter for adapter in registry.adapters(include_removed=True)}
        acknowledged = {line["acknowledged"]: line["folder"] for line in told if "acknowledged" in line}
        assert acknowledged.keys() <= by_ref.keys()
        for ref, folder in acknowledged.items():
            assert restore_weights(registry, by_ref[ref], registry.encoding(by_ref[ref].id)) == originals[folder], ref
        with registry.reading() as connection:
            totals = build_report(connection, registry).totals
            database = sum(registry.fetch(f"{registry.backend.size_query}")[0].values())
        blobs = sum(blob.size_bytes for blob in registry.blobs.listed())
        assert totals.on_disk_bytes == blobs + database + totals.beside["reserve"]


@dataclass
class Asked:
    """What a server answered: how often with which status, and where the bytes were wrong."""

    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def served(home: Path, cache: Path) -> Iterator[str]:
    """The address of `lorareg serve`, in a process of its own."""
    command = [sys.executable, "-m", "lorareg.cli", "serve", "--home", str(home), "--port", "0", "--cache", str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        log = threading.Thread(target=process.stderr.read)  # a full pipe would stop the server
        log.start()
        try:
            found = re.search(r"http://[^\s/]+", said)
            assert found, said
            yield found[0]
        finally:
            process.terminate()
            log.join()


def ask(url: str, home: Path, original: dict[str, str], asked: Asked, enough: threading.Event) -> None:
    """Ask for every adapter's weights, again and again; they are exact whatever they are decoded from."""
    paths = {f"{url}/{name}/resolve/main/{WEIGHTS_FILE}": digest for name, digest in original.items()}
    while not enough.is_set():
        for path, digest in paths.items():
            try:
                with urllib.request.urlopen(path, timeout=60) as answer:
                    data, status = answer.read(), answer.status
            except urllib.error.HTTPError as error:
                asked.answers[error.code] += 1
                asked.wrong.append(f"{path}: {error.code} {error.headers.get('X-Error-Message')}")
                error.close()
                continue
            asked.answers[status] += 1
            if sha256_hex(data) != digest:
                asked.wrong.append(path)


def test_a_server_while_others_write(torture: Any, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    torture.promise(
        "A server beside compress, prune, sweep and gc without a grace: every weights file is answered with its bytes, "
        "the original's before and after it was let go of"
    )
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    rounds, home = torture.runs(2, 200), tmp_path / "home"
    folders = [make_adapter(f"content-{number}", seed=number) for number in range(4)]
    original = {folder.name: sha256_hex((folder / WEIGHTS_FILE).read_bytes()) for folder in folders}
    with Registry.open(home, create=True) as registry:
        for folder in folders:
            registry.ingest(read_folder(folder), name=folder.name)
    asked, enough = Asked(), threading.Event()
    with served(home, tmp_path / "cache") as url:
        asking = threading.Thread(target=ask, args=(url, home, original, asked, enough))
        asking.start()
        try:
            for number in range(rounds):
                with Registry.open(home, create=False) as registry:
                    compress(registry, (), CompressOptions(Contract(tolerance=0.0), arch="none"), Silent())
                    prune(registry, Silent())
                    sweep(registry, NO_GRACE)
                    assert registry.original(registry.adapter("content-0")) == "pruned"
                    delete_orphans(registry, NO_GRACE)
                    for folder in folders:  # once more, so that there is something to let go of
                        registry.ingest(read_folder(folder), name=folder.name)
                    if number % 2:
                        for adapter in registry.adapters():
                            registry.put_files(adapter, {"README.md": f"# Task\n\nCard {number}.\n".encode()})
        finally:
            enough.set()
            asking.join()
    assert asked.wrong == []
    assert asked.answers.keys() == {200}
    assert asked.answers[200] >= rounds
    torture.held(asked.answers[200])
