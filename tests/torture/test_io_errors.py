"""A failing disk: a write or a flush that fails, once or from then on.

The command says so, or does without; either way its registry is whole, and the command does its work when it is
given again. A flush that failed is not asked for again: the system may have thrown the bytes away, and say yes then.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
from faults import FAIL, SYNC, WRITE, Ended, parsed
from power import Event, Keeps, Trace, read_trace, write_disk
from scenes import SCENES, Scene, Stage, bare

UNFORESEEN = 70
DISKS = 3

WAL = "/registry.sqlite-wal"
"""Flushed once more by SQLite when a connection is closed, for what it was flushed for before; `expect_lasting` sees to
what a commit did not get flushed."""

FAULTS = [
    *((f"{name} at a {what}", error, kinds, False) for name, error in (("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC))
      for what, kinds in (("write", WRITE), ("flush", SYNC))),
    ("ENOSPC from a write on", errno.ENOSPC, WRITE, True),
]  # fmt: skip
"""In words, the error, of which steps, and whether all later ones fail as well."""


def flushed_again(events: Sequence[Event]) -> list[str]:
    """Files of which a flush failed and that were flushed again, though nothing was written to them since."""
    failed: set[int] = set()
    again = []
    for event in events:
        if event.kind == "S":
            failed.add(event.inode)
        elif event.kind in "cwt":
            failed.discard(event.inode)
        elif event.kind == "s" and event.inode in failed and not event.path.endswith(WAL):
            again.append(event.path)
    return again


def expect_told(ended: Ended) -> None:
    """What went wrong is told in a sentence, not as a traceback."""
    assert "Traceback" not in ended.err, ended.err
    assert ended.exit != UNFORESEEN, ended.err
    assert ended.exit == 0 or ended.err.strip() or ended.out.strip()


def fail(stage: Stage, scene: Scene, error: int, kinds: int, persists: bool, nth: int) -> None:
    area, trace = stage.copy(scene.area, "tried"), stage.folder / "trace"
    fault = {"action": FAIL, "error": error, "kinds": kinds, "persists": persists, "nth": nth}
    ended = scene.doing.run(stage.faults, area, trace=str(trace), **fault)
    expect_told(ended)
    assert flushed_again(read_trace(trace)) == []
    looked = stage.faults.ask("look", home=str(stage.copy(area, "looked") / "home"))  # who looks leaves traces
    if looked.exit == 20 and "there is no registry" in looked.err:
        assert not scene.before
        assert ended.exit != 0
    else:
        found = parsed(looked)
        scene.expect_either(found)
        if ended.exit == 0:
            expect_after(scene, found)
    again = scene.doing.run(stage.faults, area, trace=str(stage.folder / "trace-again"))
    assert again.exit == 0, again.err
    expect_after(scene, stage.faults.look(area / "home"))
    if kinds == SYNC:  # what it left out must not be what the next one builds on
        events = read_trace(trace) + read_trace(stage.folder / "trace-again")
        expect_lasting(stage, scene, Trace(area, scene.area, events), random.Random(nth))


def expect_lasting(stage: Stage, scene: Scene, trace: Trace, random_: random.Random) -> None:
    """After a power loss at the end everything is there that was done."""
    shutil.rmtree(stage.folder / "states", ignore_errors=True)
    states = [stage.folder / "states" / str(number) for number in range(DISKS)]
    for state in states:
        write_disk(trace.disk(len(trace.events), Keeps(random_)), trace.area, state)
    for found in stage.faults.look_at_each([state / "home" for state in states]):
        assert "refused" not in found, found
        expect_after(scene, found)


def expect_after(scene: Scene, found: dict[str, Any]) -> None:
    scene.expect_either(found)
    assert {ref: bare(one) for ref, one in found["adapters"].items()} == {
        ref: bare(one) for ref, one in scene.after.items()
    }


@pytest.mark.parametrize("name", SCENES)
def test_a_failing_disk(name: str, stage: Stage, torture: Any) -> None:
    torture.promise(
        f"`{name}` on a disk that fails or is full loses nothing and says what is wrong", fixed=FIXED.get(name, 0)
    )
    scene, random_ = stage.scene(name), random.Random(torture.seed)
    counts = {WRITE: scene.writes, SYNC: scene.syncs}
    every = [(fault, nth) for fault in FAULTS for nth in range(1, counts[fault[2]] + 1)]
    chosen = every if torture.long else random_.sample(every, 1)
    for (what, error, kinds, persists), nth in chosen:
        try:
            fail(stage, scene, error, kinds, persists, nth)
        except AssertionError as failure:
            failure.add_note(f"{what} number {nth}")
            raise
    torture.held(len(chosen))


FIXED = {"migrate --store": 1}
