"""The first residual format, codecs 2 and 3: decoded for ever, written no more (see `residual`).

Every component is stored, in a frame that a coarse rotation turns into and that Newton-Schulz steps
in exact fixed point make orthogonal again.

Payload, all in one range-coded stream after a 4-byte prefix (table numbers of the four side arrays):

    rotations      r * r per module, in sixteenths, less the identity       (with a generator only)
    tables         2 r per module, difference to the last module of the same shape
    steps          2 r per module, likewise; absent where the table is zero
    symbols        per module and component: b (d_out), then a (d_in)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorareg.compress.codec.quantize import STEP_COUNT, dequantise, steps_of
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators.prediction import ModulePrediction, Prediction
from lorareg.compress.integers.entropy import SCALE_COUNT, ZERO_TABLE, Int64, SymbolDecoder
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

_PREFIX_BYTES = 4


@dataclass(frozen=True, slots=True)
class Quantised:
    """The symbols of one module: rows 0..r-1 are the columns of b, rows r..2r-1 the rows of a."""

    tables: Int64  # (2r,)
    steps: Int64  # (2r,)
    symbols: tuple[Int64, ...]
    rotation: Int64 | None


def _turn_prediction(prediction: ModulePrediction, rotation: Float64) -> Factors:
    """The prediction in the frame, exact: integer products, then one power of two."""
    return Factors(
        b=np.ldexp(prediction.b @ rotation, prediction.b_exponent - FRACTION_BITS),
        a=np.ldexp(rotation.T @ prediction.a, prediction.a_exponent - FRACTION_BITS),
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


# -- the rotation --------------------------------------------------------------------------------

COARSE_BITS = 4
FRACTION_BITS = 14
_NEWTON_STEPS = 4
_LIMIT = float(1 << (FRACTION_BITS + 1))


def restore_rotation(coarse: Int64) -> Float64:
    """The orthogonal matrix (r, r) that `coarse` stands for, integers in units of 2^-14.

    Newton-Schulz, G <- G (3 I - G'G) / 2: it converges for the coarse rotations the encoder makes
    (singular values within 0.7 to 1.3). Entries are clamped, so any input stays exact.
    """
    identity = np.eye(len(coarse))
    unit = 1 << FRACTION_BITS
    turned = (coarse + identity * (1 << COARSE_BITS)) * (unit >> COARSE_BITS)
    for _ in range(_NEWTON_STEPS):
        turned = np.clip(turned, -_LIMIT, _LIMIT)
        inner = 3 * unit * identity - np.floor((turned.T @ turned) / unit + 0.5)
        turned = np.floor((turned @ inner) / (2 * unit) + 0.5)
    return np.clip(turned, -_LIMIT, _LIMIT)
