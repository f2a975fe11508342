"""Arrays to bytes and back, for the methods we compare with: rows of floats, packed bits, groups, Golomb gaps.

A slot's matrix is handled as rows (r, width), as `factor_rows` gives them: a as it is, b transposed.
Nothing here stores shapes; whoever decodes has them from the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.registry.types import Layout

ZSTD_LEVEL = 19
SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""What a group's range is shrunk by, at most error, before it is cut into levels."""

Array = NDArray[Any]
Rows = Sequence[Array]  # one (r, width) a slot
Shapes = Sequence[tuple[int, int]]


def shapes_of(layout: Layout) -> list[tuple[int, int]]:
    """The shape of each slot's rows."""
    return [(rank_of(layout, i), width_of(layout, i)) for i in range(len(layout.slots))]


def factors_of(rows: Rows) -> list[Factors]:
    """The factors whose `factor_rows` these are."""
    pairs = zip(rows[0::2], rows[1::2], strict=True)
    return [Factors(b=b.T.astype(np.float64), a=a.astype(np.float64)) for a, b in pairs]


def in_dtype(layout: Layout, dtype: str) -> Layout:
    """The layout with all its slots in one dtype."""
    return Layout(tuple(replace(slot, dtype=dtype) for slot in layout.slots), layout.scales)


def pack(rows: Rows, item: str) -> bytes:
    """Rows in numpy's dtype `item`, one after another."""
    return b"".join(slot.astype(item).tobytes() for slot in rows)


def unpack(data: bytes, shapes: Shapes, item: str) -> list[Array]:
    """What `pack` stored, as float64."""
    return split(np.frombuffer(data, item).astype(np.float64), shapes)


def split(flat: Array, shapes: Shapes) -> list[Array]:
    """A flat array cut into rows."""
    ends = np.cumsum([rank * width for rank, width in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def weight_count(shapes: Shapes) -> int:
    return sum(rank * width for rank, width in shapes)


def squeeze(data: bytes) -> bytes:
    """The bytes under zstd."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)


def pack_bits(values: Array, bits: int) -> bytes:
    """Unsigned integers of `bits` bits each, with no gap between them."""
    planes = (values.astype(np.int64)[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).ravel()).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The `count` integers that `pack_bits` stored."""
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * count).reshape(count, bits)
    return np.asarray(planes.astype(np.int64) @ (1 << np.arange(bits)), dtype=np.int64)


def bits_size(bits: int, count: int) -> int:
    """Bytes of `count` integers of `bits` bits."""
    return (bits * count + 7) // 8


def encode_gaps(gaps: NDArray[np.int64]) -> bytes:
    """Golomb codes of integers from 0 up, with the power-of-two divisor that makes them shortest.

    First the exponent, then all remainders, then all quotients in unary: the same bits as one code
    after another, in an order that needs no loop.
    """
    sizes = [len(gaps) * (bits + 1) + int((gaps >> bits).sum()) for bits in range(24)]
    bits = int(np.argmin(sizes))
    ends = np.cumsum((gaps >> bits) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    unary[ends - 1] = 1
    return bytes([bits]) + pack_bits(gaps & ((1 << bits) - 1), bits) + np.packbits(unary).tobytes()


def decode_gaps(data: bytes, count: int) -> NDArray[np.int64]:
    """The `count` integers that `encode_gaps` stored."""
    bits = data[0]
    end = 1 + bits_size(bits, count)
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data[end:], np.uint8)))[:count]
    quotients = np.diff(ends, prepend=-1) - 1
    return (quotients << bits) + unpack_bits(data[1:end], bits, count)


