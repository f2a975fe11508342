"""Adapters in the coordinates of the group or generator they are coded with (see `canonical`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.canonical import Coordinates, aligned, balanced, group_by_init
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import Generator


def coordinates_of(originals: Sequence[Original]) -> Coordinates:
    """The coordinates a group is learned in: its own where all share their random A."""
    return "shared" if len(group_by_init(o.factors for o in originals)) == 1 else "balanced"


def in_coordinates(factors: Sequence[Factors], generator: Generator) -> list[Factors]:
    """An adapter in a generator's coordinates."""
    if generator.coordinates == "raw":
        return list(factors)
    if generator.coordinates == "balanced":
        return [balanced(f) for f in factors]
    anchors = [Factors(b=b.real.T, a=a.real) for a, b in zip(generator.means[0::2], generator.means[1::2], strict=True)]
    return [aligned(f, anchor) for f, anchor in zip(factors, anchors, strict=True)]


@dataclass(frozen=True, slots=True)
class Turned:
    """Adapters in a generator's coordinates. Each is read when its turn comes, so that they take no memory."""

    originals: Sequence[Original]
    generator: Generator

    def __len__(self) -> int:
        return len(self.originals)

    def __iter__(self) -> Iterator[list[Factors]]:
        return (in_coordinates(original.factors, self.generator) for original in self.originals)


def covers(generator: Generator, factors: Sequence[Factors]) -> bool:
    """Whether an adapter belongs to the group a generator was made for: its A is close to the mean's."""
    if generator.coordinates != "shared":
        return True
    moved = in_coordinates(factors, generator)
    means = [mean.real for mean in generator.means[0::2]]
    inner = math.fsum(float(np.sum(f.a * mean)) for f, mean in zip(moved, means, strict=True))
    norms = math.fsum(float(np.sum(f.a**2)) for f in moved), math.fsum(float(np.sum(mean**2)) for mean in means)
    return inner > 0.5 * math.sqrt(norms[0] * norms[1]) > 0
