"""Scenes for tests of faults: commands, the registries they begin from, and what has to be true after a fault."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
from faults import SYNC, WRITE, Doing, Ended, Faults, command
from trees import Tree, digest_of, read_tree, write_tree

from lorareg.registry.backend import backend_of
from lorareg.registry.migrate import move_schema
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token

HARMLESS = (
    "nothing refers to it",  # it takes space, until gc
    "a sweep was stopped before it was done with it",
    "older code",
    "registry.head does not hash to what it says, as after a power loss",  # until the next change
)
"""What `check` may say of a registry whose writer was killed, or its power lost."""


@dataclass
class Scene:
    """A doing, the area it begins from, and what its registry holds before and after it."""

    doing: Doing
    area: Path
    before: dict[str, Any]
    after: dict[str, Any]
    steps: int
    writes: int  # of the steps
    syncs: int
    seconds: float
    tree: Tree
    seen: set[tuple[bool, bytes]] = field(default_factory=set)  # what kills left, and was looked at

    def expect_either(self, found: dict[str, Any]) -> None:
        """Each adapter is as it was before or as it is after, and nothing is wrong with the registry."""
        assert found["errors"] == []
        assert [note for note in found["notes"] if not any(said in note for said in HARMLESS)] == []
        assert self.before.keys() <= found["adapters"].keys() <= self.after.keys()
        for ref, adapter in found["adapters"].items():
            sides = [side[ref] for side in (self.before, self.after) if ref in side]
            assert adapter["digest"] == sides[-1]["digest"]
            assert adapter["weights"] in [side["weights"] for side in sides], f"the original of {ref}"
            if any(side["output"] for side in sides[:-1]):
                assert adapter["output"] in [side["output"] for side in sides], f"the code of {ref}"
            if adapter["output"] is not None:
                assert any(side["output"] for side in sides), f"{ref} has a code"
                assert adapter["certified"], f"the code of {ref} has no certificate"
            assert adapter["tags"] in [side["tags"] for side in sides], f"the tags of {ref}"


@dataclass
class Stage:
    """Where scenes are made and tried."""

    faults: Faults
    folder: Path
    scenes: dict[str, Scene] = field(default_factory=dict)

    def scene(self, name: str) -> Scene:
        if name not in self.scenes:
            area = self.folder / "scenes" / name
            area.mkdir(parents=True)
            doing = SCENES[name](self, area)
            before = self.held(self.copy(area, "rehearsal"))
            rehearsal = self.copy(area, "rehearsal")
            ended = doing.run(self.faults, rehearsal)
            assert ended.exit == 0, ended.err
            after = self.held(rehearsal)
            writes, syncs = (
                doing.run(self.faults, self.copy(area, "rehearsal"), kinds=kinds).steps for kinds in (WRITE, SYNC)
            )
            seconds, tree = ended.elapsed_s, read_tree(area)
            self.scenes[name] = Scene(doing, area, before, after, ended.steps, writes, syncs, seconds, tree)
        return self.scenes[name]

    def copy(self, area: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(area, target, symlinks=True)
        return target

    def held(self, area: Path) -> dict[str, Any]:
        if not (area / "home" / "registry.sqlite").exists():
            return {}
        found = self.faults.look(area / "home")
        assert found["errors"] == []
        adapters: dict[str, Any] = found["adapters"]
        return adapters

    def done(self, area: Path, doing: Doing) -> None:
        ended = doing.run(self.faults, area)
        assert ended.exit == 0, f"{doing.what}: {ended.out} {ended.err}"

    def kill(self, scene: Scene, **fault: Any) -> bool:
        """Kill it once, and see that nothing is lost; whether it was alive to be killed.

        Nothing is left to chance in what is killed, so that kills between the same two steps leave the same bytes:
        those are looked at once.
        """
        area = self.folder / "tried"
        write_tree(scene.tree, area)
        ended = scene.doing.run(self.faults, area, chance=1, **fault)
        assert ended.killed or ended.exit == 0, f"neither killed nor done: {ended.out} {ended.err}"
        state = (ended.killed, digest_of(read_tree(area)))
        if state not in scene.seen:
            self.expect_whole(scene, area, ended)
            scene.seen.add(state)
        return ended.killed

    def expect_whole(self, scene: Scene, area: Path, ended: Ended) -> None:
        """Nothing is lost in what a kill left, and the command does its work when it is given again."""
        if (area / "home" / "registry.sqlite").exists() or scene.before:
            looked = self.faults.ask("look", home=str(area / "home"))
            if looked.exit == 20 and not scene.before and "there is no registry" in looked.err:
                pass  # it was killed before there was one
            else:
                assert looked.exit == 0, looked.err
                scene.expect_either(faults.parsed(looked))
        if not ended.killed:
            return
        self.age(area)
        self.done(area, scene.doing)
        found = self.faults.look(area / "home")
        scene.expect_either(found)
        expected = {ref: bare(adapter) for ref, adapter in scene.after.items()}
        assert {ref: bare(adapter) for ref, adapter in found["adapters"].items()} == expected
        self.done(area, command("gc", "gc", "--apply", "--grace-days", 0))
        notes = self.faults.look(area / "home")["notes"]
        assert [note for note in notes if "nothing refers to it" in note] == []
        assert list((area / "home" / "blobs" / "tmp").glob("*")) == []

    @staticmethod
    def age(area: Path) -> None:
        """Files that a writer left on their way in go once they are a day old: make them so."""
        for path in area.glob("*/**/tmp/*"):
            os.utime(path, (time.time() - 2 * 86400,) * 2)


def bare(adapter: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same however often it was begun; a code may be another where its generator is."""
    return adapter | {"code": adapter["code"] is not None, "output": adapter["output"] is not None}


