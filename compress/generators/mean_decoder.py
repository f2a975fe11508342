"""The null model as an architecture: the cohort's mean table and no network at all.

A generator that does not beat it has learned nothing, so it takes part in every comparison, and is
kept where nothing does beat it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.grid import rank_of, width_of
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.types import Layout

NAME = "mean"


def tensor_shapes(layout: Layout, latent: int, condition: int, config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """No tensors."""
    return {}


def decode(layout: Layout, tensors: Mapping[str, IntTensor], latent: Float64, condition: Float64) -> list[Float64]:
    """Nothing to add to the mean: zeros (r, width) for every slot."""
    return [np.zeros((rank_of(layout, i), width_of(layout, i))) for i in range(len(layout.slots))]
