"""A disk without a byte left: errors are clear, everything can be read, and deleting still frees space."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import KILL, SYNC, Ended, Faults, command

from lorareg.registry.store import Registry

DISK_BYTES = 12 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk takes the right to mount one")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Faults]:
    folder = tmp_path / "running"
    folder.mkdir()
    with faults.running(folder) as made:
        yield made


def fill(disk: Path) -> None:
    """Leave not a byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(4096))
        except OSError:
            assert shutil.disk_usage(disk).free == 0


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_full_disk(state: str, disk: Path, running: Faults, tmp_path: Path, torture: Any) -> None:
    torture.promise("on a full disk everything can be read, errors are clear, and prune and gc free space", fixed=2)
    faults.write_adapters(tmp_path / "some", ["a", "b"])
    faults.write_adapters(tmp_path / "more", ["c"], seed=1)

    def run(*argv: object, **fault: Any) -> Ended:
        return command(str(argv[0]), *argv).run(running, disk, **fault)

    def done(*argv: object) -> None:
        ended = run(*argv)
        assert ended.exit == 0, f"{argv}: {ended.err}"

    done("ingest", tmp_path / "some")
    done("compress", "--arch", "mean", "--tolerance", 0.4)
    done("replicate", tmp_path / "copy")
    with Registry.open(disk / "home", create=False) as registry:
        registry.blobs.put_bytes(os.urandom(500_000))  # nobody's
    if state == "killed":  # with rows in the WAL that are not in the database's file yet
        syncs = run("tag", "a", "best", kinds=SYNC).steps
        assert run("tag", "a", "good", action=KILL, nth=syncs - 1, kinds=SYNC).killed  # the last two are a checkpoint's
        assert (disk / "home" / "registry.sqlite-wal").stat().st_size > 0
    for number in range(torture.runs(1, 20)):
        fill(disk)
        reads: list[tuple[object, ...]] = [
            ("list",),
            ("show", "a"),
            ("check", "--read-data"),
            ("materialize", "a", "-o", tmp_path / f"{number}-a"),
            ("certificate", "a"),
            ("search", "text"),
            ("export", "-o", tmp_path / f"{number}.lorareg"),
            ("report",),
            ("verify", "a"),
            ("prune",),
            ("gc",),
            ("list",),
        ]
        for argv in reads:
            done(*argv)
        fill(disk)
        for argv in [("ingest", tmp_path / "more"), ("tag", "a", "other"), ("compress", "--retrain")]:
            ended = run(*argv)
            assert ended.exit == 74, f"{argv}: {ended.exit} {ended.err}"
            assert "ree some space" in ended.err
        adapters = running.look(disk / "home")["adapters"]
        assert len(adapters) == 2
        assert ("good" in adapters["a@1"]["tags"]) == (state == "killed")
        fill(disk)
        before = shutil.disk_usage(disk).free
        if number == 0:
            done("prune", "--apply")
            done("prune", "--sweep", "--grace-days", 0)
        done("gc", "--apply", "--grace-days", 0)
        if number == 0:
            assert shutil.disk_usage(disk).free - before >= 400_000  # of which the reserve may take a little
        found = running.look(disk / "home")
        assert (found["errors"], found["adapters"]["a@1"]["original"]) == ([], "pruned")
    (disk / "filler").unlink()
    done("ingest", tmp_path / "more")
    torture.held(torture.runs(1, 20))
