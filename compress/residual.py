"""The residual codec: what the generator did not predict, rotated, quantised and entropy coded.

Without a generator the prediction is zero and a module is coded in its balanced SVD. With one:

    cohort coordinates        principal frame              stored
    prediction (b, a) ------> b @ g, g' @ a  --+
                                               +--> minus --> / step --> symbols --> range coder
    adapter    (b, a) ------> b @ g, g^-1 @ a -+
                        g: coarse rotation, one a module

Row i of `a` is weighted in ΔW by the norm of column i of `b` and the other way round, so with one
global step D every vector's own step is D over its partner's norm: the error is spread evenly over
ΔW (reverse water-filling), and components too weak to matter quantise to zeros.

Payload, all in one range-coded stream after a 4-byte prefix (table numbers of the four side arrays):

    rotations      r * r per module, in sixteenths, less the identity       (with a generator only)
    tables         2 r per module, difference to the last module of the same shape
    steps          2 r per module, likewise; absent where the table is zero
    symbols        per module and component: b (d_out), then a (d_in)

Decoding multiplies integers exactly and rounds once per operation in a fixed order, so the decoded
weights are the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorareg.compress.canonical import balanced, principal_frame
from lorareg.compress.entropy import SCALE_COUNT, ZERO_TABLE, Int64, SymbolDecoder, SymbolEncoder, cheapest_table
from lorareg.compress.gauge import FRACTION_BITS, quantise_rotation, restore_rotation
from lorareg.compress.prediction import ModulePrediction, Prediction
from lorareg.compress.quantize import STEP_COUNT, dequantise, nearest_steps, quantise, steps_of
from lorareg.compress.weights import Factors, Float64
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

_PREFIX_BYTES = 4


@dataclass(frozen=True, slots=True)
class Target:
    """One module ready to quantise: the factors wanted, what is predicted of them, and the frame."""

    wanted: Factors
    predicted: Factors | None
    rotation: Int64 | None  # coarse, as stored

    @property
    def b_norms(self) -> Float64:
        norms: Float64 = np.linalg.norm(self.wanted.b, axis=0)
        return norms

    @property
    def a_norms(self) -> Float64:
        norms: Float64 = np.linalg.norm(self.wanted.a, axis=1)
        return norms


@dataclass(frozen=True, slots=True)
class Quantised:
    """The symbols of one module: rows 0..r-1 are the columns of b, rows r..2r-1 the rows of a."""

    tables: Int64  # (2r,)
    steps: Int64  # (2r,)
    symbols: tuple[Int64, ...]
    rotation: Int64 | None


def targets(modules: Sequence[Factors], prediction: Prediction | None) -> list[Target]:
    """Bring each module into the frame it is coded in. `modules` are in the cohort's coordinates."""
    if prediction is None:
        return [Target(balanced(factors), None, None) for factors in modules]
    return [_framed(f, p) for f, p in zip(modules, prediction.modules, strict=True)]


def _framed(factors: Factors, prediction: ModulePrediction) -> Target:
    coarse = quantise_rotation(principal_frame(factors.b))
    exact = restore_rotation(coarse)
    frame = exact / (1 << FRACTION_BITS)
    wanted = Factors(b=factors.b @ frame, a=np.asarray(np.linalg.solve(frame, factors.a), np.float64))
    return Target(wanted, _turn_prediction(prediction, exact), coarse)


def _turn_prediction(prediction: ModulePrediction, rotation: Float64) -> Factors:
    """The prediction in the frame, exact: integer products, then one power of two."""
    return Factors(
        b=np.ldexp(prediction.b @ rotation, prediction.b_exponent - FRACTION_BITS),
        a=np.ldexp(rotation.T @ prediction.a, prediction.a_exponent - FRACTION_BITS),
    )


def quantise_module(target: Target, step: float) -> Quantised:
    """Quantise one module so that its ΔW errs by about `step` per entry and component."""
    predicted = target.predicted
    b = target.wanted.b if predicted is None else target.wanted.b - predicted.b
    a = target.wanted.a if predicted is None else target.wanted.a - predicted.a
    b_steps, a_steps = nearest_steps(step, target.a_norms), nearest_steps(step, target.b_norms)
    b_symbols, b_tables = quantise(b.T, steps_of(b_steps))
    a_symbols, a_tables = quantise(a, steps_of(a_steps))
    if predicted is None:
        # A component with one zero factor adds nothing: drop the other too.
        halves = (b_tables == ZERO_TABLE) | (a_tables == ZERO_TABLE)
        b_tables[halves] = a_tables[halves] = ZERO_TABLE
        b_symbols[halves] = a_symbols[halves] = 0
    return Quantised(
        tables=np.concatenate([b_tables, a_tables]),
        steps=np.concatenate([b_steps, a_steps]),
        symbols=(*b_symbols, *a_symbols),
        rotation=target.rotation,
    )


def dequantise_module(quantised: Quantised, predicted: Factors | None) -> Factors:
    """The decoded factors of one module."""
    rank = len(quantised.tables) // 2
    steps = steps_of(quantised.steps)
    b = dequantise(np.stack(quantised.symbols[:rank]), steps[:rank]).T
    a = dequantise(np.stack(quantised.symbols[rank:]), steps[rank:])
    if predicted is None:
        return Factors(b=b, a=a)
    return Factors(b=b + predicted.b, a=a + predicted.a)


