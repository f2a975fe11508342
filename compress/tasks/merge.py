"""Adding adapters up: a weighted sum of weight updates as one adapter of the rank that is wanted.

    sum of w_i b_i a_i  =  [w_1 b_1 ... w_m b_m] [a_1; ...; a_m]  --> QR of both --> SVD of the core --> r components

That is exactly the nearest adapter of rank r in the Frobenius norm (Eckart and Young, 1936), found without ever forming
a d_out by d_in product. Inner products of updates come from the factors likewise. Adding in ΔW, not factor by factor,
makes the sum the same in whatever gauge each adapter is written, and for adapters of any initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorareg.compress.factors.canonical import balanced
from lorareg.compress.factors.weights import Factors, Float64


def merged(adapters: Sequence[Sequence[Factors]], weights: Sequence[float], ranks: Sequence[int]) -> list[Factors]:
    """The best approximation of each module's weighted sum of ΔW by an adapter of its rank, in balanced factors.

    Args:
        adapters: m adapters of one layout (their scales are the same, so they are left out on both sides).
        weights: one an adapter; they need not sum to 1.
        ranks: of the result, one a module; components that the sum does not have are zeros.
    """
    chosen = [(modules, weight) for modules, weight in zip(adapters, weights, strict=True) if weight]
    if not chosen:
        chosen = [(adapters[0], 0.0)]
    return [
        truncated(
            Factors(
                b=np.concatenate([weight * modules[i].b for modules, weight in chosen], axis=1),  # (d_out, m r)
                a=np.concatenate([modules[i].a for modules, _ in chosen]),  # (m r, d_in)
            ),
            rank,
        )
        for i, rank in enumerate(ranks)
    ]


def truncated(factors: Factors, rank: int) -> Factors:
    """The strongest `rank` components of a module's ΔW, zeros where it has fewer."""
    strongest = balanced(factors)
    missing = max(rank - strongest.rank, 0)
    return Factors(
        b=np.pad(strongest.b[:, :rank], ((0, 0), (0, missing))),
        a=np.pad(strongest.a[:rank], ((0, missing), (0, 0))),
    )


def inner_products(adapters: Sequence[Sequence[Factors]], scales: Sequence[float]) -> Float64:
    """<ΔW_i, ΔW_j> of each module for every two adapters, (modules, m, m).

    From the factors alone: scale² times the sum of all entries of (a_i a_j') * (b_i' b_j).
    """
    count = len(adapters)
    grams = np.empty((len(scales), count, count))
    for i, scale in enumerate(scales):
        a = np.concatenate([modules[i].a for modules in adapters])  # (m r, d_in)
        b = np.concatenate([modules[i].b for modules in adapters], axis=1)  # (d_out, m r)
        for j, modules in enumerate(adapters):
            products = (modules[i].a @ a.T) * (modules[i].b.T @ b)  # (r, m r)
            grams[i, j] = scale**2 * products.sum(axis=0).reshape(count, -1).sum(axis=1)
    return grams
