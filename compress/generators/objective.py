"""What training minimises: the bits that the residual codec will spend on what is left.

A squared deviation of one row costs ΔW in proportion to the squared norm of its partner in the
other factor. At a tolerance t the codec spreads an allowed error of t² of ΔW's energy evenly over
all coefficients ("reverse water-filling", Cover & Thomas, section 10.3): coefficients weaker than
the water level D are left out, the others cost log2(energy / D) / 2 bits each. So a row of width d
whose weighted error is e costs about

    d / 2 * log2(1 + e / (d * D))   bits.

Plain squared error is the wrong measure here: a network that lowered it by 7% made the codes 16%
larger, because it put noise into the many weak rows that would have cost nothing. `conv1d` keeps
the paper's mean square, to be the paper's row in comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorareg.compress.factors.fidelity import energy
from lorareg.compress.factors.scratch import parts_of
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.registry.types import Layout

MOST_ALLOWED = 0.25
"""Share of the mean's error that counts as allowed at most, so that loose tolerances still teach something."""


def row_costs(layout: Layout, modules: Sequence[Factors], slot_exponents: Sequence[int]) -> list[Float64]:
    """Per slot, what a squared deviation (in units of the slot's scale) of each row costs, (r, 1).

    In shares of the adapter's ΔW energy, to first order in the deviation.
    """
    scales = np.asarray(layout.scales)
    total = math.fsum(s**2 * energy(f) for s, f in zip(scales, modules, strict=True))
    partners = [norms for f in modules for norms in (np.linalg.norm(f.b, axis=0), np.linalg.norm(f.a, axis=1))]
    return [
        (np.ldexp(norms, exponent) * scales[index // 2])[:, None] ** 2 / max(total, np.finfo(float).tiny)
        for index, (norms, exponent) in enumerate(zip(partners, slot_exponents, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class ResidualBits:
    """Bits of the residual per adapter, relative to those with the mean alone."""

    costs: list[Tensor]  # per block (m, tokens, 1)
    widths: Tensor  # (all tokens,)
    water: Tensor  # (m, 1)
    null: Tensor  # (m,) bits with the mean alone

    @staticmethod
    def of(blocks: Sequence[Tensor], costs: Sequence[Tensor], tolerance: float) -> ResidualBits:
        parts = parts_of(len(blocks[0]), sum(block[0].numel() for block in blocks))
        errors = torch.cat([_errors((b[part] for b in blocks), costs, part) for part in parts])
        widths = torch.cat([torch.full((b.shape[1],), float(b.shape[-1])) for b in blocks])
        allowed = torch.minimum(torch.full((len(errors),), tolerance**2), MOST_ALLOWED * errors.sum(dim=1))
        water = water_level(errors, widths, allowed)
        return ResidualBits(list(costs), widths, water, _bits(errors, widths, water))

    def to(self, device: torch.device) -> ResidualBits:
        """The same on another device."""
        costs = [cost.to(device) for cost in self.costs]
        return ResidualBits(costs, self.widths.to(device), self.water.to(device), self.null.to(device))

    def __call__(self, drawn: Sequence[Tensor], blocks: Sequence[Tensor], part: Tensor | slice) -> Tensor:
        """Bits of adapters `part`, (m,), as a share of the null model's."""
        errors = _errors((d - b for d, b in zip(drawn, blocks, strict=True)), self.costs, part)
        return _bits(errors, self.widths, self.water[part]) / self.null[part]


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """The paper's loss: mean squared error over the flattened adapter."""

    def to(self, device: torch.device) -> MeanSquare:
        """It holds nothing."""
        return self

    def __call__(self, drawn: Sequence[Tensor], blocks: Sequence[Tensor], part: Tensor | slice) -> Tensor:
        return (drawn[0] - blocks[0]).square().mean(dim=1)


def water_level(errors: Tensor, widths: Tensor, allowed: Tensor) -> Tensor:
    """D per adapter, (m, 1), such that rows cut off at D * width sum to `allowed` (m,); by bisection."""
    low, high = torch.full_like(allowed, -46.0), torch.full_like(allowed, 2.0)  # natural logarithms
    for _ in range(50):
        middle = (low + high) / 2
        cut = torch.minimum(errors, widths * middle.exp()[:, None]).sum(dim=1)
        low, high = torch.where(cut > allowed, low, middle), torch.where(cut > allowed, middle, high)
    return low.exp()[:, None]


def _errors(deviations: Iterable[Tensor], costs: Sequence[Tensor], part: Tensor | slice) -> Tensor:
    """Weighted error of every row of adapters `part`, (m, all tokens)."""
    return torch.cat([(d.square() * c[part]).sum(dim=-1) for d, c in zip(deviations, costs, strict=True)], dim=1)


def _bits(errors: Tensor, widths: Tensor, water: Tensor) -> Tensor:
    return (widths / 2 * torch.log2(1 + errors / (widths * water))).sum(dim=1)