def pack_residual(modules: Sequence[Quantised]) -> bytes:
    """The payload of quantised modules."""
    rotations = [q.rotation.ravel() for q in modules if q.rotation is not None]
    tables = _differences([q.tables for q in modules], [_shape(q) for q in modules])
    steps = _differences([_held_steps(q) for q in modules], [_shape(q) for q in modules])
    kept = [d[q.tables != ZERO_TABLE] for d, q in zip(steps, modules, strict=True)]
    side = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (rotations, tables, kept)]
    numbers = [cheapest_table(array)[0] if array.size else ZERO_TABLE for array in side]
    encoder = SymbolEncoder()
    for array, number in zip(side, numbers, strict=True):
        encoder.put(array, number)
    for module in modules:
        for symbols, table in zip(module.symbols, module.tables, strict=True):
            encoder.put(symbols, int(table))
    return bytes([*numbers, 0]) + encoder.finish()


def unpack_residual(payload: bytes, layout: Layout, *, rotated: bool, what: str) -> list[Quantised]:
    """The quantised modules of a payload.

    Raises:
        InvalidContainerError: the payload does not fit the layout.
    """
    numbers = payload[:_PREFIX_BYTES]
    if len(numbers) < _PREFIX_BYTES or max(numbers) >= SCALE_COUNT:
        raise InvalidContainerError(what=what, reason="its residual starts with table numbers that do not exist")
    shapes = [(b.shape[0], *a.shape) for a, b in zip(layout.slots[0::2], layout.slots[1::2], strict=True)]
    ranks = [rank for _, rank, _ in shapes]
    decoder = SymbolDecoder(payload[_PREFIX_BYTES:], what)
    turns = decoder.get(sum(r * r for r in ranks) if rotated else 0, numbers[0])
    tables = _undo_differences(decoder.get(2 * sum(ranks), numbers[1]), shapes, SCALE_COUNT, what)
    kept = iter(decoder.get(sum(int((t != ZERO_TABLE).sum()) for t in tables), numbers[2]))
    steps = _undo_held_differences(kept, tables, shapes, what)
    modules, offset = [], 0
    for (d_out, rank, d_in), table, step in zip(shapes, tables, steps, strict=True):
        lengths = [d_out] * rank + [d_in] * rank
        symbols = tuple(decoder.get(length, int(t)) for length, t in zip(lengths, table, strict=True))
        rotation = turns[offset : offset + rank * rank].reshape(rank, rank) if rotated else None
        offset += rank * rank
        modules.append(Quantised(table, step, symbols, rotation))
    decoder.finish()
    return modules


def restore(modules: Sequence[Quantised], prediction: Prediction | None) -> list[Factors]:
    """The decoded factors of every module: the whole of decoding after the symbols are read."""
    if prediction is None:
        return [dequantise_module(q, None) for q in modules]
    restored = []
    for quantised, predicted in zip(modules, prediction.modules, strict=True):
        assert quantised.rotation is not None
        turned = _turn_prediction(predicted, restore_rotation(quantised.rotation))
        restored.append(dequantise_module(quantised, turned))
    return restored


# -- side arrays: small differences between modules of one shape ---------------------------------

Shape = tuple[int, int, int]  # d_out, r, d_in


def _shape(module: Quantised) -> Shape:
    rank = len(module.tables) // 2
    return len(module.symbols[0]), rank, len(module.symbols[-1])


def _held_steps(module: Quantised) -> Int64:
    """Steps with -1 where the table is zero and no step is stored."""
    return np.where(module.tables == ZERO_TABLE, -1, module.steps)


def _differences(arrays: Sequence[Int64], shapes: Sequence[Shape]) -> list[Int64]:
    """Each array less the last one of the same shape; entries of -1 carry no value and keep the last."""
    last: dict[Shape, Int64] = {}
    differences = []
    for array, shape in zip(arrays, shapes, strict=True):
        before = last.get(shape, np.zeros_like(array))
        differences.append(array - before)
        last[shape] = np.where(array < 0, before, array)
    return differences


def _undo_differences(flat: Int64, shapes: Sequence[Shape], limit: int, what: str) -> list[Int64]:
    last: dict[Shape, Int64] = {}
    arrays, offset = [], 0
    for shape in shapes:
        part = flat[offset : offset + 2 * shape[1]]
        offset += len(part)
        last[shape] = _within(part + last.get(shape, np.zeros_like(part)), limit, what)
        arrays.append(last[shape])
    return arrays


def _undo_held_differences(kept: object, tables: Sequence[Int64], shapes: Sequence[Shape], what: str) -> list[Int64]:
    last: dict[Shape, Int64] = {}
    arrays = []
    for table, shape in zip(tables, shapes, strict=True):
        before = last.get(shape, np.zeros_like(table))
        present = table != ZERO_TABLE
        array = before.copy()
        array[present] += np.fromiter(kept, np.int64, int(present.sum()))  # type: ignore[call-overload]
        last[shape] = _within(array, STEP_COUNT, what)
        arrays.append(array)
    return arrays


def _within(array: Int64, limit: int, what: str) -> Int64:
    if array.size and (array.min() < 0 or array.max() >= limit):
        raise InvalidContainerError(what=what, reason=f"a table or step number is outside 0..{limit - 1}")
    return array
