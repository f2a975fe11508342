"""Deciding how a group of adapters is stored: which generator, if any, makes the total smallest.

Everything is judged by real codes of a few sample adapters at the tolerance asked for, times the
number of adapters, plus the generator's file. The mean table's precision is searched the same way:
coarser entries make the file smaller and every residual a little larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from lorareg.compress import conv1d_decoder, mean_decoder
from lorareg.compress.canonical import Coordinates, aligned, balanced, group_by_init, shared_frames, turned
from lorareg.compress.codecs import LoadedGenerator
from lorareg.compress.encode import Draft, Original, encode
from lorareg.compress.fixed_point import ACTIVATION_EXPONENT
from lorareg.compress.generator import MAX_SHIFT, Generator, Int8, pack_generator
from lorareg.compress.grid import factor_rows
from lorareg.compress.group import Group
from lorareg.compress.progress import Reporter
from lorareg.compress.tensors import IntTensor, round_tensor
from lorareg.compress.weights import Factors, Float64
from lorareg.registry.types import Layout, sha256_hex

SAMPLE_COUNT = 3
EMPTY = np.zeros(0, np.int8)


@dataclass(frozen=True, slots=True)
class Members:
    """Adapters to store together, and what decides how."""

    layout: Layout
    originals: Sequence[Original]
    conditions: Sequence[Int8]
    encoder: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How a group will be stored. Without a generator `loaded` is None and `latents` is empty."""

    loaded: LoadedGenerator | None
    file: bytes
    latents: Sequence[Int8]
    estimated_bytes: float  # generator and all codes
    step: float | None  # that served the samples: where to begin with the others
    metrics: dict[str, Any] = field(default_factory=dict)


class Trained(Protocol):
    """What training gives (see `train.Trained`)."""

    generator: Generator
    latents: list[Int8]
    metrics: dict[str, float]


Train = Callable[[str, Group], Trained]


def coordinates_of(originals: Sequence[Original]) -> Coordinates:
    """The coordinates a group is learned in: its own where all share their random A."""
    return "shared" if len(group_by_init([o.factors for o in originals])) == 1 else "balanced"


def in_coordinates(factors: Sequence[Factors], generator: Generator) -> list[Factors]:
    """An adapter in a generator's coordinates."""
    if generator.coordinates == "raw":
        return list(factors)
    if generator.coordinates == "balanced":
        return [balanced(f) for f in factors]
    anchors = [Factors(b=b.real.T, a=a.real) for a, b in zip(generator.means[0::2], generator.means[1::2], strict=True)]
    return [aligned(f, anchor) for f, anchor in zip(factors, anchors, strict=True)]


def covers(generator: Generator, factors: Sequence[Factors]) -> bool:
    """Whether an adapter belongs to the group a generator was made for: its A is close to the mean's."""
    if generator.coordinates != "shared":
        return True
    moved = in_coordinates(factors, generator)
    means = [mean.real for mean in generator.means[0::2]]
    inner = math.fsum(float(np.sum(f.a * mean)) for f, mean in zip(moved, means, strict=True))
    norms = math.fsum(float(np.sum(f.a**2)) for f in moved), math.fsum(float(np.sum(mean**2)) for mean in means)
    return inner > 0.5 * math.sqrt(norms[0] * norms[1]) > 0


