"""Adapters that do not exist, with the spectra of some that do, each made from a seed and its number alone.

    A = sqrt(m) A0 + sqrt(1 - m) (sum of z_k D_k + own), and B likewise, module by module

A0 and B0 are what all have in common, D_k the directions that tasks share, z an adapter's place along
them, and `own` independent of all others. The shares of the three, the singular values of ΔW, how the
rows of A move, and the energy of each module are those measured; entries are Gaussian.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.canonical import shared_frames, turned
from lorareg.compress.factors.weights import Factors, write_weights
from lorareg.compress.generators.generator import Int8
from lorareg.registry.types import Layout, Slot

DIRECTIONS = 16
CONDITION_SIZE = 128
Float32 = NDArray[np.float32]
Span = Callable[[str, str, Float32], Float32]
"""Of a kind, a factor and rows (..., width): the part of the rows that a generator can draw."""


@dataclass(frozen=True, slots=True)
class KindSpectra:
    """Modules of one kind, averaged over layers and adapters; all but `layer_energy` are shares that sum to one."""

    singular: list[float]  # ΔW's energy by component, in each adapter's own frame
    rows_b: list[float]  # the energy of B's columns in the cohort's frame
    moved_a: list[float]  # by how much A's rows differ from the mean, in each adapter's own frame
    mean_a: float  # the mean's share of A's energy
    mean_b: float
    layer_energy: list[float]  # of ΔW, one a layer, as a share of the whole adapter's


@dataclass(frozen=True, slots=True)
class Spectra:
    """What some adapters look like."""

    kinds: dict[str, KindSpectra]
    shared_a: list[float]  # of what an adapter's A differs from the mean: what the first k directions of others explain
    shared_b: list[float]
    norm_spread: float  # standard deviation of the logarithm of ||ΔW||
    count: int  # of the adapters measured

    @property
    def rank(self) -> int:
        return len(next(iter(self.kinds.values())).singular)

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def kind_of(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def llama_layout(layers: int, width: int, kv_width: int, rank: int) -> Layout:
    """Rank-r adapters of the query and value projections of a Llama, float32, as PEFT names them."""
    slots = []
    for layer in range(layers):
        for name, d_out in (("q_proj", width), ("v_proj", kv_width)):
            module = f"model.layers.{layer}.self_attn.{name}"
            key = f"base_model.model.{module}.lora_"
            slots.append(Slot(module, "A", (rank, width), "F32", f"{key}A.weight"))
            slots.append(Slot(module, "B", (d_out, rank), "F32", f"{key}B.weight"))
    return Layout(tuple(slots), (2.0,) * (2 * layers))


def measure_spectra(originals: Sequence[Original]) -> Spectra:
    """The spectra of adapters that share their random A, all held in memory."""
    layout = originals[0].layout
    frames = shared_frames(original.factors for original in originals)
    adapters = [[turned(f, q) for f, q in zip(o.factors, frames, strict=True)] for o in originals]
    means = [
        Factors(b=np.mean([f.b for f in module], axis=0), a=np.mean([f.a for f in module], axis=0))
        for module in zip(*adapters, strict=True)
    ]
    energies = np.array([[np.sum((f.b.T @ f.b) * (f.a @ f.a.T)) for f in modules] for modules in adapters])
    layer_energy = (energies / energies.sum(axis=1, keepdims=True)).mean(axis=0)
    kinds = {}
    for kind in dict.fromkeys(map(kind_of, layout.modules)):
        chosen = [index for index, module in enumerate(layout.modules) if kind_of(module) == kind]
        pairs = [(modules[i], means[i]) for modules in adapters for i in chosen]
        singular = np.mean([np.linalg.svd(_small_delta(f), compute_uv=False) ** 2 for f, _ in pairs], axis=0)
        rows = np.mean([np.sum(f.b**2, axis=0) for f, _ in pairs], axis=0)
        moved = np.mean([np.sum((np.linalg.svd(f.b, False)[2] @ (f.a - mean.a)) ** 2, axis=1) for f, mean in pairs], 0)
        kinds[kind] = KindSpectra(
            singular=(singular / singular.sum()).tolist(),
            rows_b=(rows / rows.sum()).tolist(),
            moved_a=(moved / moved.sum()).tolist(),
            mean_a=float(sum(np.sum(mean.a**2) for _, mean in pairs) / sum(np.sum(f.a**2) for f, _ in pairs)),
            mean_b=float(sum(np.sum(mean.b**2) for _, mean in pairs) / sum(np.sum(f.b**2) for f, _ in pairs)),
            layer_energy=layer_energy[chosen].tolist(),
        )
    weight_a = [np.sqrt(np.mean([np.sum(m[i].b ** 2, axis=0) for m in adapters], axis=0)) for i in range(len(means))]
    weight_b = [np.sqrt(np.mean([np.sum(m[i].a ** 2, axis=1) for m in adapters], axis=0)) for i in range(len(means))]
    flat_a = [np.concatenate([(w[:, None] * f.a).ravel() for w, f in zip(weight_a, m, strict=True)]) for m in adapters]
    flat_b = [np.concatenate([(w * f.b).ravel() for w, f in zip(weight_b, m, strict=True)]) for m in adapters]
    return Spectra(
        kinds,
        _explained_by_others(np.stack(flat_a)),
        _explained_by_others(np.stack(flat_b)),
        float(np.std(0.5 * np.log(energies.sum(axis=1)))),
        len(originals),
    )


def _small_delta(factors: Factors) -> NDArray[np.float64]:
    """A matrix (r, r) with ΔW's singular values."""
    return np.asarray(np.linalg.qr(factors.b)[1] @ np.linalg.qr(factors.a.T)[1].T)


