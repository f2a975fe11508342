"""Crews, and the one of this process alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.contracts.source import Source
from lorareg.compress.crew.jobs import Job, Made, Workplace, one_thread
from lorareg.compress.generators.group import Group
from lorareg.compress.planning.team import Alone, Size, Team, Trained, Trial
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Generator, Layout


class CodingTeam(Team, Protocol):
    """A team that makes codes as well."""

    def codes(self, jobs: Sequence[Job], record: Generator | None, loaded: LoadedGenerator | None) -> Iterator[Made]:
        """What each job came to, in order; `record` is the row of the generator `loaded`."""


class Crew(Protocol):
    """Makes up a team for each group of adapters."""

    def team(self, layout: Layout, sources: Sequence[Source], workplace: Workplace) -> CodingTeam:
        """Those who work on a group; `workplace` is this process's own."""


@dataclass(frozen=True, slots=True)
class Solo:
    """The crew of this process alone."""

    reporter: Reporter

    def team(self, layout: Layout, sources: Sequence[Source], workplace: Workplace) -> CodingTeam:
        return SoloTeam(layout, sources, workplace, self.reporter)


@dataclass(frozen=True, slots=True)
class SoloTeam:
    """This process, working on one group."""

    layout: Layout
    sources: Sequence[Source]
    workplace: Workplace
    reporter: Reporter

    def sizes(self, file: bytes, trials: Sequence[Trial], drawn: Layout | None = None) -> list[Size]:
        with one_thread():
            return self._alone.sizes(file, trials, drawn)

    def train(self, group: Group, config: Any, checkpoint: Path) -> Trained:
        return self._alone.train(group, config, checkpoint)

    def codes(self, jobs: Sequence[Job], record: Generator | None, loaded: LoadedGenerator | None) -> Iterator[Made]:
        for job in jobs:
            yield self.workplace.make(self.sources[job.index], job, loaded, None if record is None else record.id)

    @property
    def _alone(self) -> Alone:
        return Alone(self.layout, [source.original for source in self.sources], self.reporter)
