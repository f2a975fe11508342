"""Making up the crew that was asked for: without torch where that is this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorareg.compress.crew.solo import Crew, Solo
from lorareg.compress.progress import Reporter
from lorareg.registry.errors import MissingExtraError

LAUNCHED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun and accelerate set, beside WORLD_SIZE."""


def is_launched() -> bool:
    """Whether this process was started as one of several, by `torchrun`, say, or `accelerate launch`."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and all(name in os.environ for name in LAUNCHED)


def is_worker() -> bool:
    """Whether another process leads."""
    return is_launched() and os.environ["RANK"] != "0"


@contextmanager
def crew_of(nproc: int, home: Path, reporter: Reporter) -> Iterator[Crew]:
    """The processes that share the work: those this one was launched with, else `nproc` on this machine.

    Raises:
        MissingExtraError: there are several, and torch is not installed.
        LostRankError: one does not start.
    """
    if nproc == 1 and not is_launched():
        yield Solo(reporter)
        return
    rooms = _rooms()
    ranks = rooms.ranks.join() if is_launched() else rooms.ranks.launch(nproc, home)
    try:
        yield rooms.leader.Leader(ranks, reporter)
    except BaseException:
        ranks.abandon()
        raise
    ranks.end()


def work_for_leader(home: Path | None) -> None:
    """Be a worker, until the process that leads has no more orders.

    Raises:
        MissingExtraError: torch is not installed.
    """
    rooms = _rooms()
    ranks = rooms.ranks.join()
    rooms.worker.work(ranks, home)
    ranks.end()


def _rooms() -> Any:
    try:
        from lorareg.compress import crew
        from lorareg.compress.crew import leader, ranks, worker  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            feature="Sharing work among processes", package=error.name or "torch", extra="train"
        ) from error
    return crew