def _explained_by_others(vectors: NDArray[np.float64]) -> list[float]:
    """How much of an adapter's deviation from the others' mean their first k components explain, k = 1 ... 16.

    Each adapter is left out of the mean and the components that it is compared with, so that chance adds nothing.
    """
    gram, count = vectors @ vectors.T, len(vectors)
    shares = []
    for left_out in range(count):
        others = [i for i in range(count) if i != left_out]
        inside, across = gram[np.ix_(others, others)], gram[others, left_out]
        centre = np.eye(count - 1) - 1 / (count - 1)
        values, components = np.linalg.eigh(centre @ inside @ centre)
        scores = (components.T @ centre @ (across - inside.mean(axis=1)))[::-1]
        own = gram[left_out, left_out] - 2 * across.mean() + inside.mean()
        usable = values[::-1] > 1e-9 * values[-1]
        shares.append(np.cumsum(np.where(usable, scores**2 / np.where(usable, values[::-1], 1), 0)) / own)
    found = np.mean(shares, axis=0)
    return np.resize(np.append(found, [found[-1]] * DIRECTIONS), DIRECTIONS).tolist()


@dataclass(frozen=True, slots=True)
class _Common:
    """What all adapters share in the modules of one kind; rows of B are its columns."""

    a: Float32  # (layers, r, d_in)
    b: Float32  # (layers, r, d_out)
    along_a: Float32  # (directions, layers, r, d_in)
    along_b: Float32
    wobble: float  # how far an adapter's own frame is turned from the cohort's


