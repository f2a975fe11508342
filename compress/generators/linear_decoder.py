"""The linear decoder: the mean table and a few tables more, mixed by the latent.

    slot = mean + sum over k of latent[k] * basis[k]

This is the decoder of a linear VAE, whose optimum is the principal subspace of the cohort (Lucas et
al., 2019), so it is found by an eigendecomposition instead of training (`linear_basis`). Where
adapters lie near a low-dimensional subspace, as the checkpoints of one training run do, it draws
them nearly whole; where tasks are independent a table costs more than it saves, and `plan` leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.types import Layout

NAME = "linear"


def tensor_shapes(layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """One tensor a slot: the rows of all its basis tables, (latent * r, width)."""
    slots = range(len(layout.slots))
    return {f"basis.{i}": (latent * rank_of(layout, i), width_of(layout, i)) for i in slots}


def decode(layout: Layout, tensors: Mapping[str, IntTensor], latent: Float64, condition: Float64) -> list[Float64]:
    """What the latent adds to the mean: rows (r, width) of every slot, in layout order.

    Integers below 2^30: basis entries are below 2^15 and latents, in activation units, below 2^13;
    their sum is clamped. A basis tensor's exponent is its slot's exponent.
    """
    limit = float(1 << 30)
    slots = []
    for index in range(len(layout.slots)):
        rows, width = rank_of(layout, index), width_of(layout, index)
        basis = tensors[f"basis.{index}"].values.reshape(len(latent), rows * width)
        slots.append(np.clip(latent @ basis, -limit, limit).reshape(rows, width))
    return slots
