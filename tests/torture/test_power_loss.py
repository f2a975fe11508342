"""The power goes at any moment: any part of what was not flushed may be on the disk, and the registry opens.

A command is recorded with all that it writes, then replayed up to some step with a part of what was not flushed;
`power.py` says what a disk may do. Every state has to open to what was there before the command, or to what is there
after it, adapter by adapter; once the command has ended, to what is there after it.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from power import Keeps, Trace, read_trace, write_disk
from scenes import SCENES, Scene, Stage, bare

BATCH = 20
FIXED = {"ingest into a new registry": 2}
"""Faults found here that are mended: new folders were not flushed."""


def recorded(stage: Stage, scene: Scene) -> Trace:
    """What its command writes, in order."""
    area, trace = stage.copy(scene.area, "recorded"), stage.folder / "trace"
    ended = scene.doing.run(stage.faults, area, trace=str(trace))
    assert ended.exit == 0, ended.err
    return Trace(area, scene.area, read_trace(trace))


def expect_state(scene: Scene, found: dict[str, Any], *, acknowledged: bool) -> None:
    if "refused" in found:
        assert "there is no registry here" in found["refused"]
        assert not scene.before
        assert not acknowledged
        return
    scene.expect_either(found)
    if acknowledged:
        assert {ref: bare(one) for ref, one in found["adapters"].items()} == {
            ref: bare(one) for ref, one in scene.after.items()
        }


@pytest.mark.parametrize("name", SCENES)
def test_the_power_goes(name: str, stage: Stage, torture: Any) -> None:
    torture.promise(f"a power loss during or after `{name}` takes nothing acknowledged", fixed=FIXED.get(name, 0))
    scene = stage.scene(name)
    trace, random_ = recorded(stage, scene), random.Random(torture.seed)
    wanted, end = torture.runs(10, 1000), len(trace.events)
    moments = [end if number % 5 == 0 else random_.randrange(end) for number in range(wanted)]
    for start in range(0, wanted, BATCH):
        shutil.rmtree(stage.folder / "states", ignore_errors=True)
        batch = moments[start : start + BATCH]
        homes: list[Path] = []
        for number, until in enumerate(batch):
            target = stage.folder / "states" / str(number)
            write_disk(trace.disk(until, Keeps(random_)), trace.area, target)
            homes.append(target / "home")
        for until, home, found in zip(batch, homes, stage.faults.look_at_each(homes), strict=True):
            try:
                expect_state(scene, found, acknowledged=until == end)
            except AssertionError as error:
                error.add_note(f"after {until} of {end} steps; the disk is in {home}")
                raise
    # Whoever goes on from there comes to the end.
    for home in homes[: torture.runs(0, BATCH)]:
        stage.done(home.parent, scene.doing)
        expect_state(scene, stage.faults.look(home), acknowledged=True)
    torture.held(wanted)