class Synthesiser:
    """Makes adapter `index` of a cohort, the same bytes whenever it is asked for."""

    def __init__(self, spectra: Spectra, layout: Layout, seed: int) -> None:
        """Draw what all have in common: a few hundred megabytes at the size of an 8B model."""
        if spectra.rank != layout.slots[0].shape[0]:
            sys.exit(f"The adapters measured are of rank {spectra.rank}, and the layout is of another.")
        self.spectra, self.layout, self.seed = spectra, layout, seed
        self.gains_a, self.gains_b = (
            _gains(shares, spectra.count - 1) for shares in (spectra.shared_a, spectra.shared_b)
        )
        random = np.random.default_rng([seed, 0])
        self.common: dict[str, _Common] = {}
        self.norms: dict[str, Float32] = {}  # of ΔW, one a layer
        for kind, measured in spectra.kinds.items():
            slots = [slot for slot in layout.slots if kind_of(slot.module) == kind]
            (rank, d_in), (d_out, _), layers = slots[0].shape, slots[1].shape, len(slots) // 2
            rows_a, rows_b = np.sqrt(measured.moved_a), np.sqrt(measured.rows_b)
            self.common[kind] = _Common(
                a=_normal(random, (layers, rank, d_in), np.full(rank, rank**-0.5)),
                b=_normal(random, (layers, rank, d_out), rows_b),
                along_a=_normal(random, (DIRECTIONS, layers, rank, d_in), rows_a),
                along_b=_normal(random, (DIRECTIONS, layers, rank, d_out), rows_b),
                wobble=_wobble(measured.singular, measured.rows_b),
            )
            energy = measured.layer_energy
            places = np.linspace(0, len(energy) - 1, layers)
            self.norms[kind] = np.sqrt(np.interp(places, range(len(energy)), energy))[:, None].astype(np.float32)
        self.file = lru_cache(maxsize=4)(self._file)  # an encoder looks at one adapter several times

    def original(self, index: int) -> Original:
        return Original(f"synthetic adapter {index}", partial(self.file, index), self.layout)

    def condition(self, index: int) -> Int8:
        random = np.random.default_rng([self.seed, 2, index])
        return np.clip(np.rint(32 * random.standard_normal(CONDITION_SIZE)), -127, 127).astype(np.int8)

    def drawable(self, index: int, span: Span) -> list[Factors]:
        """All that an adapter shares with others, as far as `span` reaches: what a perfect generator would draw."""
        return self._make(index, span)[1]

    def shared_rows(self, kind: str, factor: str) -> Float32:
        """Rows (directions * layers * r, width) that modules of a kind are mixed from, as large as they are used."""
        common = self.common[kind]
        along, gains = (common.along_a, self.gains_a) if factor == "A" else (common.along_b, self.gains_b)
        return np.asarray((along * gains[:, None, None, None]).reshape(-1, along.shape[-1]), np.float32)

    def _file(self, index: int) -> bytes:
        return write_weights(self.layout, self._make(index)[0])

    def _make(self, index: int, span: Span | None = None) -> tuple[list[Factors], list[Factors]]:
        """The factors of an adapter, and what it shares with others, in single precision."""
        random = np.random.default_rng(np.random.SFC64([self.seed, 1, index]))
        place = random.standard_normal(DIRECTIONS).astype(np.float32)
        strength = np.float32(np.exp(self.spectra.norm_spread * random.standard_normal()))
        own, drawn = {}, {}
        for kind, measured in self.spectra.kinds.items():
            common = self.common[kind]
            layers, rank, d_out = common.b.shape
            target = np.sqrt(np.array(measured.singular, np.float32))
            frame = _frames(random, (layers, rank), common.wobble)
            mixed = np.tensordot(place * self.gains_b, common.along_b, axes=1)
            alone = frame @ _normal(random, (layers, rank, d_out), target)
            known_b = math.sqrt(measured.mean_b) * common.b
            drawn_b = known_b + math.sqrt(1 - measured.mean_b) * (span(kind, "B", mixed) if span else mixed)
            b = known_b + math.sqrt(1 - measured.mean_b) * mixed
            b = b + math.sqrt((1 - measured.mean_b) * (1 - np.sum(self.gains_b**2))) * alone
            values, vectors = np.linalg.eigh(b @ b.transpose(0, 2, 1))
            values, vectors = values[:, ::-1], vectors[:, :, ::-1]
            shaped = (vectors * (target / np.sqrt(values))[:, None]) @ vectors.transpose(0, 2, 1)
            shaped *= strength * self.norms[kind][:, :, None]
            mixed = np.tensordot(place * self.gains_a, common.along_a, axes=1)
            alone = vectors @ _normal(random, common.a.shape, np.sqrt(measured.moved_a))
            known_a = math.sqrt(measured.mean_a) * common.a
            drawn_a = known_a + math.sqrt(1 - measured.mean_a) * (span(kind, "A", mixed) if span else mixed)
            a = known_a + math.sqrt(1 - measured.mean_a) * mixed
            a = a + math.sqrt((1 - measured.mean_a) * (1 - np.sum(self.gains_a**2))) * alone
            own[kind] = iter(zip(a, shaped @ b, strict=True))
            drawn[kind] = iter(zip(drawn_a, shaped @ drawn_b, strict=True))
        names = [kind_of(module) for module in self.layout.modules]
        return tuple([Factors(b=b.T, a=a) for a, b in (next(of[name]) for name in names)] for of in (own, drawn))


def _normal(random: np.random.Generator, shape: tuple[int, ...], rows: Any) -> Float32:
    """Gaussian entries, in rows of these norms on average."""
    scales = (np.asarray(rows) / math.sqrt(shape[-1])).astype(np.float32)
    return random.standard_normal(shape, np.float32) * scales[:, None]


def _gains(explained: Sequence[float], count: int) -> Float32:
    """The size of an adapter along each direction, from the shares that the first k of them explain.

    A direction of share l that is found from `count` adapters, among noise of about the share 1 - l of each,
    explains only l * count l / (count l + 1) of another adapter (the spiked covariance model, Johnstone 2001);
    this takes that back.
    """
    found = np.clip(np.diff(explained, prepend=0.0), 0, None)
    shares = (found * count + np.sqrt((found * count) ** 2 + 4 * count * found)) / (2 * count)
    return np.sqrt(shares * min(1.0, 0.9 / max(float(shares.sum()), 1e-9))).astype(np.float32)


def _frames(random: np.random.Generator, shape: tuple[int, int], wobble: float) -> Float32:
    """Random rotations (layers, r, r) about the identity."""
    layers, rank = shape
    moved = np.eye(rank) + wobble * random.standard_normal((layers, rank, rank))
    q, r = np.linalg.qr(moved)
    return (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]).astype(np.float32)


def _wobble(singular: Sequence[float], rows: Sequence[float]) -> float:
    """The size of rotations that turn components of energies `singular` into rows of energies `rows`, on average."""
    low, high = 0.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        frames = _frames(np.random.default_rng(0), (500, len(rows)), middle)
        first = float(np.mean(frames[:, 0] ** 2 @ np.asarray(singular)))
        low, high = (middle, high) if first > rows[0] else (low, middle)
    return low
