"""Encoding a group wave after wave, and recording each adapter as soon as its code is made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.extras import is_reference, pack_extras
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.course import Course
from lorareg.compress.contracts.gate import Ask
from lorareg.compress.contracts.rate import Budget, plan_budget
from lorareg.compress.contracts.source import Source
from lorareg.compress.crew.jobs import Job, Made
from lorareg.compress.crew.solo import CodingTeam
from lorareg.compress.generators.generator import Int8
from lorareg.compress.materialize import restore_weights
from lorareg.compress.planning.coordinates import EMPTY
from lorareg.compress.planning.team import Trial
from lorareg.compress.progress import Reporter
from lorareg.registry.errors import IntegrityError
from lorareg.registry.store import Registry
from lorareg.registry.types import Adapter, Cohort, Generator

CLOSE_TO_BUDGET = 0.9
"""Codes that take less than this share of a budget, or exceed it by as much, are worth a message."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A generator that is recorded, and what it takes to draw each adapter of a group."""

    record: Generator
    loaded: LoadedGenerator
    file: bytes
    latents: Sequence[Int8]
    conditions: Sequence[Int8]

    def inputs(self, index: int) -> tuple[Int8, Int8]:
        """One adapter's latent and condition."""
        return self.latents[index], self.conditions[index]


class Recorder:
    """Brings the adapters of groups of one cohort under one contract."""

    def __init__(
        self, registry: Registry, cohort: Cohort, contract: Contract, reporter: Reporter, messages: list[str]
    ) -> None:
        """What the user should hear of it is added to `messages`."""
        self.registry, self.cohort, self.contract = registry, cohort, contract
        self.reporter, self.messages = reporter, messages

    def record_all(
        self,
        tasks: Sequence[Source],
        team: CodingTeam,
        drawn: Drawn | None,
        ask: Ask,
        generator_bytes: float = 0.0,
    ) -> int:
        """Encode and record each; gives the number of codes that use the generator.

        Args:
            tasks: the adapters.
            team: those who encode them.
            drawn: the generator they are encoded against, if any.
            ask: what the first are asked.
            generator_bytes: taken from the budget, where there is one.
        """
        users, spent, share = 0, 0, self.contract.budget
        total = None if share is None else share * sum(len(t.original.data) for t in tasks) - generator_bytes
        budget = None if total is None else self._plan_budget(team, drawn, ask, len(tasks), total)
        course = Course(self.contract, ask.relative_error, ask.step, budget)
        record, loaded = (drawn.record, drawn.loaded) if drawn is not None else (None, None)
        self.reporter.start(f"encoding {self.cohort.name}", len(tasks))
        for wave in course.waves(len(tasks)):
            ask, outcomes = course.ask(), []
            jobs = [Job(i, ask, *drawn.inputs(i)) if drawn is not None else Job(i, ask) for i in wave]
            for index, made in zip(wave, team.codes(jobs, record, loaded), strict=True):
                outcomes.append(made.outcome)
                if made.encoding is None:
                    ref = tasks[index].adapter.ref
                    self.messages.append(f"{ref} stays as it is: another code would not be smaller")
                    self.reporter.advance(1)
                    continue
                record_code(self.registry, tasks[index], made)
                users += made.encoding.generator_id is not None
                spent += made.encoding.size_bytes
                percent = 100 * made.encoding.size_bytes / made.encoding.output_bytes
                self.reporter.advance(1, percent=percent, error=made.encoding.fidelity["relative_error"])
            course.learn(ask, outcomes)
        self.reporter.finish()
        if total is not None:
            self._judge_budget(spent, max(total, 0.0), generator_bytes)
        return users

    def _plan_budget(self, team: CodingTeam, drawn: Drawn | None, ask: Ask, count: int, total_bytes: float) -> Budget:
        """The tolerance at which the codes of all together take so many bytes."""

        def sizes_at(indices: Sequence[int], tolerance: float) -> list[int]:
            inputs = [drawn.inputs(i) if drawn is not None else (EMPTY, EMPTY) for i in indices]
            trials = [Trial(i, tolerance, None, *own) for i, own in zip(indices, inputs, strict=True)]
            return [size.code_bytes for size in team.sizes(b"" if drawn is None else drawn.file, trials)]

        return plan_budget(count, sizes_at, total_bytes, ask.relative_error, tuned=self.contract.distill)

    def _judge_budget(self, spent: int, budget: float, generator_bytes: float) -> None:
        """Say where a budget could not be met, or not be used up."""
        if spent > budget / CLOSE_TO_BUDGET:
            self.messages.append(
                f"the budget is out of reach: codes take {spent} bytes and the generator {generator_bytes:.0f}, "
                f"and it leaves {budget:.0f} for codes; give more, or --arch none or mean"
            )
        elif spent < CLOSE_TO_BUDGET * budget:
            self.messages.append(
                f"the budget is not used up: codes take {spent} of {budget:.0f} bytes, and more would not bring the "
                "error below 0.1%; --tolerance 0 keeps adapters as they are"
            )


def record_code(registry: Registry, source: Source, made: Made) -> None:
    """Make a code, which is stored, decoded and measured already, its adapter's encoding, with its certificate.

    What the weights file has beside factors is stored first, one adapter after another, since one's may be kept as
    a difference to another's: it is the adapter's, whatever codes it has. With it the code is decoded once more.

    Raises:
        IntegrityError: what was stored decodes to something else than was measured.
    """
    assert made.encoding is not None
    assert made.proof is not None
    adapter = source.adapter
    if made.has_extras:
        find = partial(_reference, registry, adapter)
        registry.put_files(adapter, pack_extras(source.original.extras, source.original.layout, find))
        restore_weights(registry, adapter, made.encoding)
    registry.record_encoding(made.encoding, made.proof)


def _reference(registry: Registry, adapter: Adapter, path: str) -> bytes | None:
    """What the first other adapter of the cohort that keeps it whole has at a path of extras."""
    others = (
        "SELECT sha256, MIN(adapter_id) AS first FROM adapter_file WHERE path = :path AND adapter_id <> :id "
        "AND adapter_id IN (SELECT id FROM adapter WHERE cohort_id = :cohort_id) GROUP BY sha256 ORDER BY first"
    )
    for row in registry.fetch(others, path=path, id=adapter.id, cohort_id=adapter.cohort_id):
        with suppress(IntegrityError):  # a damaged one is no reference; `check` tells of it
            data = registry.blobs.get(row["sha256"])
            if is_reference(data):
                return data
    return None
