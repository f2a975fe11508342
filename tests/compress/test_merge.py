"""Sums of adapters are exact in ΔW, at any rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorareg.compress.factors.weights import Factors
from lorareg.compress.tasks.merge import inner_products, merged, truncated

SHAPES = ((10, 2, 12), (3, 2, 7), (1, 2, 9))


@pytest.fixture
def adapters(make: Any) -> list[list[Factors]]:
    return [make.factors(make.layout(SHAPES), seed) for seed in range(4)]


def dense(adapters: list[list[Factors]], weights: list[float], module: int) -> np.ndarray:
    return np.sum([w * modules[module].delta for modules, w in zip(adapters, weights, strict=True)], axis=0)


def test_a_sum_of_full_rank_is_exact(adapters: list[list[Factors]]) -> None:
    weights = [0.5, -1.0, 0.0, 2.0]
    found = merged(adapters, weights, [8, 8, 8])
    for module, factors in enumerate(found):
        assert factors.b.shape[1] == factors.a.shape[0] == 8
        np.testing.assert_allclose(factors.delta, dense(adapters, weights, module), atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_adapter_of_that_rank_is_nearer(adapters: list[list[Factors]], rank: int) -> None:
    weights = [0.4, 0.3, 0.2, 0.1]
    for module, factors in enumerate(merged(adapters, weights, [rank] * 3)):
        wanted = dense(adapters, weights, module)
        left = np.linalg.svd(wanted, compute_uv=False)[rank:]
        assert np.linalg.norm(wanted - factors.delta) == pytest.approx(np.linalg.norm(left), abs=1e-10)
        assert factors.a.shape[0] == rank


def test_one_adapter_alone_stays_what_it_is(adapters: list[list[Factors]]) -> None:
    for before, after in zip(adapters[2], merged(adapters, [0, 0, 1, 0], [2, 2, 2]), strict=True):
        np.testing.assert_allclose(after.delta, before.delta, atol=1e-12)


def test_no_weights_give_zeros_of_the_rank(adapters: list[list[Factors]]) -> None:
    for factors in merged(adapters, [0, 0, 0, 0], [2, 5, 2]):
        assert not factors.b.any()
        assert not factors.a.any()
    assert merged(adapters, [0, 0, 0, 0], [2, 5, 2])[1].a.shape == (5, 7)


def test_the_gauge_of_an_adapter_does_not_matter(adapters: list[list[Factors]]) -> None:
    gauge = np.array([[2.0, 1.0], [0.5, -1.0]])
    turned = [Factors(b=f.b @ gauge, a=np.linalg.solve(gauge, f.a)) for f in adapters[1]]
    weights, ranks = [0.6, 0.4], [2, 2, 2]
    first, second = merged(adapters[:2], weights, ranks), merged([adapters[0], turned], weights, ranks)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.delta, other.delta, atol=1e-10)


def test_inner_products_are_those_of_delta_w(adapters: list[list[Factors]]) -> None:
    scales = (2.0, 0.5, 1.0)
    grams = inner_products(adapters, scales)
    for module, scale in enumerate(scales):
        deltas = np.stack([scale * modules[module].delta.ravel() for modules in adapters])
        np.testing.assert_allclose(grams[module], deltas @ deltas.T, atol=1e-10)


def test_truncating_pads_with_zeros() -> None:
    factors = Factors(b=np.ones((3, 1)), a=np.ones((1, 4)))
    wide = truncated(factors, 3)
    assert (wide.b.shape, wide.a.shape) == ((3, 3), (3, 4))
    np.testing.assert_allclose(wide.delta, np.ones((3, 4)))
