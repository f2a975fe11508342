"""The residual codec: what the generator did not predict, quantised and entropy coded.

A module of rank r keeps its k strongest components, in a frame of the adapter's own:

    b' = predicted b + R_b g'                  R_b (d_out, k), R_a (k, d_in): what the symbols stand for
    a' = predicted a + g R_a                   g (r, k): directions, in sixteenths
    ΔW = scale * (b' m) a'                     m (r, r): core, in thirty-seconds, near the identity

Without a generator nothing is predicted, the frame is the module's balanced SVD, g is left out and
m is (k, k). Row i of `a` is weighted in ΔW by the norm of column i of `b` and the other way round,
so with one global step D every vector's own step is D over its partner's norm: the error is spread
evenly over ΔW (reverse water-filling), and components too weak to matter are left out.

The core repairs, with a few numbers a module, what quantising did to all of them together: it is
the least-squares fit of b' m a' to the wanted product, then made stronger, because leaving out
small weights always weakens an update, in the same direction in every module, and a model feels
that far more than it feels noise of the same size.

Decoding multiplies and adds in a fixed order, one operation at a time, so the decoded weights are
the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lorareg.compress.codec.quantize import dequantise, nearest_steps, quantise, steps_of
from lorareg.compress.factors.canonical import balanced, principal_frame
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators.prediction import Prediction
from lorareg.compress.integers.entropy import ZERO_TABLE, Int64
from lorareg.registry.types import Layout

DIRECTION_UNIT = 1 / 16
CORE_UNIT = 1 / 32
HISTOGRAM_ENTRIES = 1 << 22

STRENGTH = 0.7
"""How much of an update's lost strength the core gives back: 0 is the closest ΔW, 1 restores its projection
on the original in full. Measured on the model's predictions, 0.7 came closest."""

MODULES_AT_ONCE = 4
"""Restored together: few enough to stay in a processor's cache."""

MAX_BOOST = 1.3
"""Most a module is made stronger by: beyond it, too little of the module is left to lean on."""

RIDGE = 1e-3
"""Keeps the core near the identity where a module has little energy."""


@dataclass(frozen=True)
class Target:
    """One module ready to quantise: the factors wanted, what is predicted of them, and the frame."""

    wanted: Factors
    predicted: Factors | None
    directions: Int64  # (r, r), in sixteenths, strongest component first

    @property
    def energy(self) -> float:
        """||b a||², without the module's scale."""
        return _inner(self.wanted, self.wanted)

    @cached_property
    def framed(self) -> tuple[Float64, Float64]:
        """What was not predicted, in the frame: of b (r, d_out), then of a (r, d_in)."""
        b, a = self.wanted.b, self.wanted.a
        if self.predicted is not None:
            b, a = b - self.predicted.b, a - self.predicted.a
        return self._to_frame @ b.T, self._to_frame @ a

    @cached_property
    def partner_norms(self) -> tuple[Float64, Float64]:
        """For each row of `framed`, the norm of the wanted vector that it is multiplied with, (r,) each."""
        whole = (self.wanted.a, self.wanted.b.T)
        b, a = (np.asarray(np.linalg.norm(self._to_frame @ rows, axis=1), np.float64) for rows in whole)
        return b, a

    @cached_property
    def _to_frame(self) -> Float64:
        return np.asarray(np.linalg.inv(self.directions * DIRECTION_UNIT), np.float64)


@dataclass(frozen=True, slots=True)
class Quantised:
    """What is stored of one module. Of tables and steps, row 0 is about b's vectors and row 1 about a's."""

    directions: Int64 | None  # (r, k)
    core: Int64  # (r, r) or (k, k), identity included
    tables: Int64  # (2, k)
    steps: Int64  # (2, k)
    b_symbols: Int64  # (k, d_out)
    a_symbols: Int64  # (k, d_in)

    @property
    def count(self) -> int:
        """k, the components kept."""
        return len(self.b_symbols)

    def with_core(self, core: Float64) -> Quantised:
        """The same with another core, rounded to what is stored."""
        return replace(self, core=np.rint(core / CORE_UNIT).astype(np.int64))


def targets(modules: Sequence[Factors], prediction: Prediction | None) -> list[Target]:
    """Bring each module into the frame it is coded in. `modules` are in the cohort's coordinates."""
    if prediction is None:
        return [Target(balanced(f), None, identity(f.rank, DIRECTION_UNIT)) for f in modules]
    return [
        Target(wanted, predicted, np.rint(principal_frame(wanted.b) / DIRECTION_UNIT).astype(np.int64))
        for wanted, predicted in zip(modules, prediction.factors, strict=True)
    ]


def quantise_module(target: Target, step: float, strength: float | None = STRENGTH) -> Quantised:
    """`quantise_modules` of one."""
    return quantise_modules([target], [step], strength)[0]


