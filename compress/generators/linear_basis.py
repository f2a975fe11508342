"""Finding the subspace that a cohort's adapters lie in, and where in it each one lies.

Rows of `a` and columns of `b` are weighted by their partners' norms, so that distances are those of
ΔW to first order. Adapters are compared by their inner products alone: memory follows the cohort's
own size, never the square of an adapter's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.scratch import parts_of
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators.generator import LATENT_EXPONENT, Generator, Int8
from lorareg.compress.generators.grid import factor_rows

_LARGEST_LATENT = 3.9


@dataclass(frozen=True, slots=True)
class Basis:
    """The leading principal components of a cohort, one row of `latents` an adapter."""

    latents: list[Int8]  # (k,) each
    tables: list[Float64]  # one a slot, (k, r, width)


def row_weights(modules: Sequence[Factors]) -> list[Float64]:
    """For every slot, the weight of each of its rows (r, 1): the norm of the partner it is multiplied with."""
    weights = []
    for factors in modules:
        b_norms, a_norms = np.linalg.norm(factors.b, axis=0), np.linalg.norm(factors.a, axis=1)
        weights += [b_norms[:, None], a_norms[:, None]]
    return weights


def find_components(
    slots: Sequence[NDArray[np.float32]], means: Sequence[Float64], weights: Sequence[Float64]
) -> Float64:
    """How much of each principal component there is in each adapter (adapters, adapters), the strongest first.

    Args:
        slots: for every slot, its rows in each adapter (adapters, r, width).
        means: for every slot, (r, width).
        weights: for every slot, the weight of each row (r, 1).
    """
    count = len(slots[0])
    gram = np.zeros((count, count))
    for slot, mean, weight in zip(slots, means, weights, strict=True):
        for rows in _row_parts(slot):
            flat = ((slot[:, rows] - mean[rows]) * weight[rows]).reshape(count, -1)
            gram += flat @ flat.T
    return np.asarray(np.linalg.eigh(gram)[1][:, ::-1])


def find_basis(slots: Sequence[NDArray[np.float32]], means: Sequence[Float64], components: Float64, size: int) -> Basis:
    """The tables of the `size` strongest of a cohort's `components` (see `find_components`) around `means`."""
    scores = components[:, :size]
    scores = scores * (_LARGEST_LATENT / np.abs(scores).max(axis=0))
    stored = np.rint(np.ldexp(scores, -LATENT_EXPONENT)).astype(np.int8)
    exact = np.ldexp(stored.astype(np.float64), LATENT_EXPONENT)
    solve = np.linalg.pinv(exact)  # (k, adapters)
    tables = [
        np.concatenate([np.tensordot(solve, slot[:, rows] - mean[rows], axes=1) for rows in _row_parts(slot)], axis=1)
        for slot, mean in zip(slots, means, strict=True)
    ]
    return Basis(list(stored), tables)


def _row_parts(slot: NDArray[np.float32]) -> list[slice]:
    """Parts of a slot's rows, over all adapters, that fit into memory together."""
    count, rank, width = slot.shape
    return parts_of(rank, count * width)


def fit_latent(generator: Generator, modules: Sequence[Factors]) -> Int8:
    """The latent whose drawing lies closest to an adapter, given in the generator's coordinates."""
    weights = row_weights(modules)
    rows = zip(factor_rows(modules), generator.means, generator.tensors.values(), weights, strict=True)
    k = generator.latent_size
    gram, inner = np.zeros((k, k)), np.zeros(k)
    for wanted, mean, basis, weight in rows:
        tables = (basis.real.reshape(k, *wanted.shape) * weight).reshape(k, -1)
        gram += tables @ tables.T
        inner += tables @ ((wanted - mean.real) * weight).ravel()
    latent = np.linalg.lstsq(gram, inner, rcond=None)[0]
    return np.asarray(np.clip(np.rint(np.ldexp(latent, -LATENT_EXPONENT)), -127, 127), np.int8)
