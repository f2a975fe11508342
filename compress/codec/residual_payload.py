"""The payload of a residual: quantised modules as bytes, and back.

All in one range-coded stream after a prefix (the table numbers of the five side arrays):

    counts       k, less that of the last module of the same shape
    directions   r * k a module, less the identity                       (with a generator only)
    cores        r * r (k * k without a generator), less the identity
    tables       2 k a module, less those of the last module of the same shape
    steps        2 k a module, likewise; absent where the table is zero
    symbols      all vectors of table 1, then of table 2, and so on; within one table by module,
                 and there b's k vectors (d_out each), then a's (d_in each)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lorareg.compress.codec.quantize import STEP_COUNT
from lorareg.compress.codec.residual import CORE_UNIT, DIRECTION_UNIT, Quantised, identity
from lorareg.compress.integers.entropy import (
    SCALE_COUNT,
    ZERO_TABLE,
    Int64,
    SymbolDecoder,
    SymbolEncoder,
    cheapest_table,
)
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

SIDE_ARRAYS = 5


def pack_residual(modules: Sequence[Quantised], layout: Layout) -> bytes:
    """The payload of quantised modules."""
    side = _SideArrays(layout, modules)
    arrays = side.differences()
    numbers = [cheapest_table(array)[0] if array.size else ZERO_TABLE for array in arrays]
    encoder = SymbolEncoder()
    for array, number in zip(arrays, numbers, strict=True):
        encoder.put(array, number)
    vectors, tables = _vectors(modules)
    for number in _used(tables):
        encoder.put(np.concatenate([vectors[i] for i in np.flatnonzero(tables == number)]), number)
    return bytes([*numbers, side.base]) + encoder.finish()


def unpack_residual(payload: bytes, layout: Layout, *, predicted: bool, what: str) -> list[Quantised]:
    """The quantised modules of a payload; `predicted` where it was made against a generator.

    Raises:
        InvalidContainerError: the payload does not fit the layout.
    """
    numbers = payload[:SIDE_ARRAYS]
    if len(payload) <= SIDE_ARRAYS or max(numbers) >= SCALE_COUNT:
        raise InvalidContainerError(what=what, reason="its residual starts with table numbers that do not exist")
    decoder = SymbolDecoder(payload[SIDE_ARRAYS + 1 :], what)
    modules = _read_side(decoder, numbers, payload[SIDE_ARRAYS], _shapes(layout), predicted, what)
    vectors, tables = _vectors(modules)
    for number in _used(tables):
        chosen = [vectors[i] for i in np.flatnonzero(tables == number)]
        ends = np.cumsum([len(vector) for vector in chosen])
        symbols = decoder.get(int(ends[-1]), number)
        for vector, end in zip(chosen, ends, strict=True):
            vector[:] = symbols[end - len(vector) : end]
    decoder.finish()
    return modules


def _vectors(modules: Sequence[Quantised]) -> tuple[list[Int64], Int64]:
    """Views of all symbols, in the order of modules, b before a, and the table of each."""
    vectors = [row for q in modules for rows in (q.b_symbols, q.a_symbols) for row in rows]
    return vectors, np.concatenate([q.tables.ravel() for q in modules]) if modules else np.zeros(0, np.int64)


def _used(tables: Int64) -> list[int]:
    """The tables that code something, in order. np.unique would load numpy.ma: 25 ms of giving an adapter back."""
    return [int(number) for number in np.flatnonzero(np.bincount(tables)) if number != ZERO_TABLE]


class _Shape(NamedTuple):
    """Of one module."""

    d_out: int
    rank: int
    d_in: int


def _shapes(layout: Layout) -> list[_Shape]:
    slots = zip(layout.slots[0::2], layout.slots[1::2], strict=True)
    return [_Shape(b.shape[0], *a.shape) for a, b in slots]


class _Neighbours:
    """What the last module of the same shape had, for each component of b and of a."""

    def __init__(self, start: int) -> None:
        self._start, self._last = start, dict[_Shape, Int64]()

    def of(self, shape: _Shape) -> Int64:
        """(2, r), to be read and then written."""
        if shape not in self._last:
            self._last[shape] = np.full((2, shape.rank), self._start, np.int64)
        return self._last[shape]


class _SideArrays:
    """All that is stored of modules but their symbols, as small differences."""

    def __init__(self, layout: Layout, modules: Sequence[Quantised]) -> None:
        self.modules, self.shapes = modules, _shapes(layout)
        held = np.concatenate([q.steps[q.tables != ZERO_TABLE] for q in modules])
        self.base = int(np.median(held)) if held.size else 0

    def differences(self) -> list[Int64]:
        """Counts, directions, cores, tables, steps."""
        pairs = list(zip(self.modules, self.shapes, strict=True))
        directions = [
            q.directions - identity(s.rank, DIRECTION_UNIT)[:, : q.count] for q, s in pairs if q.directions is not None
        ]
        cores = [q.core - identity(len(q.core), CORE_UNIT) for q in self.modules]
        counts, tables, steps = [], [], []
        last_counts = dict[_Shape, int]()
        last_tables, last_steps = _Neighbours(0), _Neighbours(self.base)
        for q, shape in pairs:
            k, held = q.count, q.tables != ZERO_TABLE
            counts.append(np.array([k - last_counts.get(shape, 0)]))
            last_counts[shape] = k
            tables.append(q.tables - last_tables.of(shape)[:, :k])
            last_tables.of(shape)[:, :k] = q.tables
            steps.append((q.steps - last_steps.of(shape)[:, :k])[held])
            last_steps.of(shape)[:, :k][held] = q.steps[held]
        return [_flat(part) for part in (counts, directions, cores, tables, steps)]


def _read_side(
    decoder: SymbolDecoder, numbers: bytes, base: int, shapes: Sequence[_Shape], predicted: bool, what: str
) -> list[Quantised]:
    """Modules with everything but their symbols, which are zeros yet."""
    counts = _read_counts(decoder.get(len(shapes), numbers[0]), shapes, what)
    ranks = [shape.rank for shape in shapes]
    widths = ranks if predicted else counts
    directions = _split(
        decoder, numbers[1], [(r, k) if predicted else (0, 0) for r, k in zip(ranks, counts, strict=True)]
    )
    cores = _split(decoder, numbers[2], [(w, w) for w in widths])
    tables = _split(decoder, numbers[3], [(2, k) for k in counts])
    last = _Neighbours(0)
    for table, shape, k in zip(tables, shapes, counts, strict=True):
        table += last.of(shape)[:, :k]
        last.of(shape)[:, :k] = table
    _expect(np.concatenate([t.ravel() for t in tables]), SCALE_COUNT, "table", what)
    held = _split(decoder, numbers[4], [(int((t != ZERO_TABLE).sum()), 1) for t in tables])
    last = _Neighbours(base)
    modules = []
    for index, (shape, k) in enumerate(zip(shapes, counts, strict=True)):
        present = tables[index] != ZERO_TABLE
        steps = last.of(shape)[:, :k].copy()
        steps[present] += held[index][:, 0]
        last.of(shape)[:, :k] = steps
        modules.append(
            Quantised(
                directions=directions[index] + identity(shape.rank, DIRECTION_UNIT)[:, :k] if predicted else None,
                core=cores[index] + identity(widths[index], CORE_UNIT),
                tables=tables[index],
                steps=steps,
                b_symbols=np.zeros((k, shape.d_out), np.int64),
                a_symbols=np.zeros((k, shape.d_in), np.int64),
            )
        )
    _expect(np.concatenate([q.steps.ravel() for q in modules]), STEP_COUNT, "step", what)
    return modules


def _read_counts(differences: Int64, shapes: Sequence[_Shape], what: str) -> list[int]:
    last: dict[_Shape, int] = {}
    counts = []
    for shape, difference in zip(shapes, differences, strict=True):
        last[shape] = last.get(shape, 0) + int(difference)
        if not 0 <= last[shape] <= shape.rank:
            raise InvalidContainerError(what=what, reason=f"a module has {last[shape]} components, rank {shape.rank}")
        counts.append(last[shape])
    return counts


def _split(decoder: SymbolDecoder, number: int, shapes: Sequence[tuple[int, int]]) -> list[Int64]:
    """The next arrays of a stream that share one table."""
    sizes = [rows * columns for rows, columns in shapes]
    flat = decoder.get(sum(sizes), number)
    parts = np.split(flat, np.cumsum(sizes)[:-1]) if sizes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _flat(arrays: Sequence[Int64]) -> Int64:
    return np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0, np.int64)


def _expect(values: Int64, limit: int, kind: str, what: str) -> None:
    if values.size and (values.min() < 0 or values.max() >= limit):
        raise InvalidContainerError(what=what, reason=f"a {kind} number is outside 0..{limit - 1}")
