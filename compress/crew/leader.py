"""The crew of several processes, as rank 0 sees it: it posts orders, takes part in them, gathers what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.contracts.source import Source
from lorareg.compress.crew.jobs import Job, Made, Workplace, one_thread
from lorareg.compress.crew.messages import (
    CODES,
    SIZES,
    TRAIN,
    Setting,
    error_from,
    job_arrays,
    pack_table,
    trial_arrays,
)
from lorareg.compress.crew.ranks import Arrays, Order, Ranks
from lorareg.compress.crew.solo import CodingTeam, SoloTeam
from lorareg.compress.generators import conv1d_decoder
from lorareg.compress.generators.checkpoint import Checkpoint
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.train import train_generator
from lorareg.compress.planning.team import Size, Trained, Trial, load_file, size_of
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Generator, Layout

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Leader:
    """The crew that rank 0 leads."""

    ranks: Ranks
    reporter: Reporter

    def team(self, layout: Layout, sources: Sequence[Source], workplace: Workplace) -> CodingTeam:
        return LeaderTeam(self.ranks, SoloTeam(layout, sources, workplace, self.reporter))


@dataclass(frozen=True, slots=True)
class LeaderTeam:
    """All ranks, working on one group."""

    ranks: Ranks
    own: SoloTeam

    def sizes(self, file: bytes, trials: Sequence[Trial], drawn: Layout | None = None) -> list[Size]:
        loaded = load_file(file, drawn or self.own.layout)

        def measure(place: int) -> Size:
            with one_thread():
                return size_of(self.own.sources[trials[place].index].original, loaded, trials[place])

        arrays = {**trial_arrays(trials), "file": np.frombuffer(file, np.uint8)}
        settings = {**self._setting(trial.index for trial in trials), "drawn": drawn and drawn.to_json()}
        order = self.ranks.post(SIZES, settings, arrays)
        return list(self._shared(order, len(trials), measure, lambda values: Size(**values)))

    def codes(self, jobs: Sequence[Job], record: Generator | None, loaded: LoadedGenerator | None) -> Iterator[Made]:
        generator_id = None if record is None else record.id

        def make(place: int) -> Made:
            job = jobs[place]
            return self.own.workplace.make(self.own.sources[job.index], job, loaded, generator_id)

        settings = {**self._setting(job.index for job in jobs), "generator_id": generator_id}
        order = self.ranks.post(CODES, settings, job_arrays(jobs))
        yield from self._shared(order, len(jobs), make, Made.from_dict)

    def train(self, group: Group, config: Any, checkpoint: Path) -> Trained:
        if group_needs_whole_batches(config.arch) or self.ranks.trainers is None:
            return self.own.train(group, config, checkpoint)
        arrays: Arrays = {"file": np.frombuffer(pack_table(group), np.uint8), "conditions": np.stack(group.conditions)}
        settings = {
            **self._setting(range(len(self.own.sources))),
            "config": asdict(config),
            "encoder": group.encoder,
            "tolerance": group.tolerance,
        }
        self.ranks.post(TRAIN, settings, arrays)
        with self.ranks.together():
            return train_generator(group, config, Checkpoint(checkpoint), self.own.reporter, self.ranks.trainers)

    def _setting(self, indices: Iterable[int]) -> dict[str, Any]:
        return Setting.of(self.own, indices).to_dict()

    def _shared(
        self, order: Order, count: int, do: Callable[[int], Result], read: Callable[[dict[str, Any]], Result]
    ) -> Iterator[Result]:
        """Results in order; jobs that nobody has taken are done here while the next result is not there."""
        done: dict[int, Result] = {}
        left = True
        for place in range(count):
            while left and place not in done and not self.ranks.is_done(order, place):
                taken = self.ranks.take(order)
                left = taken < count
                if left:
                    done[taken] = do(taken)
            if place in done:
                yield done.pop(place)
                continue
            result = self.ranks.result(order, place)
            if "error" in result:
                raise error_from(result["error"])
            yield read(result)


def group_needs_whole_batches(arch: str) -> bool:
    """Whether a network cannot be trained in parts: batch norm takes its statistics from all of a batch."""
    return arch == conv1d_decoder.NAME
