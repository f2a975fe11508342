"""Integer tensors, and how a generator file stores them.

A tensor is integers of at most 16 bits and one power of two. Rows of at least `ROW_LENGTH` entries
each travel with the number of the table that codes them shortest; smaller tensors have one table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.integers.entropy import SCALE_COUNT, SymbolDecoder, SymbolEncoder, cheapest_table

VALUE_BITS = 15
ROW_LENGTH = 128
EXPONENTS = range(-60, 61)


@dataclass(frozen=True, slots=True)
class IntTensor:
    """`values` (float64 holding integers of magnitude below 2^15) times 2^exponent."""

    values: Float64
    exponent: int

    @property
    def real(self) -> Float64:
        return np.ldexp(self.values, self.exponent)


def quantise_tensor(real: Float64, bits: int) -> IntTensor:
    """Round to signed integers of `bits` bits, with the power of two that just holds the largest entry."""
    largest = float(np.abs(real).max(initial=0.0))
    if largest == 0:
        return IntTensor(np.zeros_like(real), 0)
    exponent = int(np.frexp(largest / ((1 << (bits - 1)) - 1))[1])
    return round_tensor(real, min(max(exponent, EXPONENTS[0]), EXPONENTS[-1]))


def round_tensor(real: Float64, exponent: int) -> IntTensor:
    """Round to integers in units of 2^exponent, clamped to 15 bits and a sign."""
    limit = float((1 << VALUE_BITS) - 1)
    return IntTensor(np.clip(np.rint(np.ldexp(real, -exponent)), -limit, limit), exponent)


def put_tensor(encoder: SymbolEncoder, tensor: IntTensor) -> None:
    """Append a tensor's values to a stream; shape and exponent are stored elsewhere."""
    rows = _rows(tensor.values.astype(np.int64))
    tables = [cheapest_table(row)[0] for row in rows]
    encoder.put_uniform(tables, SCALE_COUNT)
    for row, table in zip(rows, tables, strict=True):
        encoder.put(row, table)


def get_tensor(decoder: SymbolDecoder, shape: tuple[int, ...], exponent: int) -> IntTensor:
    """Take the next tensor from a stream.

    Raises:
        InvalidContainerError: the stream ends or does not decode.
    """
    rows = _rows(np.zeros(shape, dtype=np.int64))
    tables = decoder.get_uniform(len(rows), SCALE_COUNT)
    limit = (1 << VALUE_BITS) - 1
    values = [decoder.get(row.size, int(table)) for row, table in zip(rows, tables, strict=True)]
    return IntTensor(np.clip(np.concatenate(values), -limit, limit).astype(np.float64).reshape(shape), exponent)


def _rows(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    if values.ndim >= 2 and len(values) and values[0].size >= ROW_LENGTH:
        return list(values.reshape(len(values), -1))
    return [values.reshape(-1)]