class Planner:
    """Plans one group; keeps what its candidates share."""

    def __init__(self, members: Members, reporter: Reporter) -> None:
        """Bring every member into the group's coordinates."""
        self.members, self.reporter, self.layout = members, reporter, members.layout
        self.coordinates = coordinates_of(members.originals)
        factors = [original.factors for original in members.originals]
        if self.coordinates == "shared":
            frames = shared_frames(factors)
            self.turned = [[turned(f, q) for f, q in zip(modules, frames, strict=True)] for modules in factors]
        else:
            self.turned = [[balanced(f) for f in modules] for modules in factors]
        self.samples = sorted({round(q * (len(factors) - 1)) for q in np.linspace(0, 1, SAMPLE_COUNT)})

    def without_generator(self) -> Plan:
        """The residual codec alone."""
        return self._measured(self._plan(b"", [], None))

    def mean(self, hint: Plan) -> Plan:
        """The mean table alone, at the precision that makes the total smallest."""
        start = math.log2(hint.step) if hint.step else -8.0
        a_norm, b_norm = self._partner_norms()
        best = self._mean_at(round(start - math.log2(b_norm)), round(start - math.log2(a_norm)), hint.step)
        for factor in ("a", "b"):
            for direction in (1, -1):
                improved = True
                while improved:
                    exponents = {**best.metrics["exponents"]}
                    exponents[factor] += direction
                    candidate = self._mean_at(exponents["a"], exponents["b"], best.step)
                    improved = candidate.estimated_bytes < best.estimated_bytes
                    best = candidate if improved else best
        return best

    def trained(self, arch: str, mean: Plan, train: Train) -> Plan:
        """A network of architecture `arch`; `slots` adds to the mean table of `mean`."""
        assert mean.loaded is not None
        template = self._paper_template() if arch == conv1d_decoder.NAME else mean.loaded.generator
        members = self.members
        group = Group(
            layout=self.layout,
            coordinates=template.coordinates,
            encoder=members.encoder,
            adapters=[in_coordinates(original.factors, template) for original in members.originals],
            conditions=members.conditions,
            means=template.means,
            slot_exponents=template.slot_exponents,
            tolerance=members.tolerance,
        )
        result = train(arch, group)
        file = pack_generator(result.generator, self.layout)
        return self._plan(file, result.latents, mean.step, result.metrics)

    def _mean_at(self, a_exponent: int, b_exponent: int, step: float | None) -> Plan:
        rows = zip(*[factor_rows(modules) for modules in self.turned], strict=True)
        means, exponents = [], []
        for index, slot in enumerate(rows):
            mean = round_tensor(np.mean(slot, axis=0), (a_exponent, b_exponent)[index % 2])
            means.append(mean)
            exponents.append(_slot_exponent([matrix - mean.real for matrix in slot], mean.exponent))
        file = pack_generator(_table(self.coordinates, means, exponents), self.layout)
        plan = self._measured(self._plan(file, [EMPTY] * len(self.turned), step))
        return replace(plan, metrics={**plan.metrics, "exponents": {"a": a_exponent, "b": b_exponent}})

    def _paper_template(self) -> Generator:
        """Raw coordinates, one mean and one scale a slot: the paper's normalisation, taken over the group."""
        means, exponents = [], []
        adapters = [factor_rows(original.factors) for original in self.members.originals]
        for slot in zip(*adapters, strict=True):
            values = np.stack(slot)
            exponent = _power_of_two(float(values.std()))
            means.append(round_tensor(np.full((1, 1), values.mean()), exponent + ACTIVATION_EXPONENT))
            exponents.append(exponent)
        return _table("raw", means, exponents)

    def _partner_norms(self) -> tuple[float, float]:
        """Norms of a row of `a` and of a column of `b` that carry most of ΔW, scale included: medians over modules."""
        strongest = [(f, int(np.argmax(np.linalg.norm(f.b, axis=0)))) for i in self.samples for f in self.turned[i]]
        scale = float(np.median(np.abs(self.layout.scales))) or 1.0
        a = float(np.median([np.linalg.norm(f.a[k]) for f, k in strongest])) * scale
        b = float(np.median([np.linalg.norm(f.b[:, k]) for f, k in strongest])) * scale
        return max(a, 1e-12), max(b, 1e-12)

    def _measured(self, plan: Plan) -> Plan:
        """Tell the reporter of one more trial."""
        self.reporter.advance(1, estimated_kb=plan.estimated_bytes / 1e3)
        return plan

    def _plan(
        self, file: bytes, latents: Sequence[Int8], step: float | None, metrics: Mapping[str, Any] | None = None
    ) -> Plan:
        """Encode the samples with a generator file (or none, where it is empty) and extrapolate."""
        members = self.members
        loaded = LoadedGenerator.from_bytes(file, sha256_hex(file), self.layout) if file else None
        sizes = []
        for index in self.samples:
            original = members.originals[index]
            draft = draft_of(loaded, original, latents[index], members.conditions[index]) if loaded else None
            encoded = encode(original, draft, members.tolerance, step)
            sizes.append(len(encoded.code))
            step = encoded.step or step
        total = len(file) + float(np.mean(sizes)) * len(members.originals)
        return Plan(loaded, file, latents, total, step, dict(metrics or {}))


def draft_of(loaded: LoadedGenerator, original: Original, latent: Int8, condition: Int8) -> Draft:
    """What a generator contributes to one adapter."""
    generator = loaded.generator
    used = condition if generator.condition_size else EMPTY
    return Draft(loaded, latent, used, in_coordinates(original.factors, generator))


def _table(coordinates: Coordinates, means: Sequence[IntTensor], exponents: Sequence[int]) -> Generator:
    """A generator of means alone."""
    return Generator(
        arch=mean_decoder.NAME,
        coordinates=coordinates,
        encoder="",
        latent_size=0,
        condition_size=0,
        config={},
        slot_exponents=tuple(exponents),
        tensors={},
        means=tuple(means),
    )


def _slot_exponent(deviations: Sequence[Float64], mean_exponent: int) -> int:
    """The power of two nearest the deviations' size, within what can be added exactly to the mean."""
    wanted = _power_of_two(math.sqrt(float(np.mean([np.mean(d**2) for d in deviations]))))
    centre = mean_exponent - ACTIVATION_EXPONENT
    return min(max(wanted, centre - MAX_SHIFT), centre + MAX_SHIFT)


def _power_of_two(size: float) -> int:
    return round(math.log2(max(size, 2.0**-40)))
