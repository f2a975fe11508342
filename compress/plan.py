"""Deciding how a group of adapters is stored: which generator, if any, makes the total smallest.

Everything is judged by real codes of a few sample adapters at the tolerance asked for, times the
number of adapters, plus the generator's file. The mean table's precision is searched the same way:
coarser entries make the file smaller and every residual a little larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lorareg.compress import conv1d_decoder, linear_decoder, mean_decoder
from lorareg.compress.canonical import Coordinates, aligned, balanced, group_by_init, shared_frames, turned
from lorareg.compress.codecs import LoadedGenerator
from lorareg.compress.encode import Draft, Original, encode
from lorareg.compress.fixed_point import ACTIVATION_EXPONENT
from lorareg.compress.generator import MAX_SHIFT, Generator, Int8, pack_generator
from lorareg.compress.grid import factor_rows, rank_of, width_of
from lorareg.compress.group import Group
from lorareg.compress.linear_basis import find_basis, fit_latent
from lorareg.compress.progress import Reporter
from lorareg.compress.tensors import IntTensor, round_tensor
from lorareg.compress.weights import Factors, Float64
from lorareg.registry.types import Layout, sha256_hex

SAMPLE_COUNT = 3
MAX_LINEAR = 16
"""Most basis tables that are tried."""
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


class _Precision(NamedTuple):
    """Powers of two: the units of tables for a and for b."""

    a: int
    b: int


class Trained(Protocol):
    """What training gives (see `train.Trained`)."""

    generator: Generator
    latents: list[Int8]
    metrics: dict[str, float]


Train = Callable[[str, Group], Trained]


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
        """Bring every member into the group's coordinates; in single precision, they take a cohort's own bytes."""
        self.members, self.reporter, self.layout = members, reporter, members.layout
        self.coordinates = coordinates_of(members.originals)
        frames = shared_frames(o.factors for o in members.originals) if self.coordinates == "shared" else None
        count = len(members.originals)
        shapes = [(count, rank_of(self.layout, i), width_of(self.layout, i)) for i in range(len(self.layout.slots))]
        self.slots: list[NDArray[np.float32]] = [np.empty(shape, np.float32) for shape in shapes]
        for index, original in enumerate(members.originals):
            factors = original.factors
            moved = [turned(f, q) for f, q in zip(factors, frames, strict=True)] if frames else map(balanced, factors)
            for slot, rows in zip(self.slots, factor_rows(list(moved)), strict=True):
                slot[index] = rows
        self.samples = sorted({round(q * (count - 1)) for q in np.linspace(0, 1, SAMPLE_COUNT)})

    def at(self, tolerance: float) -> Planner:
        """The same group at another tolerance."""
        planner = copy(self)
        planner.members = replace(self.members, tolerance=tolerance)
        return planner

    def without_generator(self) -> Plan:
        """The residual codec alone."""
        return self._measured(self._plan(b"", [], None))

    def rough(self) -> Plan:
        """The better of no generator and a mean table of likely precision: two trials."""
        alone = self.without_generator()
        return min(alone, self._first_mean(alone), key=lambda plan: plan.estimated_bytes)

    def mean(self, hint: Plan) -> Plan:
        """The mean table alone, at the precision that makes the total smallest."""
        return self._descend(self._first_mean(hint))

    def _first_mean(self, hint: Plan) -> Plan:
        """The mean table about as precise as the residual's steps."""
        start = math.log2(hint.step) if hint.step else -8.0
        a_norm, b_norm = self._partner_norms()
        first = _Precision(round(start - math.log2(b_norm)), round(start - math.log2(a_norm)))
        return self._tables(first, 0, hint.step)

    def linear(self, mean: Plan) -> Plan:
        """The mean table and as many more as make the total smaller, or the best that was tried."""
        best: Plan | None = None
        for size in range(1, min(len(self.members.originals) - 1, MAX_LINEAR) + 1):
            candidate = self._tables((best or mean).metrics["precision"], size, mean.step)
            if best is None or candidate.estimated_bytes < best.estimated_bytes:
                best = candidate
            else:
                break
        assert best is not None
        worth_tuning = best.estimated_bytes < mean.estimated_bytes
        return self._descend(best) if worth_tuning else best

    def _descend(self, best: Plan) -> Plan:
        """Finer or coarser tables for a and for b, one power of two at a time, while the total falls."""
        for change in (_Precision(1, 0), _Precision(-1, 0), _Precision(0, 1), _Precision(0, -1)):
            while True:
                precision: _Precision = best.metrics["precision"]
                moved = _Precision(precision.a + change.a, precision.b + change.b)
                candidate = self._tables(moved, best.metrics["linear"], best.step)
                if candidate.estimated_bytes >= best.estimated_bytes:
                    break
                best = candidate
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

    def _tables(self, precision: _Precision, size: int, step: float | None) -> Plan:
        """The mean table and `size` basis tables, rounded to powers of two for a and for b."""
        exponents = [(precision.a, precision.b)[index % 2] for index in range(len(self.slots))]
        means = [round_tensor(slot.mean(axis=0, dtype=float), e) for slot, e in zip(self.slots, exponents, strict=True)]
        latents, tensors = [EMPTY] * len(self.members.originals), {}
        if size:
            basis = find_basis(self.slots, [mean.real for mean in means], self._row_weights(), size)
            tensors = {
                f"basis.{i}": round_tensor(table.reshape(-1, table.shape[-1]), exponent)
                for i, (table, exponent) in enumerate(zip(basis.tables, exponents, strict=True))
            }
        else:
            exponents = [_slot_exponent(slot, mean) for slot, mean in zip(self.slots, means, strict=True)]
        generator = _table(self.coordinates, means, exponents, tensors, size)
        if size:  # against the tables as rounded, not as found
            latents = [fit_latent(generator, self._member(i)) for i in range(len(latents))]
        file = pack_generator(generator, self.layout)
        plan = self._measured(self._plan(file, latents, step))
        return replace(plan, metrics={**plan.metrics, "precision": precision, "linear": size})

    def _row_weights(self) -> list[Float64]:
        """The weight (r, 1) of every row of every slot: the norm of its partner, over all adapters."""
        norms = [np.sqrt(np.mean(np.square(self._norms(i)), axis=0))[:, None] for i in range(len(self.slots))]
        return [norms[i ^ 1] for i in range(len(norms))]

    def _member(self, index: int) -> list[Factors]:
        """One adapter in the group's coordinates."""
        rows = [slot[index].astype(np.float64) for slot in self.slots]
        return [Factors(b=b.T, a=a) for a, b in zip(rows[0::2], rows[1::2], strict=True)]

    def _norms(self, index: int) -> Float64:
        """Norms of the rows of a slot, (adapters, r)."""
        return np.asarray(np.linalg.norm(self.slots[index], axis=2), np.float64)

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
        a_norms, b_norms = [], []
        for index in range(0, len(self.slots), 2):
            a_all, b_all = self._norms(index), self._norms(index + 1)
            for sample in self.samples:
                strongest = int(np.argmax(b_all[sample]))
                a_norms.append(a_all[sample, strongest])
                b_norms.append(b_all[sample, strongest])
        scale = float(np.median(np.abs(self.layout.scales))) or 1.0
        a, b = float(np.median(a_norms)) * scale, float(np.median(b_norms)) * scale
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