@dataclass(frozen=True, slots=True)
class GroupCode:
    """Groups along the rows, each with its lowest value and its step in float16, and levels of `bits` bits.

    The range of each group is the one of `SHRINKS` with the least squared error.
    """

    bits: int
    group: int = 128

    def encode(self, rows: Rows) -> bytes:
        parts = [self._quantise(slot) for slot in rows]
        lows, steps, levels = (np.concatenate([part[i] for part in parts]) for i in range(3))
        return lows.tobytes() + steps.tobytes() + pack_bits(levels, self.bits)

    def decode(self, data: bytes, shapes: Shapes) -> list[Array]:
        counts = [rank * self._groups(width) for rank, width in shapes]
        total = sum(counts)
        lows, steps = np.frombuffer(data[: 4 * total], "<f2").astype(np.float64).reshape(2, total)
        levels = split(unpack_bits(data[4 * total :], self.bits, weight_count(shapes)), shapes)
        ends = np.cumsum(counts)[:-1]
        pairs = zip(np.split(lows, ends), np.split(steps, ends), levels, strict=True)
        return [self._spread(low, slot.shape) + self._spread(step, slot.shape) * slot for low, step, slot in pairs]

    def size(self, shapes: Shapes) -> int:
        """Bytes that rows of these shapes take."""
        groups = sum(rank * self._groups(width) for rank, width in shapes)
        return 4 * groups + bits_size(self.bits, weight_count(shapes))

    def _groups(self, width: int) -> int:
        return -(-width // self.group)

    def _spread(self, values: Array, shape: tuple[int, int]) -> Array:
        """One value a group, over the group's entries."""
        rank, width = shape
        return np.repeat(values.reshape(rank, self._groups(width)), self.group, axis=1)[:, :width]

    def _quantise(self, rows: Array) -> tuple[Array, Array, Array]:
        """Lows and steps (a group each, float16) and levels (an entry each) of one slot."""
        rank, width = rows.shape
        padding = self._groups(width) * self.group - width
        groups = np.pad(rows, ((0, 0), (0, padding)), mode="edge").reshape(-1, self.group)
        low, high = groups.min(axis=1), groups.max(axis=1)
        best = np.full(len(groups), np.inf)
        lows, steps, levels = np.zeros(len(groups), "<f2"), np.zeros(len(groups), "<f2"), np.zeros_like(groups)
        for shrink in SHRINKS:
            half = shrink * (high - low) / 2
            tried = ((low + high) / 2 - half).astype("<f2")
            step = (2 * half / ((1 << self.bits) - 1)).astype("<f2")
            start, width_of_level = tried.astype(np.float64)[:, None], step.astype(np.float64)[:, None]
            scaled = np.divide(groups - start, width_of_level, out=np.zeros_like(groups), where=width_of_level > 0)
            cut = np.clip(np.rint(scaled), 0, (1 << self.bits) - 1)
            error = ((start + width_of_level * cut - groups) ** 2).sum(axis=1)
            better = error < best
            best[better], lows[better], steps[better], levels[better] = (
                error[better],
                tried[better],
                step[better],
                cut[better],
            )
        return lows, steps, levels.reshape(rank, width + padding)[:, :width].ravel()


@dataclass(frozen=True, slots=True)
class SignCode:
    """Groups along the rows: one bit an entry for its sign, and the mean magnitude of each group in float16."""

    group: int = 128

    def encode(self, rows: Rows) -> bytes:
        means, signs = [], []
        for slot in rows:
            starts = np.arange(0, slot.shape[1], self.group)
            counts = np.diff(starts, append=slot.shape[1])
            means.append(np.add.reduceat(np.abs(slot), starts, axis=1) / counts)
            signs.append((slot >= 0).ravel())
        return pack(means, "<f2") + pack_bits(np.concatenate(signs), 1)

    def decode(self, data: bytes, shapes: Shapes) -> list[Array]:
        grouped = [(rank, -(-width // self.group)) for rank, width in shapes]
        end = 2 * weight_count(grouped)
        means = unpack(data[:end], grouped, "<f2")
        signs = split(unpack_bits(data[end:], 1, weight_count(shapes)), shapes)
        return [
            (2.0 * sign - 1) * np.repeat(mean, self.group, axis=1)[:, : sign.shape[1]]
            for mean, sign in zip(means, signs, strict=True)
        ]