# -- scenes: each prepares its area and says what is done ----


def new_ingest(stage: Stage, area: Path) -> Doing:
    return command("ingest into a new registry", "ingest", stage.folder / "some")


def ingest(stage: Stage, area: Path) -> Doing:
    stage.done(area, command("ingest", "ingest", stage.folder / "some"))
    return command("ingest", "ingest", stage.folder / "more")


def compress(stage: Stage, area: Path) -> Doing:
    stage.done(area, command("ingest", "ingest", stage.folder / "some"))
    return command("compress", "compress", "--arch", "mean", "--tolerance", 0.4)


def compressed(stage: Stage, area: Path) -> None:
    stage.done(area, compress(stage, area))


def prunable(stage: Stage, area: Path) -> None:
    compressed(stage, area)
    stage.done(area, command("replicate", "replicate", "{area}/copy"))


def prune(stage: Stage, area: Path) -> Doing:
    prunable(stage, area)
    return command("prune --apply", "prune", "--apply")


def sweep(stage: Stage, area: Path) -> Doing:
    stage.done(area, prune(stage, area))
    return command("prune --sweep", "prune", "--sweep", "--grace-days", 0)


def collect(stage: Stage, area: Path) -> Doing:
    stage.done(area, command("ingest", "ingest", stage.folder / "some"))
    with Registry.open(area / "home", create=False) as registry:
        for number in range(3):
            registry.blobs.put_bytes(f"nobody's {number}".encode())
    return command("gc", "gc", "--apply", "--grace-days", 0)


def upgrade(stage: Stage, area: Path) -> Doing:
    compressed(stage, area)
    move_schema(backend_of(area / "home"), "0002")
    return command("migrate", "migrate")


def move(stage: Stage, area: Path) -> Doing:
    compressed(stage, area)
    return command("migrate --store", "migrate", "--store", "file://{area}/store")


def import_(stage: Stage, area: Path) -> Doing:
    compressed(stage, area)
    bundle = stage.folder / "some.lorareg"
    bundle.unlink(missing_ok=True)
    stage.done(area, command("export", "export", "-o", bundle))
    shutil.rmtree(area / "home")
    stage.done(area, command("ingest", "ingest", stage.folder / "more"))
    return command("import", "import", bundle)


def push(stage: Stage, area: Path) -> Doing:
    stage.done(area, command("ingest", "ingest", stage.folder / "some"))
    (stage.folder / "commit").write_bytes(faults.commit_of(stage.folder / "more" / "a"))
    with Registry.open(area / "home", create=False) as registry:
        token = create_token(registry, "writer", "write", "*")[1]
    places = {"home": "{area}/home", "cache": "{area}/cache", "body": str(stage.folder / "commit")}
    return Doing("push", "push", places | {"task": "a", "token": token})


SCENES: dict[str, Callable[[Stage, Path], Doing]] = {
    "ingest into a new registry": new_ingest,
    "ingest": ingest,
    "compress": compress,
    "prune --apply": prune,
    "prune --sweep": sweep,
    "gc --apply": collect,
    "migrate": upgrade,
    "migrate --store": move,
    "import": import_,
    "a push to serve": push,
}


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A stage in a folder, with adapters to take in."""
    faults.write_adapters(folder / "some", ["a", "b"])
    faults.write_adapters(folder / "more", ["a", "c"], seed=1)
    with faults.running(folder, rehearsal(folder)) as running:
        yield Stage(running, folder)


def rehearsal(folder: Path) -> list[dict[str, Any]]:
    """Each command of the scenes once, on registries that nobody needs."""
    area, bundle = folder / "rehearsed", folder / "rehearsed.lorareg"
    old, other = area / "old", area / "other"
    with Registry.open(area / "home", create=True) as registry:
        token = create_token(registry, "writer", "write", "*")[1]
    Registry.open(old, create=True).close()
    move_schema(backend_of(old), "0002")
    (folder / "commit").write_bytes(faults.commit_of(folder / "more" / "a"))
    commands: list[tuple[Path, tuple[object, ...]]] = [
        (area / "home", ("ingest", folder / "some")),
        (area / "home", ("compress", "--arch", "mean", "--tolerance", 0.4)),
        (area / "home", ("replicate", area / "copy")),
        (area / "home", ("export", "-o", bundle)),
        (other, ("ingest", folder / "more")),
        (other, ("import", bundle)),
        (other, ("migrate", "--store", f"file://{area}/store")),
        (old, ("migrate",)),
        (area / "home", ("prune", "--apply")),
        (area / "home", ("prune", "--sweep", "--grace-days", 0)),
        (area / "home", ("gc", "--apply", "--grace-days", 0)),
    ]
    pushed = {"home": str(area / "home"), "cache": str(area / "cache"), "body": str(folder / "commit")}
    return [
        *(
            {"do": "run", "argv": [*map(str, argv), "--home", str(home), "--json", "--quiet"]}
            for home, argv in commands
        ),
        {"do": "push", "task": "a", "token": token} | pushed,
        {"do": "looks", "homes": [str(area / "home"), str(other)]},
    ]