def latent_of(generator: Generator, factors: Sequence[Factors]) -> Int8:
    """The latent of an adapter against a generator of tables, which needs no gradient."""
    if generator.latent_size == 0:
        return EMPTY
    return fit_latent(generator, in_coordinates(factors, generator))


def draft_of(loaded: LoadedGenerator, original: Original, latent: Int8, condition: Int8) -> Draft:
    """What a generator contributes to one adapter."""
    generator = loaded.generator
    used = condition if generator.condition_size else EMPTY
    return Draft(loaded, latent, used, in_coordinates(original.factors, generator))


def _table(
    coordinates: Coordinates,
    means: Sequence[IntTensor],
    exponents: Sequence[int],
    tensors: Mapping[str, IntTensor] | None = None,
    latent_size: int = 0,
) -> Generator:
    """A generator of tables alone."""
    return Generator(
        arch=linear_decoder.NAME if latent_size else mean_decoder.NAME,
        coordinates=coordinates,
        encoder="",
        latent_size=latent_size,
        condition_size=0,
        config={},
        slot_exponents=tuple(exponents),
        tensors=tensors or {},
        means=tuple(means),
    )


def _slot_exponent(slot: NDArray[np.float32], mean: IntTensor) -> int:
    """The power of two nearest the size of deviations from a mean, within what can be added exactly to it."""
    wanted = _power_of_two(math.sqrt(float(np.mean(np.square(slot - mean.real)))))
    centre = mean.exponent - ACTIVATION_EXPONENT
    return min(max(wanted, centre - MAX_SHIFT), centre + MAX_SHIFT)


def _power_of_two(size: float) -> int:
    return round(math.log2(max(size, 2.0**-40)))
