"""Baselines that need no training: each turns an adapter into bytes, and the bytes back into weights.

All that decoding needs beyond the layout is in those bytes or in the method's shared bytes, and is
counted. Errors are measured on weights that went through the bytes and a weights file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zstandard
from coding import factors_of, in_dtype, pack, shapes_of, squeeze, unpack
from cohort import BenchCohort
from results import Row

from lorareg.compress.codec.encode import Original
from lorareg.compress.codec.lossless import decode_lossless, encode_lossless
from lorareg.compress.factors.canonical import balanced
from lorareg.compress.factors.fidelity import Fidelity, measure
from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.compress.generators.grid import factor_rows
from lorareg.registry.types import Layout


class Method(Protocol):
    """One way to store adapters.

    Its name up to the first comma is what it is called; what follows tells its operating points apart.
    What is shared may come from other adapters than those that are then stored.
    """

    @property
    def name(self) -> str: ...

    def share(self, cohort: BenchCohort) -> bytes:
        """What is stored once."""

    def encode(self, original: Original, shared: bytes) -> bytes:
        """What is stored for an adapter."""

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        """The adapter that the bytes stand for."""


class Alone:
    """A method that shares nothing."""

    def share(self, cohort: BenchCohort) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class MeanAdapter:
    """The null model: every adapter is the mean of A and the mean of B, in float16."""

    name: str = "mean adapter (null model)"

    def share(self, cohort: BenchCohort) -> bytes:
        slots = zip(*[factor_rows(original.factors) for original in cohort.originals], strict=True)
        return pack([np.mean(slot, axis=0) for slot in slots], "<f2")

    def encode(self, original: Original, shared: bytes) -> bytes:
        return b""

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        return factors_of(unpack(shared, shapes_of(layout), "<f2"))


@dataclass(frozen=True, slots=True)
class TruncatedSvd(Alone):
    """The strongest components of each module's ΔW, as balanced factors in float16 or float32."""

    rank: int
    item: str  # numpy's name of the stored dtype

    @property
    def name(self) -> str:
        return f"truncated SVD, rank {self.rank}, fp{8 * np.dtype(self.item).itemsize}"

    def encode(self, original: Original, shared: bytes) -> bytes:
        return pack([rows[: self.rank] for rows in factor_rows([balanced(f) for f in original.factors])], self.item)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        kept = unpack(data, [(min(rank, self.rank), width) for rank, width in shapes_of(layout)], self.item)
        padding = zip(kept, shapes_of(layout), strict=True)
        return factors_of([np.pad(rows, ((0, rank - len(rows)), (0, 0))) for rows, (rank, _) in padding])


@dataclass(frozen=True, slots=True)
class Int8Rows(Alone):
    """Integers of 8 bits, and a float32 scale for each row of A and column of B (the long way of both)."""

    compressed: bool

    @property
    def name(self) -> str:
        return "int8, a scale per rank row" + (" + zstd" if self.compressed else "")

    def encode(self, original: Original, shared: bytes) -> bytes:
        rows = factor_rows(original.factors)
        scales = [(np.abs(slot).max(axis=1, keepdims=True) / 127).astype("<f4") for slot in rows]
        levels = [
            np.rint(np.divide(slot, scale, out=np.zeros_like(slot), where=scale > 0))
            for slot, scale in zip(rows, scales, strict=True)
        ]
        data = pack(scales, "<f4") + pack([np.clip(level, -127, 127) for level in levels], "i1")
        return squeeze(data) if self.compressed else data

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        data = zstandard.decompress(data) if self.compressed else data
        shapes = shapes_of(layout)
        split = 4 * sum(rank for rank, _ in shapes)
        scales = unpack(data[:split], [(rank, 1) for rank, _ in shapes], "<f4")
        levels = unpack(data[split:], shapes, "i1")
        return factors_of([level * scale for level, scale in zip(levels, scales, strict=True)])


@dataclass(frozen=True, slots=True)
class Bf16Zstd(Alone):
    """Weights rounded to bfloat16, then zstd."""

    name: str = "bf16 + zstd"

    def encode(self, original: Original, shared: bytes) -> bytes:
        return squeeze(write_weights(in_dtype(original.layout, "BF16"), original.factors))

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        return read_weights(zstandard.decompress(data), in_dtype(layout, "BF16"))


@dataclass(frozen=True, slots=True)
class Lossless(Alone):
    """lorareg's own lossless codec: byte planes under zstd."""

    name: str = "lossless codec (ours)"

    def encode(self, original: Original, shared: bytes) -> bytes:
        return encode_lossless(original.data, original.layout)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        return read_weights(decode_lossless(data, layout, self.name), layout)


def all_methods(layout: Layout) -> list[Method]:
    """Every method, ranks up to the layout's own."""
    top = max(rank for rank, _ in shapes_of(layout))
    svd = [TruncatedSvd(rank, item) for item in ("<f2", "<f4") for rank in (1, 2, 3, 4, 6, 8) if rank <= top]
    return [MeanAdapter(), *svd, Int8Rows(compressed=False), Int8Rows(compressed=True), Bf16Zstd(), Lossless()]


def measure_method(cohort: BenchCohort, method: Method) -> Row:
    """Encode, decode and compare every adapter."""
    started = time.monotonic()
    shared = method.share(cohort)
    codes = [method.encode(original, shared) for original in cohort.originals]
    measured = [
        compare(original, write_weights(cohort.layout, method.decode(code, shared, cohort.layout)))
        for original, code in zip(cohort.originals, codes, strict=True)
    ]
    return row_of(len(shared), [len(code) for code in codes], measured, started)


def compare(original: Original, output: bytes) -> Fidelity:
    """A weights file against an original."""
    return measure(original.layout, original.factors, read_weights(output, original.layout))


def row_of(shared_bytes: int, code_bytes: Sequence[int], measured: Sequence[Fidelity], started: float) -> Row:
    """One method's figures: bytes stored once and for each adapter, and the relative errors of ΔW."""
    return {
        "shared_bytes": shared_bytes,
        "code_bytes": list(code_bytes),
        "errors": [fidelity.relative_error for fidelity in measured],
        "worst_module_error": max(fidelity.worst_module_error for fidelity in measured),
        "elapsed_s": time.monotonic() - started,
    }