def quantise_modules(
    targets: Sequence[Target], steps: Sequence[float], strength: float | None = STRENGTH
) -> list[Quantised]:
    """Quantise modules so that the ΔW of each errs by about its step per entry and component.

    Args:
        targets: the modules.
        steps: D of each, without the module's scale.
        strength: see STRENGTH; None leaves cores at the identity.

    Raises:
        OverflowError: a step is too fine for the entropy coder's widest table.
    """
    rows = [part for target in targets for part in target.framed]
    norms = [part for target in targets for part in target.partner_norms]
    indices = [nearest_steps(steps[i // 2], part) for i, part in enumerate(norms)]
    symbols, tables = _quantise_alike(rows, indices)
    return [
        _assembled(t, tables[2 * i : 2 * i + 2], indices[2 * i : 2 * i + 2], symbols[2 * i : 2 * i + 2], strength)
        for i, t in enumerate(targets)
    ]


def _quantise_alike(rows: Sequence[Float64], steps: Sequence[Int64]) -> tuple[list[Int64], list[Int64]]:
    """Symbols and tables of each part; parts of one width are quantised together, which takes a fifth of the time."""
    symbols, tables = [np.zeros(0, np.int64)] * len(rows), [np.zeros(0, np.int64)] * len(rows)
    for width in dict.fromkeys(part.shape[1] for part in rows):
        chosen = [i for i, part in enumerate(rows) if part.shape[1] == width]
        ends = np.cumsum([len(rows[i]) for i in chosen])[:-1]
        found = _quantise_in_chunks(
            np.concatenate([rows[i] for i in chosen]), steps_of(np.concatenate([steps[i] for i in chosen]))
        )
        for i, own_symbols, own_tables in zip(chosen, *(np.split(part, ends) for part in found), strict=True):
            symbols[i], tables[i] = own_symbols.copy(), own_tables.copy()
    return symbols, tables


def _quantise_in_chunks(rows: Float64, steps: Float64) -> tuple[Int64, Int64]:
    """`quantise`, so many rows at a time that their histograms stay small."""
    largest = float((np.abs(rows).max(axis=1, initial=0.0) / steps).max(initial=0.0))
    count = max(1, int(HISTOGRAM_ENTRIES / (largest + 2)))
    parts = [quantise(rows[i : i + count], steps[i : i + count]) for i in range(0, max(len(rows), 1), count)]
    symbols, tables = zip(*parts, strict=True)
    return np.concatenate(symbols), np.concatenate(tables)


def _assembled(
    target: Target,
    tables: Sequence[Int64],
    steps: Sequence[Int64],
    symbols: Sequence[Int64],
    strength: float | None,
) -> Quantised:
    """A module's components up to the last that has a symbol, and its core; of each pair, b's come first."""
    (b_tables, a_tables), (b_symbols, a_symbols) = tables, symbols
    if target.predicted is None:
        # A component with one zero factor adds nothing: drop the other too.
        halves = (b_tables == ZERO_TABLE) | (a_tables == ZERO_TABLE)
        b_tables[halves] = a_tables[halves] = ZERO_TABLE
        b_symbols[halves] = a_symbols[halves] = 0
    kept = np.flatnonzero((b_tables != ZERO_TABLE) | (a_tables != ZERO_TABLE))
    k = int(kept[-1]) + 1 if kept.size else 0
    quantised = Quantised(
        directions=None if target.predicted is None else target.directions[:, :k],
        core=identity(k if target.predicted is None else target.wanted.rank, CORE_UNIT),
        tables=np.stack([part[:k] for part in tables]),
        steps=np.stack([part[:k] for part in steps]),
        b_symbols=b_symbols[:k],
        a_symbols=a_symbols[:k],
    )
    if strength is None:
        return quantised
    return quantised.with_core(_fitted_core(target, restore_module(quantised, target.predicted), strength))


def _fitted_core(target: Target, plain: Factors, strength: float) -> Float64:
    """The core that brings the product of `plain` closest to the wanted one, then made stronger."""
    rank = plain.b.shape[1]
    identity = np.eye(rank)
    gram_b, gram_a = plain.b.T @ plain.b, plain.a @ plain.a.T
    if rank == 0 or not np.trace(gram_b) * np.trace(gram_a) > 0:
        return identity
    wanted = (plain.b.T @ target.wanted.b) @ (target.wanted.a @ plain.a.T)
    missing = wanted - gram_b @ gram_a
    left, right = (gram + RIDGE * np.trace(gram) / rank * identity for gram in (gram_b, gram_a))
    core = identity + np.linalg.solve(left, np.linalg.solve(right, missing.T).T)
    if target.energy == 0:
        return core
    kept = float(np.sum(core * wanted)) / target.energy  # the share of the update that points the right way
    return core * (min(kept**-strength, MAX_BOOST) if 0 < kept < 1 else 1.0)


def restore(modules: Sequence[Quantised], prediction: Prediction | None, layout: Layout) -> list[Factors]:
    """The decoded factors of every module: the whole of decoding after the symbols are read."""
    plain = _restore_plain(modules, prediction.factors if prediction is not None else None)
    factors = [Factors(b=b, a=f.a) for b, f in zip(_with_cores(modules, plain), plain, strict=True)]
    return [_padded(f, slot.shape[0]) for f, slot in zip(factors, layout.slots[0::2], strict=True)]


def restore_module(quantised: Quantised, predicted: Factors | None) -> Factors:
    """b' m and a' of one module; k components without a generator, r with one."""
    plain = restore_plain(quantised, predicted)
    (b,) = _with_cores([quantised], [plain])
    return Factors(b=b, a=plain.a)


def restore_plain(quantised: Quantised, predicted: Factors | None) -> Factors:
    """b' and a' of one module, before the core."""
    return _restore_plain([quantised], None if predicted is None else [predicted])[0]


def _restore_plain(modules: Sequence[Quantised], predicted: Sequence[Factors] | None) -> list[Factors]:
    """b' and a' of every module, before the cores."""
    b = _restore_side(modules, 0, None if predicted is None else [f.b.T for f in predicted])
    a = _restore_side(modules, 1, None if predicted is None else [f.a for f in predicted])
    return [Factors(b=rows.T, a=columns) for rows, columns in zip(b, a, strict=True)]


def _restore_side(modules: Sequence[Quantised], side: int, starts: Sequence[Float64] | None) -> list[Float64]:
    """The rows of b (side 0) or a (side 1) of every module, (r, width), or (k, width) where nothing is predicted."""
    restored: list[Float64] = [np.zeros(0)] * len(modules)
    symbols = [(q.b_symbols, q.a_symbols)[side] for q in modules]
    for chosen in _alike([(*part.shape, len(q.core)) for part, q in zip(symbols, modules, strict=True)]):
        steps = steps_of(np.stack([modules[i].steps[side] for i in chosen]))
        values = dequantise(np.stack([symbols[i] for i in chosen]), steps)
        if starts is not None:
            directions = np.stack([np.asarray(modules[i].directions, np.float64) for i in chosen])
            values = _product(directions * DIRECTION_UNIT, values, np.stack([starts[i] for i in chosen]))
        for i, rows in zip(chosen, values, strict=True):
            restored[i] = rows
    return restored


def _with_cores(modules: Sequence[Quantised], plain: Sequence[Factors]) -> list[Float64]:
    """b' m of every module."""
    restored = [f.b for f in plain]
    for chosen in _alike([b.shape for b in restored]):
        cores = np.stack([modules[i].core * CORE_UNIT for i in chosen])
        wide = np.stack([plain[i].b.T for i in chosen])
        for i, product in zip(chosen, _product(cores.swapaxes(1, 2), wide), strict=True):
            restored[i] = product.T
    return restored


def _alike(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Modules of one shape a few at a time: worked out together they take two thirds of the time."""
    for shape in dict.fromkeys(shapes):
        alike = [i for i, other in enumerate(shapes) if other == shape]
        for start in range(0, len(alike), MODULES_AT_ONCE):
            yield alike[start : start + MODULES_AT_ONCE]


# -- exact arithmetic ------------------------------------------------------------------------------


def _product(small: Float64, wide: Float64, start: Float64 | None = None) -> Float64:
    """start + small (..., m, k) @ wide (..., k, n), summed over k in order, one rounding an operation."""
    shape = (*small.shape[:-1], wide.shape[-1])
    total = np.zeros(shape) if start is None else np.array(start, order="C")
    term = np.empty_like(total)
    for k in range(wide.shape[-2]):
        np.multiply(small[..., :, k, None], wide[..., k, None, :], out=term)
        total += term
    return total


def identity(size: int, unit: float) -> Int64:
    """The identity (size, size), in units of `unit`, one over a whole number."""
    return np.eye(size, dtype=np.int64) * round(1 / unit)


def _padded(factors: Factors, rank: int) -> Factors:
    """Zero components up to the layout's rank."""
    if factors.rank == rank:
        return factors
    b, a = (np.zeros((rank, part.shape[1])) for part in (factors.b.T, factors.a))
    b[: factors.rank], a[: factors.rank] = factors.b.T, factors.a  # np.pad takes a seventh of all decoding
    return Factors(b=b.T, a=a)


def _inner(x: Factors, y: Factors) -> float:
    return math.fsum(((x.b.T @ y.b) * (x.a @ y.a.T)).ravel())
