"""Adapters in the coordinates of the group or generator they are coded with (see `canonical`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Draft, Original
from lorareg.compress.factors.canonical import SAME_INIT_COSINE, Coordinates, aligned, balanced, group_by_init
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import Generator, Int8
from lorareg.compress.generators.linear_basis import fit_latent
from lorareg.compress.generators.overlap import Overlap

EMPTY = np.zeros(0, np.int8)


def coordinates_of(originals: Sequence[Original]) -> Coordinates:
    """The coordinates a group is learned in: its own where all share their random A."""
    return "shared" if len(group_by_init(o.factors for o in originals)) == 1 else "balanced"


def in_coordinates(factors: Sequence[Factors], generator: Generator, overlap: Overlap | None = None) -> list[Factors]:
    """An adapter in a generator's coordinates; `overlap` is with its layout, where that is not the generator's own."""
    if generator.coordinates == "raw":
        return list(factors)
    if generator.coordinates == "balanced":
        return [balanced(f) for f in factors]
    anchors = _anchors(generator, overlap)
    return [balanced(f) if anchor is None else aligned(f, anchor) for f, anchor in zip(factors, anchors, strict=True)]


def _anchors(generator: Generator, overlap: Overlap | None) -> Sequence[Factors | None]:
    """The mean of each module, where the generator has one."""
    pairs = zip(generator.means[0::2], generator.means[1::2], strict=True)
    anchors = [Factors(b=b.real.T, a=a.real) for a, b in pairs]
    return anchors if overlap is None else overlap.narrowed(anchors)


def latent_of(generator: Generator, factors: Sequence[Factors], overlap: Overlap | None = None) -> Int8:
    """The latent of an adapter against a generator of tables, which needs no gradient; see `in_coordinates`."""
    if generator.latent_size == 0:
        return EMPTY
    moved = in_coordinates(factors, generator, overlap)
    return fit_latent(generator, moved if overlap is None else overlap.widened(moved))


def draft_of(loaded: LoadedGenerator, original: Original, latent: Int8, condition: Int8) -> Draft:
    """What a generator contributes to one adapter."""
    generator, overlap = loaded.generator, loaded.overlap(original.layout)
    used = condition if generator.condition_size else EMPTY
    return Draft(loaded, latent, used, lambda: in_coordinates(original.factors, generator, overlap))


@dataclass(frozen=True, slots=True)
class Turned:
    """Adapters in a generator's coordinates and layout. Each is read when its turn comes: they take no memory."""

    originals: Sequence[Original]
    generator: Generator
    overlap: Overlap | None = None  # with their layout, where that is not the generator's own

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, part: slice) -> Turned:
        return Turned(self.originals[part], self.generator, self.overlap)

    def __iter__(self) -> Iterator[list[Factors]]:
        for original in self.originals:
            moved = in_coordinates(original.factors, self.generator, self.overlap)
            yield moved if self.overlap is None else self.overlap.widened(moved)


def covers(generator: Generator, factors: Sequence[Factors], overlap: Overlap | None = None) -> bool:
    """Whether an adapter began where those did that a generator was made for: its A is close to the mean's.

    Of an adapter of another layout the modules count that the generator draws; with none of them it covers nothing.
    """
    if overlap is not None and not overlap.covered_share:
        return False
    if generator.coordinates != "shared":
        return True
    moved, anchors = in_coordinates(factors, generator, overlap), _anchors(generator, overlap)
    pairs = [(f.a, anchor.a) for f, anchor in zip(moved, anchors, strict=True) if anchor is not None]
    inner = math.fsum(float(np.sum(a * mean)) for a, mean in pairs)
    norms = math.fsum(float(np.sum(a**2)) for a, _ in pairs), math.fsum(float(np.sum(mean**2)) for _, mean in pairs)
    return inner > SAME_INIT_COSINE * math.sqrt(norms[0] * norms[1]) > 0
