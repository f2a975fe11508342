"""Generators of other cohorts: what adapters of several layouts that began alike can share.

Adapters of one base model may differ in a scale, a dtype, a saved head or a magnitude, or in rank and modules, and
still have begun where those of another cohort did: from one seed, or from the base model's own singular vectors
(PiSSA). A cohort of few then has nothing to pay for: the generator is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.contracts.source import Source
from lorareg.compress.factors.weights import Factors
from lorareg.compress.materialize import load_generator
from lorareg.compress.planning.coordinates import covers
from lorareg.registry.damage import Damage
from lorareg.registry.errors import IntegrityError
from lorareg.registry.store import Registry
from lorareg.registry.types import Cohort, Generator, Layout

MOST_LENDERS = 8
"""Generators of other cohorts that are looked at, for they are held in memory."""


@dataclass(frozen=True, slots=True)
class Lender:
    """A generator of another cohort of the base model."""

    cohort: Cohort
    record: Generator
    loaded: LoadedGenerator
    file: bytes

    def covers(self, layout: Layout, factors: Sequence[Factors]) -> bool:
        """Whether an adapter of another layout began where the generator's own did."""
        generator = self.loaded.generator
        return generator.coordinates == "shared" and covers(generator, factors, self.loaded.overlap(layout))

    def covered_share(self, layout: Layout) -> float:
        """The share of a layout's weights that it draws."""
        overlap = self.loaded.overlap(layout)
        return 1.0 if overlap is None else overlap.covered_share


def find_lenders(
    registry: Registry, cohort: Cohort, may_use: Callable[[Generator], bool], damage: Damage
) -> list[Lender]:
    """The generators in use of other cohorts of the base model, those of most adapters first, past damaged rows."""
    others = (other for other in registry.cohorts(damage) if other.base_model == cohort.base_model)
    cohorts = {other.id: other for other in others if other.id != cohort.id}
    records = {record.id: record for record in registry.generators(damage=damage)}
    users = (
        "SELECT generator_id, COUNT(*) AS users FROM encoding WHERE superseded_at IS NULL AND generator_id IS NOT NULL "
        "GROUP BY generator_id ORDER BY users DESC, generator_id"
    )
    lenders: list[Lender] = []
    for row in registry.fetch(users) if cohorts else ():
        record = records.get(row["generator_id"])
        if record is None or record.cohort_id not in cohorts or not may_use(record):
            continue
        with suppress(IntegrityError):  # its own cohort's run tells of the damage
            file = registry.blobs.get(record.sha256)
            lenders.append(Lender(cohorts[record.cohort_id], record, load_generator(registry, record), file))
        if len(lenders) == MOST_LENDERS:
            break
    return lenders


def by_lender(
    lenders: Sequence[Lender], layout: Layout, group: Sequence[Source]
) -> list[tuple[Lender | None, list[Source]]]:
    """A group in parts: those that the first lender covers, the next, and the rest."""
    parts: dict[int, list[Source]] = {}
    for task in group:
        factors = task.original.factors if lenders else ()
        covering = (i for i, lender in enumerate(lenders) if lender.covers(layout, factors))
        parts.setdefault(next(covering, len(lenders)), []).append(task)
    return [(lenders[i] if i < len(lenders) else None, part) for i, part in sorted(parts.items())]
