"""SIGKILL at every step of the file system, and at any moment: nothing acknowledged is lost, nothing dangles.

A command is killed; then its registry is opened and everything in it read and decoded, the command is given again, and
the registry has to hold what it holds when nobody is killed.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from faults import FILES, KILL, TEAR, WRITE
from scenes import SCENES, Stage

FIXED = {"compress": 1, "prune --sweep": 1}
"""Faults found here that are mended: codes lost their certificates, and a killed sweep kept the next one waiting."""


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_every_step(name: str, stage: Stage, torture: Any) -> None:
    torture.promise(f"`{name}` killed before and within every change to a file loses nothing", fixed=FIXED.get(name, 0))
    scene = stage.scene(name)
    random_ = random.Random(torture.seed)
    every = [(KILL, FILES, nth) for nth in range(1, scene.steps + 1)]
    every += [(TEAR, WRITE, nth) for nth in range(1, scene.writes + 1)]
    for action, kinds, nth in every if torture.long else random_.sample(every, 2):
        stage.kill(scene, action=action, kinds=kinds, nth=nth)
    torture.held(len(every) if torture.long else 2)


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_any_moment(name: str, stage: Stage, torture: Any) -> None:
    torture.promise(f"`{name}` killed at any moment loses nothing")
    scene = stage.scene(name)
    random_ = random.Random(torture.seed)
    wanted, killed = torture.runs(1, 2000), 0
    while killed < wanted:
        killed += stage.kill(scene, kill_after_s=random_.uniform(0, scene.seconds))
    torture.held(wanted)
