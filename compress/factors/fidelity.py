"""How close a restored adapter is to its original, at the level of weights.

Everything is about ΔW = scale * b @ a, which is what the model feels; the factors themselves may
differ by a gauge. Norms come from small Gram matrices, never from a d_out by d_in product:
||Σ b a||² = trace((b'b)(a a')), with the two adapters' factors side by side for their difference.
Only the largest single error, which a certificate names, takes that product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.registry.errors import LayoutMismatchError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.types import WEIGHTS_FILE, Layout

ENTRIES_AT_ONCE = 1 << 20
"""Entries of a d_out by d_in product that are in memory together."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Measured between a decoded adapter and its original.

    `relative_error` is ||ΔW - ΔW'||_F / ||ΔW||_F over all modules together (0 is exact, 1 is as
    good as nothing); `worst_module_error` the same ratio within the worst module.
    """

    relative_error: float
    cosine: float
    worst_module: str
    worst_module_error: float
    exact: bool

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def measure(layout: Layout, original: Sequence[Factors], restored: Sequence[Factors]) -> Fidelity:
    """Compare two adapters of one layout. One without factors is exact: only the lossless codec gives it back."""
    if not layout.slots:
        return Fidelity(relative_error=0.0, cosine=1.0, worst_module="", worst_module_error=0.0, exact=True)
    energies, errors, inners = [], [], []
    for scale, x, y in zip(layout.scales, original, restored, strict=True):
        difference = Factors(b=np.concatenate([x.b, -y.b], axis=1), a=np.concatenate([x.a, y.a]))
        energies.append((scale**2 * energy(x), scale**2 * energy(y)))
        errors.append(scale**2 * energy(difference))
        inners.append(scale**2 * float(np.sum((x.b.T @ y.b) * (x.a @ y.a.T))))
    total, other = (math.fsum(e) for e in zip(*energies, strict=True))
    ratios = [_ratio(e, energy[0]) for e, energy in zip(errors, energies, strict=True)]
    worst = max(range(len(ratios)), key=ratios.__getitem__)
    exact = all(np.array_equal(x.a, y.a) and np.array_equal(x.b, y.b) for x, y in zip(original, restored, strict=True))
    return Fidelity(
        relative_error=0.0 if exact else _ratio(math.fsum(errors), total),
        cosine=1.0 if exact else math.fsum(inners) / max(math.sqrt(total * other), np.finfo(float).tiny),
        worst_module=layout.modules[worst],
        worst_module_error=0.0 if exact else ratios[worst],
        exact=exact,
    )


@dataclass(frozen=True, slots=True)
class ModuleFidelity:
    """One module of a restored adapter against its original; `max_error` is the largest |ΔW - ΔW'| of any weight."""

    module: str
    relative_error: float
    cosine: float
    max_error: float
    not_a_number: int  # restored weights
    infinite: int


def measure_modules(
    layout: Layout, original: Sequence[Factors], restored: Sequence[Factors]
) -> tuple[ModuleFidelity, ...]:
    """Compare two adapters of one layout, module by module."""
    measured = []
    for module, scale, x, y in zip(layout.modules, layout.scales, original, restored, strict=True):
        values = np.concatenate([y.b.ravel(), y.a.ravel()])
        bad = [int(np.isnan(values).sum()), int(np.isinf(values).sum())]
        if any(bad):
            measured.append(ModuleFidelity(module, math.inf, 0.0, math.inf, *bad))
            continue
        difference = Factors(b=np.concatenate([x.b, -y.b], axis=1), a=np.concatenate([x.a, y.a]))
        same = np.array_equal(x.a, y.a) and np.array_equal(x.b, y.b)
        inner = float(np.sum((x.b.T @ y.b) * (x.a @ y.a.T)))
        measured.append(
            ModuleFidelity(
                module,
                0.0 if same else _ratio(energy(difference), energy(x)),
                1.0 if same else inner / max(math.sqrt(energy(x) * energy(y)), np.finfo(float).tiny),
                0.0 if same else abs(scale) * _largest(difference),
                *bad,
            )
        )
    return tuple(measured)


def summarise(modules: Sequence[ModuleFidelity]) -> dict[str, Any]:
    """The worst of the modules by each measure, and how many weights are no numbers; nothing without modules."""
    if not modules:
        return {}
    worst = max(modules, key=lambda module: module.relative_error)
    largest = max(modules, key=lambda module: module.max_error)
    least = min(modules, key=lambda module: module.cosine)
    return {
        "worst_module": worst.module,
        "worst_module_error": worst.relative_error,
        "least_cosine": least.cosine,
        "least_cosine_module": least.module,
        "max_error": largest.max_error,
        "max_error_module": largest.module,
        "not_a_number": sum(module.not_a_number for module in modules),
        "infinite": sum(module.infinite for module in modules),
    }


def _largest(difference: Factors) -> float:
    """The largest absolute value of b @ a, some rows at a time."""
    rows = max(1, ENTRIES_AT_ONCE // difference.a.shape[1])
    blocks = range(0, len(difference.b), rows)
    return max(float(np.abs(difference.b[i : i + rows] @ difference.a).max(initial=0.0)) for i in blocks)


def energy(factors: Factors) -> float:
    """||b @ a||², squared Frobenius norm, never below zero."""
    return max(float(np.sum((factors.b.T @ factors.b) * (factors.a @ factors.a.T))), 0.0)


def compare_folders(original: Path, restored: Path) -> Fidelity:
    """Compare two PEFT folders on disk.

    Raises:
        LayoutMismatchError: they do not hold adapters of one layout.
        InvalidAdapterError: one of them is not a valid PEFT folder.
    """
    left, right = read_folder(original), read_folder(restored)
    if left.layout != right.layout:
        raise LayoutMismatchError(
            what=str(restored),
            found=right.layout.digest[:16],
            expected=left.layout.digest[:16],
            remedy="Only adapters with the same modules, shapes and scales can be compared.",
        )
    first, second = (read_weights((folder.path / WEIGHTS_FILE).read_bytes(), folder.layout) for folder in (left, right))
    return measure(left.layout, first, second)


def _ratio(error: float, total: float) -> float:
    if total > 0:
        return math.sqrt(max(error, 0.0) / total)
    return 0.0 if error <= 0 else math.inf
