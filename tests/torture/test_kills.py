"""SIGKILL at every step of the file system, and at any moment: nothing acknowledged is lost, nothing dangles.

A command is killed; then its registry is opened and everything in it read and decoded, the command is given again, and
the registry has to hold what it holds when nobody is killed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from faults import FILES, KILL, SEND, TEAR, WRITE, Ended, command, parsed
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


def test_killed_while_rows_go_to_postgresql(stage: Stage, make_postgres: Callable[[], str], torture: Any) -> None:
    torture.promise("`migrate --to` killed at a change to files or a message to PostgreSQL loses nothing")
    scene, kinds = stage.scene("migrate --store"), FILES | SEND  # begins from the same registry

    def bring(url: str, **fault: Any) -> Ended:
        return command("migrate --to", "migrate", "--to", url).run(stage.faults, area, kinds=kinds, **fault)

    def held(url: str | None) -> dict[str, Any]:
        environment = {} if url is None else {"LORAREG_DATABASE": url}
        found = parsed(stage.faults.ask("look", home=str(area / "home"), environment=environment))
        assert found["errors"] == []
        adapters: dict[str, Any] = found["adapters"]
        return adapters

    area, url = stage.copy(scene.area, "tried"), make_postgres()
    every = range(1, bring(url).steps + 1)
    assert held(url) == scene.before
    for nth in every if torture.long else random.Random(torture.seed).sample(every, 2):
        area, url = stage.copy(scene.area, "tried"), make_postgres()
        assert bring(url, action=KILL, nth=nth).killed
        if (area / "home" / "registry.sqlite").exists():
            assert held(None) == scene.before
            again = bring(url)
            assert again.exit == 0, again.err
        assert held(url) == scene.before
    torture.held(len(every) if torture.long else 2)
