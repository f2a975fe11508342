"""Published ways to store adapters that need no package of their own, written from their papers.

Side information is counted. Where a paper tunes something on task data, the best choice by weights
alone stands in, which the class says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from coding import (
    Array,
    GroupCode,
    Rows,
    SignCode,
    bits_size,
    decode_gaps,
    encode_gaps,
    factors_of,
    pack,
    pack_bits,
    shapes_of,
    split,
    unpack,
    unpack_bits,
    weight_count,
)
from cohort import BenchCohort
from methods import Alone, Method

from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.canonical import balanced
from lorareg.compress.factors.fidelity import energy, measure
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.grid import factor_rows
from lorareg.registry.types import Layout

NF4_LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""Of QLoRA (arXiv 2305.14314), appendix E."""

NF4_BLOCK = 64
ALPHAS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10)
"""ComPEFT's grid."""

DENSITIES = (0.05, 0.1, 0.2, 0.5)
JD_RANKS = (8, 16, 32, 64)
JD_ROUNDS = 10


def peer_methods() -> list[Method]:
    """Every method of this module, at each of its operating points."""
    return [
        Nf4(),
        *(LoraQuant(bits, share) for bits, share in ((2, 0.8), (2, 0.9), (3, 0.9))),
        *(Rtvq(bits) for bits in (2, 3, 4)),
        *(JdFull(rank) for rank in JD_RANKS),
        *(ComPeft(density, a_factor) for a_factor in (False, True) for density in DENSITIES),
    ]


