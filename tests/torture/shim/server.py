"""Runs lorareg under `faults.c`, each time in a child forked from a process that has done it all before.

That takes away what is the same in every run: imports, typer's reading of the commands, the compilation of SQL. What
takes two seconds takes 50 ms then. `prune` verifies in its own process, for which it starts another one otherwise.

One request a line of JSON on stdin, one answer a line on stdout. The child does what `do` names; before that, where
`area` names a folder, the shim is armed for what is below it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from shared_sql import share_compiled_sql
from starlette.testclient import TestClient

from lorareg.cli.failures import handle
from lorareg.cli.main import main
from lorareg.cli.web.app import Settings, make_app
from lorareg.compress.materialize import restore_weights
from lorareg.compress.proofs import prune
from lorareg.compress.proofs.verify import check_encodings, verify
from lorareg.registry import object_blobs  # noqa: F401, imported for children
from lorareg.registry.check import check
from lorareg.registry.errors import LoraregError
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE, sha256_hex

DEADLINE_S = 120.0
SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])
NOW = int(time.time()) + 43_200
"""What time it is for who leaves nothing to chance: later than any file was written, by less than a day."""


def run_command(asked: dict[str, Any]) -> None:
    main(asked["argv"])


def push(asked: dict[str, Any]) -> None:
    """One commit to a server in this process, as a client of the Hub sends it; fails unless it is acknowledged."""
    settings = Settings(home=Path(asked["home"]), cache=Path(asked["cache"]))
    with TestClient(make_app(settings), base_url="http://localhost") as client:
        answer = client.post(
            f"/api/models/{asked['task']}/commit/main",
            content=Path(asked["body"]).read_bytes(),
            headers={"Authorization": f"Bearer {asked['token']}"},
        )
    print(answer.status_code, answer.text)
    sys.exit(0 if answer.status_code == 200 else 1)


def look(asked: dict[str, Any]) -> None:
    """What a registry holds, and what `check --read-data` and decoding everything find wrong with it."""
    try:
        print(json.dumps(registry_at(Path(asked["home"]))))
    except LoraregError as error:
        sys.exit(handle(error))


def look_at_each(asked: dict[str, Any]) -> None:
    """What each of several registries holds, or why it cannot be read, a line for each."""
    for home in asked["homes"]:
        try:
            found: dict[str, Any] = registry_at(Path(home))
        except LoraregError as error:
            found = {"refused": str(error)}
        print(json.dumps(found))


def registry_at(home: Path) -> dict[str, Any]:
    with Reader(home) as reader:
        findings = list(check(reader, read_data=True)) + list(check_encodings(reader))
        adapters = {}
        for adapter in reader.adapters(include_removed=True):
            encoding = reader.encoding(adapter.id)
            there = reader.original(adapter)
            adapters[adapter.ref] = {
                "digest": adapter.digest,
                "original": there,
                "weights": None if there == "pruned" else sha256_hex(reader.read_file(adapter, WEIGHTS_FILE)),
                "code": encoding and encoding.sha256,
                "output": encoding and sha256_hex(restore_weights(reader, adapter, encoding)),
                "certified": encoding is not None and reader.certificate(encoding.id) is not None,
                "tags": sorted(tag.label for tag in reader.tags(adapter)),
            }
    return {
        "adapters": adapters,
        "errors": [f"{f.what}: {f.problem}" for f in findings if f.severity == "error"],
        "notes": [f"{f.what}: {f.problem}" for f in findings if f.severity != "error"],
    }


DOINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "run": run_command,
    "push": push,
    "look": look,
    "looks": look_at_each,
}


# -- what is done once, for all children ----


def verify_here(home: Path, refs: list[str]) -> list[dict[str, Any]]:
    """What `prune` starts a process for."""
    with Registry.open(home, create=False) as registry:
        by_ref = {adapter.ref: adapter for adapter in registry.adapters(include_removed=True)}
        return [verify(registry, by_ref[ref]).to_dict() for ref in refs]


def share_what_is_the_same() -> None:
    """One tree of commands, and one store of compiled SQL for every database in SQLite."""
    typer.main.get_command = functools.cache(typer.main.get_command)
    prune._verify_cold = verify_here
    share_compiled_sql(setattr)


def rehearse(requests: list[dict[str, Any]]) -> None:
    """Do it all once in this process, which then knows how."""
    out = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    for asked in requests:
        try:
            DOINGS[asked["do"]](asked)
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"{asked} ended with {stopped.code}") from stopped
    sys.stdout.flush()
    os.dup2(out, 1)
    os.close(out)
    assert threading.active_count() == 1, "a child would lack the other threads"


# -- children ----


def in_child(asked: dict[str, Any], steps_at: int) -> None:
    """Do it, and never come back."""
    folder = Path(asked["output"])
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, stream)
        os.close(file)
    os.environ.update(asked.get("environment", {}))
    code = 70
    if "area" in asked:
        trace = asked.get("trace")
        written = -1 if trace is None else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        numbers = [asked[name] for name in ("action", "nth", "error", "kinds", "persists", "syncs")]
        nth = ctypes.c_long(numbers[1])
        SHIM.faults_arm(
            asked["area"].encode(),
            numbers[0],
            nth,
            *map(int, numbers[2:]),
            written,
            ctypes.c_long(asked["chance"]),
            ctypes.c_long(NOW),
            ctypes.cast(steps_at, ctypes.POINTER(ctypes.c_long)),
        )
        random.seed(asked["chance"])
    try:
        DOINGS[asked["do"]](asked)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        SHIM.faults_disarm()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, kill_after_s: float | None) -> tuple[int, bool]:
    """How a child ended, and whether it was killed for taking too long."""
    started = time.monotonic()
    limit = DEADLINE_S if kill_after_s is None else kill_after_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        left = limit - (time.monotonic() - started)
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], kill_after_s is None
        time.sleep(min(0.002, left))


def serve() -> None:
    """Answer requests until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if rehearsal := json.loads(sys.stdin.readline()):
        share_what_is_the_same()
        rehearse(rehearsal)
    steps = mmap.mmap(-1, mmap.PAGESIZE)
    steps_at = ctypes.addressof(ctypes.c_long.from_buffer(steps))
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        steps[:8] = bytes(8)
        began = time.monotonic()
        child = os.fork()
        if not child:
            in_child(asked, steps_at)
        status, late = wait(child, asked.get("kill_after_s"))
        answer = {
            "exit": os.waitstatus_to_exitcode(status),
            "late": late,
            "steps": int.from_bytes(steps[:8], "little"),
            "elapsed_s": time.monotonic() - began,
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
