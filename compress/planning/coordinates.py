"""Adapters in the coordinates of the group or generator they are coded with (see `canonical`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Draft, Original
from lorareg.compress.factors.canonical import Coordinates, aligned, balanced, group_by_init
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import Generator, Int8
from lorareg.compress.generators.linear_basis import fit_latent

EMPTY = np.zeros(0, np.int8)


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


def latent_of(generator: Generator, factors: Sequence[Factors]) -> Int8:
    """The latent of an adapter against a generator of tables, which needs no gradient."""
    if generator.latent_size == 0:
        return EMPTY
    return fit_latent(generator, in_coordinates(factors, generator))


def draft_of(loaded: LoadedGenerator, original: Original, latent: Int8, condition: Int8) -> Draft:
    """What a generator contributes to one adapter."""
    generator = loaded.generator
    used = condition if generator.condition_size else EMPTY
    return Draft(loaded, latent, used, lambda: in_coordinates(original.factors, generator))


@dataclass(frozen=True, slots=True)
class Turned:
    """Adapters in a generator's coordinates. Each is read when its turn comes, so that they take no memory."""

    originals: Sequence[Original]
    generator: Generator

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, part: slice) -> Turned:
        return Turned(self.originals[part], self.generator)

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