@dataclass(frozen=True, slots=True)
class Nf4(Alone):
    """Blocks of 64 weights, each with its largest magnitude in float16 and 4 bits a weight."""

    name: str = "NF4, blocks of 64"

    def encode(self, original: Original, shared: bytes) -> bytes:
        flat = np.concatenate([rows.ravel() for rows in factor_rows(original.factors)])
        blocks = np.pad(flat, (0, -len(flat) % NF4_BLOCK)).reshape(-1, NF4_BLOCK)
        tops = np.abs(blocks).max(axis=1).astype("<f2")
        divisor = tops.astype(np.float64)[:, None]
        scaled = np.divide(blocks, divisor, out=np.zeros_like(blocks), where=divisor > 0).ravel()[: len(flat)]
        middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
        return bytes(tops.tobytes()) + pack_bits(np.searchsorted(middles, scaled), 4)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        shapes = shapes_of(layout)
        count = weight_count(shapes)
        end = 2 * -(-count // NF4_BLOCK)
        tops = np.repeat(np.frombuffer(data[:end], "<f2").astype(np.float64), NF4_BLOCK)[:count]
        return factors_of(split(tops * NF4_LEVELS[unpack_bits(data[end:], 4, count)], shapes))


@dataclass(frozen=True, slots=True)
class ComPeft:
    """ComPEFT (arXiv 2311.13171): the signs of the largest entries of the change, one scale, Golomb-coded positions.

    The change is from the weights before training, which no file holds. `a_factor` False takes the
    mean A in float16 and a B of zeros for them, and the change as one vector, as the paper does; that
    suits adapters of one seed. `a_factor` True takes zeros for all, and each factor by itself with a
    scale of its own: in one vector nearly all that is kept would be A's, and ΔW would be lost.
    A scale is alpha * std with the alpha of the paper's grid that has the least error of ΔW, where the
    paper tries it on a validation set.
    """

    density: float
    a_factor: bool

    @property
    def name(self) -> str:
        return f"ComPEFT{' a factor' if self.a_factor else ''}, k = {100 * self.density:g}%"

    def share(self, cohort: BenchCohort) -> bytes:
        if self.a_factor:
            return b""
        slots = zip(*[factor_rows(original.factors)[0::2] for original in cohort.originals], strict=True)
        return pack([np.mean(slot, axis=0) for slot in slots], "<f2")

    def encode(self, original: Original, shared: bytes) -> bytes:
        shapes = shapes_of(original.layout)
        reference, sizes = self._reference(shared, original.layout), self._sizes(original.layout)
        factors = original.factors
        change = np.concatenate([rows.ravel() for rows in factor_rows(factors)]) - reference
        signs, stds, start = np.zeros_like(change), [], 0
        for size in sizes:
            part = change[start : start + size]
            count = max(round(self.density * size), 1)
            kept = np.argpartition(-np.abs(part), count - 1)[:count]
            signs[start + kept] = np.where(part[kept] < 0, -1.0, 1.0)
            stds.append(part.std())
            start += size

        def error(alpha: float) -> float:
            spread = np.repeat((alpha * np.array(stds)).astype("<f4").astype(np.float64), sizes)
            restored = factors_of(split(reference + spread * signs, shapes))
            return measure(original.layout, factors, restored).relative_error

        scales = (min(ALPHAS, key=error) * np.array(stds)).astype("<f4")
        kept = np.flatnonzero(signs)
        gaps = np.diff(kept, prepend=-1) - 1
        return scales.tobytes() + struct.pack("<I", len(kept)) + pack_bits(signs[kept] > 0, 1) + encode_gaps(gaps)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        sizes = self._sizes(layout)
        start = 4 * len(sizes)
        spread = np.repeat(np.frombuffer(data[:start], "<f4").astype(np.float64), sizes)
        (count,) = struct.unpack("<I", data[start : start + 4])
        end = start + 4 + bits_size(1, count)
        kept = np.cumsum(decode_gaps(data[end:], count) + 1) - 1
        restored = self._reference(shared, layout)
        restored[kept] += spread[kept] * (2.0 * unpack_bits(data[start + 4 : end], 1, count) - 1)
        return factors_of(split(restored, shapes_of(layout)))

    def _sizes(self, layout: Layout) -> list[int]:
        """How many entries each scale is for."""
        sizes = [rank * width for rank, width in shapes_of(layout)]
        return sizes if self.a_factor else [sum(sizes)]

    def _reference(self, shared: bytes, layout: Layout) -> Array:
        shapes = shapes_of(layout)
        if self.a_factor:
            return np.zeros(weight_count(shapes))
        means = unpack(shared, shapes[0::2], "<f2")
        pairs = zip(means, shapes[1::2], strict=True)
        return np.concatenate([part for mean, shape in pairs for part in (mean.ravel(), np.zeros(shape).ravel())])


@dataclass(frozen=True, slots=True)
class LoraQuant(Alone):
    """LoRAQuant (arXiv 2510.26690): the strongest components of each module at `bits`, the others by sign.

    B' = U sqrt(S), A' = sqrt(S) V'. The first h components, the fewest that hold `share` of the
    energy, are cut into levels in groups of 128; the rest are signs times a group's mean magnitude.
    Each group's range is searched for least error; the paper's refinement by gradients is left out.
    """

    bits: int
    share_of_energy: float

    @property
    def name(self) -> str:
        return f"LoRAQuant, {self.bits} bits for {100 * self.share_of_energy:g}% of the energy"

    def encode(self, original: Original, shared: bytes) -> bytes:
        frames = [balanced(factors) for factors in original.factors]
        strong = [self._strong_count(frame) for frame in frames]
        rows = factor_rows(frames)
        heads = [slot[: strong[index // 2]] for index, slot in enumerate(rows)]
        tails = [slot[strong[index // 2] :] for index, slot in enumerate(rows)]
        return bytes(strong) + GroupCode(self.bits).encode(heads) + SignCode().encode(tails)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        shapes = shapes_of(layout)
        modules, code = len(shapes) // 2, GroupCode(self.bits)
        heads = [(data[index // 2], width) for index, (_, width) in enumerate(shapes)]
        tails = [(rank - head, width) for (rank, width), (head, _) in zip(shapes, heads, strict=True)]
        end = modules + code.size(heads)
        parts = zip(code.decode(data[modules:end], heads), SignCode().decode(data[end:], tails), strict=True)
        return factors_of([np.concatenate(part) for part in parts])

    def _strong_count(self, frame: Factors) -> int:
        energies = np.linalg.norm(frame.b, axis=0) ** 4  # b = U sqrt(S), so these are S²
        held = np.cumsum(energies) / max(energies.sum(), np.finfo(float).tiny)
        return min(int(np.searchsorted(held, self.share_of_energy)) + 1, frame.rank)


@dataclass(frozen=True, slots=True)
class Rtvq:
    """Residual task vector quantisation (arXiv 2503.06921): the mean at 3 bits, what it leaves at a few.

    An offset is taken from the mean as it was stored, which is the paper's error correction. Groups
    of 128 with a searched range, where the paper has one range a tensor.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"RTVQ, 3 + {self.bits} bits"

    def share(self, cohort: BenchCohort) -> bytes:
        slots = zip(*[factor_rows(original.factors) for original in cohort.originals], strict=True)
        return GroupCode(3).encode([np.mean(slot, axis=0) for slot in slots])

    def encode(self, original: Original, shared: bytes) -> bytes:
        mean = self._mean(shared, original.layout)
        offsets = [rows - base for rows, base in zip(factor_rows(original.factors), mean, strict=True)]
        return GroupCode(self.bits).encode(offsets)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        offsets = GroupCode(self.bits).decode(data, shapes_of(layout))
        pairs = zip(self._mean(shared, layout), offsets, strict=True)
        return factors_of([base + offset for base, offset in pairs])

    def _mean(self, shared: bytes, layout: Layout) -> Rows:
        return GroupCode(3).decode(shared, shapes_of(layout))


@dataclass(frozen=True, slots=True)
class JdFull:
    """JD-Full of Compress then Serve (arXiv 2407.00066): one U and V a module, a core U'ΔWV an adapter.

    Fitted by alternating on ΔW of unit norm, through the factors alone. A core travels with its norm,
    in float16, as it is or as its two factors, whichever is smaller: the latter at ranks above 2 r.
    """

    rank: int

    @property
    def name(self) -> str:
        return f"JD-Full, rank {self.rank}"

    def share(self, cohort: BenchCohort) -> bytes:
        modules = zip(*[original.factors for original in cohort.originals], strict=True)
        bases = [basis for adapters in modules for basis in _joint_bases([_unit(f) for f in adapters], self.rank)]
        ranks = np.array([len(basis) for basis in bases[0::2]], "<u2")
        return ranks.tobytes() + pack(bases, "<f2")

    def encode(self, original: Original, shared: bytes) -> bytes:
        norms, parts = [], []
        for factors, u, v in zip(original.factors, *self._bases(shared, original.layout), strict=True):
            left, right = u @ factors.b, factors.a @ v.T  # (R, r), (r, R)
            norm = np.float32(np.sqrt(energy(Factors(b=left, a=right))))
            norms.append(norm)
            scale = 1 / float(norm) if norm > 0 else 0.0
            frame = balanced(Factors(b=left * scale, a=right))
            parts += [frame.delta] if _is_square(len(u), factors.rank) else [frame.b, frame.a]
        return np.array(norms, "<f4").tobytes() + pack(parts, "<f2")

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        us, vs = self._bases(shared, layout)
        norms = np.frombuffer(data[: 4 * len(us)], "<f4").astype(np.float64)
        ranks = [rank for rank, _ in shapes_of(layout)[0::2]]
        shapes: list[tuple[int, int]] = []
        for rank, u in zip(ranks, us, strict=True):
            shapes += [(len(u), len(u))] if _is_square(len(u), rank) else [(len(u), rank), (rank, len(u))]
        parts = iter(unpack(data[4 * len(us) :], shapes, "<f2"))
        modules = []
        for rank, u, v, norm in zip(ranks, us, vs, norms, strict=True):
            if _is_square(len(u), rank):
                left, middle, right = np.linalg.svd(next(parts))
                left, right = _padded(left[:, :rank] * middle[:rank], rank), _padded(right[:rank].T, rank).T
            else:
                left, right = next(parts), next(parts)
            modules.append(Factors(b=norm * (u.T @ left), a=right @ v))
        return modules

    def _bases(self, shared: bytes, layout: Layout) -> tuple[list[Array], list[Array]]:
        """U' (R, d_out) and V' (R, d_in) of each module."""
        widths = [width for _, width in shapes_of(layout)]
        end = len(widths)  # two bytes a module
        ranks = np.frombuffer(shared[:end], "<u2")
        shapes = [(int(ranks[i // 2]), widths[i + 1 - 2 * (i % 2)]) for i in range(len(widths))]  # U is as wide as b'
        bases = unpack(shared[end:], shapes, "<f2")
        return bases[0::2], bases[1::2]


def _is_square(joint_rank: int, rank: int) -> bool:
    """Whether a core of an adapter of rank `rank` is stored as it is."""
    return joint_rank <= 2 * rank


def _padded(matrix: Array, columns: int) -> Array:
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def _unit(factors: Factors) -> Factors:
    norm = np.sqrt(energy(factors))
    return Factors(b=factors.b / norm if norm > 0 else factors.b, a=factors.a)


def _joint_bases(adapters: Sequence[Factors], rank: int) -> tuple[Array, Array]:
    """U' and V' with orthonormal rows that hold most of all adapters' ΔW between them.

    The sum of ΔW V V' ΔW' is X X' for X = [b root(a V V' a')], side by side over the adapters.
    """
    left, _ = np.linalg.qr(np.concatenate([f.b for f in adapters], axis=1))  # all b lie in its columns
    right, _ = np.linalg.qr(np.concatenate([f.a for f in adapters]).T)
    small = [Factors(b=left.T @ f.b, a=f.a @ right) for f in adapters]
    v = _top(np.concatenate([f.a.T @ _root(f.b.T @ f.b) for f in small], axis=1), rank)
    u = v
    for _ in range(JD_ROUNDS):
        seen = [f.a @ v for f in small]
        u = _top(np.concatenate([f.b @ _root(p @ p.T) for f, p in zip(small, seen, strict=True)], axis=1), rank)
        seen = [f.b.T @ u for f in small]
        v = _top(np.concatenate([f.a.T @ _root(p @ p.T) for f, p in zip(small, seen, strict=True)], axis=1), rank)
    both = min(u.shape[1], v.shape[1])
    return (left @ u[:, :both]).T, (right @ v[:, :both]).T


def _top(matrix: Array, rank: int) -> Array:
    """The strongest left singular vectors, as columns."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    return np.asarray(vectors[:, ::-1][:, : min(rank, len(values), matrix.shape[1])])


def _root(gram: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
