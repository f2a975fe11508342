"""Deciding how a group of adapters is stored: which generator, if any, makes the total smallest.

Everything is judged by real codes of a few sample adapters at the tolerance asked for, times the
number of adapters, plus the generator's file. The mean table's precision is searched the same way:
coarser entries make the file smaller and every residual a little larger. Where the file has a limit,
tables are made coarser until they keep it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.canonical import Coordinates, balanced, shared_frames, turned
from lorareg.compress.factors.scratch import Float32, parts_of, scratch_arrays
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators import conv1d_decoder, linear_decoder, mean_decoder
from lorareg.compress.generators.generator import MAX_SHIFT, MAX_WEIGHTS, Generator, Int8, pack_generator
from lorareg.compress.generators.grid import factor_rows, rank_of, width_of
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.linear_basis import find_basis, find_components, fit_latent
from lorareg.compress.integers.fixed_point import ACTIVATION_EXPONENT
from lorareg.compress.integers.tensors import IntTensor, round_tensor
from lorareg.compress.planning.coordinates import EMPTY, Turned, coordinates_of
from lorareg.compress.planning.team import Alone, Team, Trained, Trial, load_file
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout

FEWEST_SAMPLES, MOST_SAMPLES = 3, 8
ADAPTERS_A_SAMPLE = 16
"""Adapters that are encoded in every trial: one of so many, within those limits."""
MAX_LINEAR = 64
"""Most basis tables that are tried."""


@dataclass(frozen=True, slots=True)
class Members:
    """Adapters to store together, and what decides how."""

    layout: Layout
    originals: Sequence[Original]
    conditions: Sequence[Int8]
    encoder: str
    tolerance: float
    scratch: Path | None = None  # the folder for files that last as long as a run; see `scratch`


@dataclass(frozen=True, slots=True)
class Plan:
    """How a group will be stored. Without a generator `loaded` is None and `latents` is empty."""

    loaded: LoadedGenerator | None
    file: bytes
    latents: Sequence[Int8]
    estimated_bytes: float  # generator and all codes
    steps: Mapping[int, float]  # that served the samples, where they were residuals
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> float | None:
        """Where to begin with the others."""
        return statistics.median(self.steps.values()) if self.steps else None


class _Precision(NamedTuple):
    """Powers of two: the units of tables for a and for b."""

    a: int
    b: int

    def coarser(self) -> _Precision:
        return _Precision(self.a + 1, self.b + 1)


_Tried = set[tuple[_Precision, int]]
"""Precisions and numbers of tables beside the mean."""

_COARSEST = _Precision(9, 9)
"""In units of 512 every weight of an adapter is zero; and no other exponent takes fewer digits in a header."""


Train = Callable[[str, Group], Trained]


def sample_places(count: int) -> list[int]:
    """Which of `count` adapters are encoded in every trial: evenly spaced."""
    sampled = min(max(FEWEST_SAMPLES, count // ADAPTERS_A_SAMPLE), MOST_SAMPLES)
    return sorted({round(q * (count - 1)) for q in np.linspace(0, 1, sampled)})


class Planner:
    """Plans one group; keeps what its candidates share."""

    def __init__(
        self, members: Members, reporter: Reporter, most_bytes: float = math.inf, team: Team | None = None
    ) -> None:
        """Bring every member into the group's coordinates; in single precision, they take a cohort's own bytes.

        `most_bytes` is the largest file a generator may have; `team` makes the trials, without one this process.
        """
        self.team = team or Alone(members.layout, members.originals, reporter)
        self.members, self.reporter, self.layout = members, reporter, members.layout
        self.most_bytes = most_bytes
        self.coordinates = coordinates_of(members.originals)
        frames = shared_frames(o.factors for o in members.originals) if self.coordinates == "shared" else None
        count = len(members.originals)
        shapes = [(count, rank_of(self.layout, i), width_of(self.layout, i)) for i in range(len(self.layout.slots))]
        self.slots = scratch_arrays(shapes, members.scratch)
        self.norms = [np.empty(shape[:2]) for shape in shapes]  # of the rows of every slot, (adapters, r)
        for index, original in enumerate(members.originals):
            factors = original.factors
            moved = [turned(f, q) for f, q in zip(factors, frames, strict=True)] if frames else map(balanced, factors)
            for slot, norms, rows in zip(self.slots, self.norms, factor_rows(list(moved)), strict=True):
                slot[index] = rows
                norms[index] = np.linalg.norm(slot[index], axis=1)
        self.centres: list[Float64] = [slot.mean(axis=0, dtype=float) for slot in self.slots]
        self.samples = sample_places(count)

    def at(self, tolerance: float) -> Planner:
        """The same group at another tolerance."""
        planner = copy(self)
        planner.members = replace(self.members, tolerance=tolerance)
        return planner

    def within(self, most_bytes: float) -> Planner:
        """The same group with another limit."""
        planner = copy(self)
        planner.most_bytes = most_bytes
        return planner

    def without_generator(self) -> Plan:
        """The residual codec alone."""
        return self._measured(self._plan(b"", [], {}))

    def rough(self) -> Plan:
        """The better of no generator and a mean table of likely precision: two trials."""
        alone = self.without_generator()
        return min(alone, self._first_mean(alone) or alone, key=lambda plan: plan.estimated_bytes)

    def mean(self, hint: Plan) -> Plan | None:
        """The mean table alone, at the precision that makes the total smallest; None where no precision is enough."""
        first = self._first_mean(hint)
        return self._descend(first, {(first.metrics["precision"], 0)}) if first is not None else None

    def _first_mean(self, hint: Plan) -> Plan | None:
        """The mean table about as precise as the residual's steps."""
        start = math.log2(hint.step) if hint.step is not None else -8.0
        a_norm, b_norm = self._partner_norms()
        first = _Precision(round(start - math.log2(b_norm)), round(start - math.log2(a_norm)))
        return self._trial(first, 0, hint.steps)

    def linear(self, mean: Plan) -> Plan | None:
        """The mean table and as many more as make the total smallest; None where not one more may be had.

        A cohort of many tasks may need a table for each before any pays, so their number is doubled until that has
        failed twice, or the next file alone would take more than the best total. Then number and precision are tuned
        in turn.
        """
        best: Plan | None = None
        size, failed, tried = 1, 0, _Tried()
        most = min(len(self.members.originals) - 1, MAX_LINEAR, MAX_WEIGHTS // self.layout.weight_count)
        precision = self._basis_precision(mean.metrics["precision"])
        while size <= most:
            tried.add((precision, size))
            candidate = self._trial(precision, size, mean.steps)
            if candidate is None:
                break
            if best is None or candidate.estimated_bytes < best.estimated_bytes:
                best, failed = candidate, 0
            else:
                failed += 1
            if failed == 2 or 2 * len(candidate.file) > best.estimated_bytes:
                break
            size = min(2 * size, most) if size < most else most + 1
        if best is None:
            return None
        before = None
        while best is not before:  # finer tables make room for more of them
            before = best
            best = self._descend(self._resized(best, most, tried), tried)
            if best.estimated_bytes >= mean.estimated_bytes:
                break
        assert best.loaded is not None
        generator = best.loaded.generator
        return replace(best, latents=[fit_latent(generator, self._member(i)) for i in range(len(self.slots[0]))])

    def _resized(self, best: Plan, most: int, tried: _Tried) -> Plan:
        """A third fewer basis tables, or half as many more, where that makes the total smaller."""
        size = best.metrics["linear"]
        for other in sorted({2 * size // 3, min(-(-3 * size // 2), most)} - {0, size}):
            best = self._better(best, best.metrics["precision"], other, tried)
        return best

    def _descend(self, best: Plan, tried: _Tried) -> Plan:
        """Finer or coarser tables for a and for b, one power of two at a time, while the total falls."""
        for change in (_Precision(1, 0), _Precision(-1, 0), _Precision(0, 1), _Precision(0, -1)):
            before = None
            while best is not before:
                before, precision = best, best.metrics["precision"]
                moved = _Precision(precision.a + change.a, precision.b + change.b)
                best = self._better(best, moved, best.metrics["linear"], tried)
        return best

    def _better(self, best: Plan, precision: _Precision, size: int, tried: _Tried) -> Plan:
        """Other tables if they make the total smaller, else the best so far.

        What was `tried` is not tried again: it was no better than the best at that time. Only the best is held.
        """
        if (precision, size) in tried:
            return best
        tried.add((precision, size))
        candidate = self._trial(precision, size, best.steps)
        return candidate if candidate is not None and candidate.estimated_bytes < best.estimated_bytes else best

    def _basis_precision(self, of_mean: _Precision) -> _Precision:
        """Where the search for the tables' precision begins: what the tolerance leaves of an entry, or the mean's.

        The mean's alone is no place to begin: where tasks have no mean of b, its entries are best left out, and from
        there one power of two at a time leads nowhere.
        """
        allowed = []
        for norms, slots in ((self.norms[0::2], self.slots[0::2]), (self.norms[1::2], self.slots[1::2])):
            squares, entries = sum(float(np.sum(np.square(n))) for n in norms), sum(slot.size for slot in slots)
            allowed.append(_power_of_two(self.members.tolerance * math.sqrt(squares / entries)))
        return _Precision(min(of_mean.a, allowed[0]), min(of_mean.b, allowed[1]))

    def trained(self, arch: str, mean: Plan, train: Train) -> Plan:
        """A network of architecture `arch`; `slots` adds to the mean table of `mean`."""
        assert mean.loaded is not None
        template = self._paper_template() if arch == conv1d_decoder.NAME else mean.loaded.generator
        members = self.members
        group = Group(
            layout=self.layout,
            coordinates=template.coordinates,
            encoder=members.encoder,
            adapters=Turned(members.originals, template),
            conditions=members.conditions,
            means=template.means,
            slot_exponents=template.slot_exponents,
            tolerance=members.tolerance,
            scratch=members.scratch,
        )
        result = train(arch, group)
        file = pack_generator(result.generator, self.layout)
        return self._plan(file, result.latents, mean.steps, result.metrics)

    def _trial(self, precision: _Precision, size: int, steps: Mapping[int, float]) -> Plan | None:
        """The mean table and `size` basis tables, rounded to powers of two for a and for b.

        Coarser ones than asked where the file would be too large; None where it is with nothing but zeros in them.
        """
        generator = self._rounded(precision, size)
        while len(file := pack_generator(generator, self.layout)) > self.most_bytes:
            if min(precision) >= min(_COARSEST):
                return None
            empty = not any(tensor.values.any() for tensor in (*generator.means, *generator.tensors.values()))
            precision = _COARSEST if empty else precision.coarser()
            generator = self._rounded(precision, size)
        # Fitted to the tables as rounded, not as found; those of the others once the choice is made.
        sampled = {i: fit_latent(generator, self._member(i)) if size else EMPTY for i in self.samples}
        plan = self._measured(self._plan(file, sampled, steps, {"precision": precision, "linear": size}))
        return replace(plan, latents=[EMPTY] * len(self.members.originals))

    def smallest_bytes(self, size: int = 0) -> int:
        """The smallest file there is of a mean table and `size` basis tables: nothing but zeros in them."""
        return len(pack_generator(self._rounded(_COARSEST, size), self.layout))

    def _rounded(self, precision: _Precision, size: int) -> Generator:
        """A generator of the mean table and `size` basis tables."""
        exponents, tensors = [(precision.a, precision.b)[index % 2] for index in range(len(self.slots))], {}
        means = [round_tensor(centre, exponent) for centre, exponent in zip(self.centres, exponents, strict=True)]
        if size:
            basis = find_basis(self.slots, [mean.real for mean in means], self._components, size)
            tensors = {
                f"basis.{i}": round_tensor(table.reshape(-1, table.shape[-1]), exponent)
                for i, (table, exponent) in enumerate(zip(basis.tables, exponents, strict=True))
            }
        else:
            exponents = [_slot_exponent(slot, mean) for slot, mean in zip(self.slots, means, strict=True)]
        return _table(self.coordinates, means, exponents, tensors, size)

    @cached_property
    def _components(self) -> Float64:
        """The group's principal components, with every row weighted by the norm of its partner over all adapters."""
        weights = [np.sqrt(np.mean(np.square(norms), axis=0))[:, None] for norms in self.norms]
        return find_components(self.slots, self.centres, [weights[i ^ 1] for i in range(len(weights))])

    def _member(self, index: int) -> list[Factors]:
        """One adapter in the group's coordinates."""
        rows = [slot[index].astype(np.float64) for slot in self.slots]
        return [Factors(b=b.T, a=a) for a, b in zip(rows[0::2], rows[1::2], strict=True)]

    def _paper_template(self) -> Generator:
        """Raw coordinates, one mean and one scale a slot: the paper's normalisation, taken over the group."""
        means, exponents = [], []
        raw = scratch_arrays([slot.shape for slot in self.slots], self.members.scratch)
        for index, original in enumerate(self.members.originals):
            for slot, rows in zip(raw, factor_rows(original.factors), strict=True):
                slot[index] = rows  # exact: files hold single precision at most
        for slot in raw:
            values = slot.astype(np.float64)
            exponent = _power_of_two(float(values.std()))
            means.append(round_tensor(np.full((1, 1), values.mean()), exponent + ACTIVATION_EXPONENT))
            exponents.append(exponent)
        return _table("raw", means, exponents)

    def _partner_norms(self) -> tuple[float, float]:
        """Norms of a row of `a` and of a column of `b` that carry most of ΔW, scale included: medians over modules."""
        a_norms, b_norms = [], []
        for index in range(0, len(self.slots), 2):
            a_all, b_all = self.norms[index], self.norms[index + 1]
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
        self,
        file: bytes,
        latents: Sequence[Int8] | Mapping[int, Int8],
        steps: Mapping[int, float],
        metrics: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Encode the samples with a generator file (or none, where it is empty) and extrapolate.

        `steps` are where the searches begin. Latents are kept where there is one an adapter; the samples' alone are
        not.
        """
        members = self.members
        trials = [
            Trial(i, members.tolerance, steps.get(i), latents[i] if file else EMPTY, members.conditions[i])
            for i in self.samples
        ]
        sizes = self.team.sizes(file, trials)
        total = len(file) + float(np.mean([size.code_bytes for size in sizes])) * len(members.originals)
        kept = [] if isinstance(latents, Mapping) else latents
        found = {i: size.step for i, size in zip(self.samples, sizes, strict=True) if size.step is not None}
        return Plan(load_file(file, self.layout), file, kept, total, found, dict(metrics or {}))


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


def _slot_exponent(slot: Float32, mean: IntTensor) -> int:
    """The power of two nearest the size of deviations from a mean, within what can be added exactly to it."""
    squares = [float(np.sum(np.square(slot[part] - mean.real))) for part in parts_of(len(slot), slot[0].size)]
    wanted = _power_of_two(math.sqrt(math.fsum(squares) / slot.size))
    centre = mean.exponent - ACTIVATION_EXPONENT
    return min(max(wanted, centre - MAX_SHIFT), centre + MAX_SHIFT)


def _power_of_two(size: float) -> int:
    return round(math.log2(max(size, 2.0**-40)))
