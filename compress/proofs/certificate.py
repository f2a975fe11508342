"""Measuring a proof of an encoding, and estimating from it once the original is gone.

Each of 1024 projections is p = Σ over modules of scale · uᵀ (b a) v, with signs u (d_out) and v (d_in) of its
own: E[p²] = ||ΔW||², likewise for the difference of two adapters, so the projections of an original
tell how far from it anything is, to a few percent (Johnson-Lindenstrauss).

The signs are bits of SHA-256 in counter mode, so that any language can redo them: for module i (from 0) and
side s ("u" or "v") the stream is SHA-256(seed ‖ i as 4 bytes ‖ s ‖ n as 8 bytes), n = 0, 1, ..., numbers
big-endian, bits from the highest down, a 1 meaning -1; projection j takes bits j·d to (j+1)·d - 1. The seed is
SHA-256 over the digests of original, code and output: nobody knew it before the code was finished.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.fidelity import ModuleFidelity, energy, measure_modules, summarise
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.registry.certificate import Proof
from lorareg.registry.types import Layout

COUNT = 1024
DEVIATIONS = 4.5
"""How many standard deviations of the estimated square a stated bound spans: missed by about one in 100,000."""

_LARGEST = 32767


@dataclass(frozen=True, slots=True)
class Estimate:
    """A relative error of ΔW from projections, and the bounds it lies between."""

    relative_error: float
    low: float
    high: float


def make_proof(layout: Layout, original: Sequence[Factors], restored: Sequence[Factors], seed: bytes | None) -> Proof:
    """Measure an encoding module by module, and keep the original's projections, drawn from `seed`.

    None where the output equals the original.
    """
    modules = measure_modules(layout, original, restored)
    facts: dict[str, object] = {
        "lorareg": version("lorareg"),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fidelity": summarise(modules),
    }
    projections = b""
    if seed is not None:
        (projected,) = project(layout, [original], seed)
        scale = float(np.abs(projected).max()) / _LARGEST or 1.0
        projections = np.rint(projected / scale).astype("<i2").tobytes()
        facts |= {"projection_scale": scale, "original_norm": norm(layout, original)}
    errors = np.array([module.relative_error for module in modules], "<f4").tobytes()
    return Proof(facts, errors, projections)


def project(layout: Layout, adapters: Sequence[Sequence[Factors]], seed: bytes) -> Float64:
    """Projections (adapters, 1024) of adapters' ΔW."""
    total = np.zeros((len(adapters), COUNT))
    for index, scale in enumerate(layout.scales):
        modules = [adapter[index] for adapter in adapters]
        left = _signed_sums(seed, index, b"u", np.concatenate([m.b for m in modules], axis=1))
        right = _signed_sums(seed, index, b"v", np.concatenate([m.a.T for m in modules], axis=1))
        total += scale * (left * right).reshape(COUNT, len(modules), -1).sum(axis=2).T
    return total


def estimate(original: NDArray[np.int16], scale: float, norm: float, restored: Float64, shares: Float64) -> Estimate:
    """The relative error of restored weights from the original's projections.

    Args:
        original: (1024,) integers in units of `scale`.
        scale: of one unit.
        norm: ||ΔW|| of the original.
        restored: (1024,) projections of the restored weights.
        shares: (modules,) of the squared error, as far as they are known; they decide how wide the bounds are.
    """
    squares = (original * scale - restored) ** 2
    found = math.sqrt(float(squares.mean())) / norm if norm > 0 else 0.0
    # The fourth moment of uᵀEv is at most 9 ||E||⁴ (E of rank 1); independent modules add up towards a normal's 3.
    kurtosis = 3 + 6 * float(np.sum(shares**2))
    spread = min(DEVIATIONS * math.sqrt((kurtosis - 1) / COUNT), 0.99)
    rounding = scale / math.sqrt(12) / norm if norm > 0 else 0.0
    low = math.sqrt(max(found**2 / (1 + spread) - rounding**2, 0.0))
    return Estimate(found, low, math.sqrt(found**2 / (1 - spread) + rounding**2))


def error_shares(layout: Layout, restored: Sequence[Factors], module_errors: Sequence[float]) -> Float64:
    """(modules,) shares of the squared error, from each module's relative error and the restored norms."""
    energies = [
        scale**2 * energy(factors) * error**2
        for scale, factors, error in zip(layout.scales, restored, module_errors, strict=True)
    ]
    total = math.fsum(energies)
    return np.array(energies) / total if 0 < total < math.inf else np.ones(1)


def carry(earlier: Proof, seed: str, modules: Sequence[ModuleFidelity]) -> Proof:
    """The proof of a code that was made from what an earlier code decodes to, the original being gone.

    Errors add up: at most e + d(1 + e), e of the earlier code and d of the new one against it. The projections
    stay the original's, with the seed they were drawn with.
    """
    errors = np.frombuffer(earlier.module_errors, "<f4").astype(np.float64)
    added = np.array([module.relative_error for module in modules])
    facts = {
        **earlier.facts,
        "lorareg": version("lorareg"),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "projection_seed": seed,
        "fidelity": {"measured_against": "what an earlier code decodes to", **summarise(modules)},
    }
    return Proof(facts, (errors + added * (1 + errors)).astype("<f4").tobytes(), earlier.projections)


def norm(layout: Layout, modules: Sequence[Factors]) -> float:
    """||ΔW|| over all modules."""
    return math.sqrt(math.fsum(s**2 * energy(f) for s, f in zip(layout.scales, modules, strict=True)))


def _signed_sums(seed: bytes, index: int, side: bytes, columns: Float64) -> Float64:
    """(1024, n) products of the module's signs (1024, d) with columns (d, n)."""
    size = len(columns)
    start = hashlib.sha256(seed + index.to_bytes(4, "big") + side)
    bits = COUNT * size
    stream = bytearray()
    for counter in range(-(-bits // 256)):
        block = start.copy()
        block.update(counter.to_bytes(8, "big"))
        stream += block.digest()
    minus = np.unpackbits(np.frombuffer(stream, np.uint8), count=bits).reshape(COUNT, size).astype(np.float32)
    # Σ ±x = Σ x - 2 Σ of those with a minus; float32 is a hundred times finer than the int16 that is kept.
    negative: Float64 = (minus @ columns.astype(np.float32)).astype(np.float64)
    return np.asarray(columns.sum(axis=0) - 2.0 * negative)
