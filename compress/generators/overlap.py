"""What a generator of one layout has for an adapter of another: the modules both have, at the ranks both have.

Strongest components come first in every coordinate system but `raw`, so that a smaller rank takes the first rows of a
larger one. What a generator does not draw is predicted as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators.prediction import ModulePrediction, Prediction
from lorareg.registry.types import Layout, Slot


@dataclass(frozen=True, slots=True)
class Overlap:
    """Where the modules of `target` are in `source`, the generator's layout."""

    source: Layout
    target: Layout
    places: tuple[int | None, ...]  # one a module of `target`

    @property
    def covered_share(self) -> float:
        """The share of the target's factor weights whose modules the generator draws."""
        counts = [a.weight_count + b.weight_count for a, b in _modules(self.target)]
        found = (count for count, place in zip(counts, self.places, strict=True) if place is not None)
        return sum(found) / max(sum(counts), 1)

    def prediction(self, drawn: Prediction) -> Prediction:
        """What was drawn for the generator's own layout, as a prediction of the target."""
        modules = []
        for place, (a, b) in zip(self.places, _modules(self.target), strict=True):
            if place is None:
                modules.append(ModulePrediction(np.zeros(b.shape), np.zeros(a.shape), 0, 0))
                continue
            own, rank = drawn.modules[place], a.shape[0]
            modules.append(
                ModulePrediction(_with_rows(own.b.T, rank).T, _with_rows(own.a, rank), own.b_exponent, own.a_exponent)
            )
        return Prediction(tuple(modules))

    def narrowed(self, modules: Sequence[Factors]) -> list[Factors | None]:
        """Factors of the generator's own layout as the target has them; None where it has no such module."""
        ranks = [a.shape[0] for a, _ in _modules(self.target)]
        return [
            None if place is None else _with_rank(modules[place], rank)
            for place, rank in zip(self.places, ranks, strict=True)
        ]

    def widened(self, modules: Sequence[Factors]) -> list[Factors]:
        """Factors of the target in the generator's own layout, zero where the target has nothing.

        Zero factors have zero weight in every fit, since a row weighs what its partner does.
        """
        given = {place: factors for place, factors in zip(self.places, modules, strict=True) if place is not None}
        return [
            _with_rank(given[place], a.shape[0])
            if place in given
            else Factors(b=np.zeros(b.shape), a=np.zeros(a.shape))
            for place, (a, b) in enumerate(_modules(self.source))
        ]


@lru_cache(maxsize=64)
def overlap_of(source: Layout, target: Layout) -> Overlap:
    """Modules are the same where name and both dimensions are."""
    places = {_identity(a, b): place for place, (a, b) in enumerate(_modules(source))}
    return Overlap(source, target, tuple(places.get(_identity(a, b)) for a, b in _modules(target)))


def _modules(layout: Layout) -> list[tuple[Slot, Slot]]:
    return list(zip(layout.slots[0::2], layout.slots[1::2], strict=True))


def _identity(a: Slot, b: Slot) -> tuple[str, int, int]:
    return a.module, a.shape[1], b.shape[0]


def _with_rank(factors: Factors, rank: int) -> Factors:
    return Factors(b=_with_rows(factors.b.T, rank).T, a=_with_rows(factors.a, rank))


def _with_rows(rows: Float64, count: int) -> Float64:
    """The first rows, or zeros after all of them."""
    return np.pad(rows[:count], ((0, max(0, count - len(rows))), (0, 0)))
