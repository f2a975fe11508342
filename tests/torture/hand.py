"""One of many hands at one registry, in a process of its own: `python hand.py PART HOME POOL LOG SEED COUNT`.

`writer` does COUNT mixed operations; `reader`, `coder` and `keeper` go on until the file POOL/stop is there, and once
more after that. What was acknowledged, how much was done and every error go to LOG, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorareg.cli.main import main as lorareg
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.errors import (
    BusyError,
    NothingToDoError,
    OriginalGoneError,
    RegistryError,
    UnknownAdapterError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token, revoke_token
from lorareg.registry.types import WEIGHTS_FILE, sha256_hex

EXPECTED = (UnknownAdapterError, OriginalGoneError, NothingToDoError, BusyError)
"""What others' work may be answered with: removed meanwhile, pruned, nothing there yet, somebody else's turn."""

EXPECTED_CODES = {0, *(error.exit_code for error in EXPECTED)}
SHARED = ("shared-0", "shared-1", "team/shared")


class Hand:
    """Whoever does something, and writes down what came of it."""

    def __init__(self, home: Path, pool: Path, log: Path, seed: int) -> None:
        self.home, self.pool = home, pool
        self.folders = sorted(pool.glob("content-*"))
        self.random, self.log, self.seed = random.Random(seed), log.open("w"), seed
        self.mine = [f"hand-{seed}/{letter}" for letter in "abc"]

    def tell(self, **what: Any) -> None:
        print(json.dumps(what), file=self.log, flush=True)

    def attempt(self, what: str, act: Callable[[], object]) -> None:
        """Do it; an error that others' work does not explain is told."""
        try:
            act()
        except EXPECTED as error:
            self.tell(what=what, expected=type(error).__name__)
        except BaseException as error:
            self.tell(what=what, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()[-3000:])
        else:
            self.tell(what=what)

    def command(self, *arguments: str) -> str:
        """A command of the command line, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                lorareg([*arguments, "--home", str(self.home)])
            except SystemExit as stopped:
                code = int(stopped.code or 0)
        said = err.getvalue()
        if code not in EXPECTED_CODES or "database is locked" in said:
            raise RuntimeError(f"{arguments} exits with {code}: {said}")
        return out.getvalue()

    def pick(self, registry: Registry | Reader) -> Any:
        adapters = registry.adapters()
        if not adapters:
            raise NothingToDoError(message="nothing there yet")
        return self.random.choice(adapters)

    def expect_given(self, lookup: Registry | Reader, adapter: Any) -> None:
        """Whatever was done to it meanwhile, an adapter gives back the bytes that its own row names."""
        wanted = next(file.sha256 for file in lookup.files(adapter) if file.path == WEIGHTS_FILE)
        out = self.pool / f"out-{self.seed}"
        done = materialize(self.home, adapter.ref, out, force=True)
        found = sha256_hex((out / WEIGHTS_FILE).read_bytes())
        if found != wanted or done.output_digest != wanted:
            raise RuntimeError(f"{adapter.ref} gave {found}, not {wanted}")

    # -- writing --------------------------------------------------------------------------------

    def write(self, count: int) -> None:
        acts = [self.ingest] * 6 + [self.label, self.describe, self.drop, self.pin, self.read, self.read, self.token]
        acts += [self.reopen, self.ask, self.put_files]
        with Registry.open(self.home, create=True) as self.registry:
            for number in range(count):
                self.number = number
                act = self.random.choice(acts) if number else self.ingest
                self.attempt(act.__name__, act)
        self.registry.close()

    def ingest(self) -> None:
        name, folder = self.random.choice([*self.mine, *SHARED]), self.random.choice(self.folders)
        outcome = self.registry.ingest(read_folder(folder), name=name)
        self.tell(acknowledged=outcome.adapter.ref, folder=folder.name)

    def label(self) -> None:
        adapter = self.pick(self.registry)
        self.registry.tag(adapter, f"label-{self.random.randrange(4)}")
        self.registry.untag(adapter, f"label-{self.random.randrange(4)}")

    def describe(self) -> None:
        self.registry.describe(self.pick(self.registry), f"Description {self.random.random()}.")

    def drop(self) -> None:
        adapter = self.pick(self.registry)
        self.registry.remove(adapter)
        self.registry.restore(adapter.ref)

    def pin(self) -> None:
        adapter = self.pick(self.registry)
        self.registry.put_pin(adapter, "in use")
        self.registry.take_pin(adapter)

    def put_files(self) -> None:
        adapter = self.pick(self.registry)
        self.registry.put_files(adapter, {"notes.txt": f"Notes {self.random.randrange(8)}.".encode()})

    def read(self) -> None:
        self.expect_given(self.registry, self.pick(self.registry))

    def token(self) -> None:
        name = f"token-{self.seed}-{self.number}"
        create_token(self.registry, name, "read", "*", days=1)
        revoke_token(self.registry, name)

    def reopen(self) -> None:
        self.registry.close()
        self.registry = Registry.open(self.home, create=False)

    def ask(self) -> None:
        self.command(*self.random.choice([["list", "--json"], ["report", "--json"], ["cohorts"], ["prune", "--json"]]))

    # -- what goes on beside --------------------------------------------------------------------

    def until_stopped(self, *rounds: Callable[[], object]) -> None:
        while not self.is_there():
            time.sleep(0.05)
        for act in rounds:
            self.attempt(act.__name__, act)
        while not (self.pool / "stop").exists():
            act = self.random.choice(rounds)
            self.attempt(act.__name__, act)

    def is_there(self) -> bool:
        try:
            with Reader(self.home) as reader:
                return bool(reader.adapters())
        except RegistryError:
            return False

    def look(self) -> None:
        with Reader(self.home) as reader:
            adapters = reader.adapters()
            for adapter in self.random.sample(adapters, min(8, len(adapters))):
                self.attempt("look", lambda adapter=adapter, reader=reader: self.expect_given(reader, adapter))

    def check(self) -> None:
        with Reader(self.home) as reader:
            found = [finding for finding in reader_check(reader) if finding.severity == "error"]
        if found:
            raise RuntimeError(f"{len(found)} problems: {found[:3]}")

    def export(self) -> None:
        self.command("export", "--out", str(self.pool / f"bundle-{self.seed}.tar"), "--force")
        self.command("import", str(self.pool / f"bundle-{self.seed}.tar"))

    def code(self) -> None:
        with Registry.open(self.home, create=False) as registry:
            arch = self.random.choice(["none", "none", "mean"])
            compress(registry, (), CompressOptions(Contract(tolerance=0.0), arch=arch, retrain=False), Silent())

    def recode(self) -> None:
        with Registry.open(self.home, create=False) as registry:
            compress(registry, (), CompressOptions(Contract(tolerance=0.0), arch="none", retrain=True), Silent())

    def prune(self) -> None:
        self.command("prune", "--apply", "--quiet")

    def sweep(self) -> None:
        self.command("prune", "--sweep", "--grace-days", "0", "--quiet")

    def gc(self) -> None:
        self.command("gc", "--apply", "--grace-days", "0", "--quiet")


def reader_check(reader: Reader) -> Any:
    from lorareg.registry.check import check

    return check(reader, read_data=False)


def main(part: str, home: str, pool: str, log: str, seed: str, count: str) -> None:
    hand = Hand(Path(home), Path(pool), Path(log), int(seed))
    if part == "writer":
        hand.write(int(count))
    else:
        rounds = {
            "reader": [hand.look, hand.check, hand.export],
            "coder": [hand.code, hand.code, hand.recode],
            "keeper": [hand.prune, hand.sweep, hand.gc, hand.gc],
        }
        hand.until_stopped(*rounds[part])
    hand.tell(done=part)


if __name__ == "__main__":
    main(*sys.argv[1:])
