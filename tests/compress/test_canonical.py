"""Coordinates: none of them changes ΔW."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.factors.canonical import (
    aligned,
    balanced,
    group_by_init,
    principal_frame,
    shared_frames,
    turned,
)
from lorareg.compress.factors.weights import Factors

sizes = st.integers(1, 9)


def random_factors(d_out: int, rank: int, d_in: int, seed: int = 0) -> Factors:
    random = np.random.default_rng(seed)
    return Factors(b=random.normal(size=(d_out, rank)), a=random.normal(size=(rank, d_in)))


def random_rotation(rank: int, seed: int = 0) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(rank, rank)))
    return rotation


@settings(max_examples=80, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 1000))
def test_balanced_factors_have_the_same_delta(d_out: int, rank: int, d_in: int, seed: int) -> None:
    factors = random_factors(d_out, rank, d_in, seed)
    result = balanced(factors)
    assert (result.b.shape, result.a.shape) == (factors.b.shape, factors.a.shape)
    np.testing.assert_allclose(result.delta, factors.delta, atol=1e-10)
    energies = np.linalg.norm(result.b, axis=0)
    assert (np.diff(energies) <= 1e-10).all()
    np.testing.assert_allclose(energies, np.linalg.norm(result.a, axis=1), atol=1e-7)
    strongest = result.b[np.abs(result.b).argmax(axis=0), np.arange(rank)]
    assert (strongest >= 0).all()


def test_balanced_factors_do_not_depend_on_the_gauge() -> None:
    factors = random_factors(9, 3, 7)
    gauge = np.random.default_rng(5).normal(size=(3, 3))
    other = balanced(Factors(b=factors.b @ gauge, a=np.linalg.solve(gauge, factors.a)))
    np.testing.assert_allclose(balanced(factors).b, other.b, atol=1e-9)
    np.testing.assert_allclose(balanced(factors).a, other.a, atol=1e-9)


@pytest.mark.parametrize("zero", ["a", "b"])
def test_balanced_zero_is_zero(zero: str) -> None:
    factors = random_factors(5, 2, 4)
    emptied = Factors(b=factors.b * (zero != "b"), a=factors.a * (zero != "a"))
    result = balanced(emptied)
    assert not result.b.any()
    assert not result.a.any()


def test_adapters_group_by_their_initial_a() -> None:
    inits = [random_factors(4, 3, 30, seed).a for seed in (1, 2)]

    def adapter(init: int, seed: int) -> list[Factors]:
        noise = np.random.default_rng(seed)
        return [Factors(b=noise.normal(size=(4, 3)), a=inits[init] + 0.2 * noise.normal(size=(3, 30)))]

    alone = [random_factors(4, 3, 30, 77)]
    assert group_by_init([adapter(0, 5), adapter(1, 6), adapter(0, 7), alone, adapter(1, 8)]) == [[0, 2], [1, 4], [3]]
    assert group_by_init([]) == []
    nothing = [Factors(b=np.zeros((4, 3)), a=np.zeros((3, 30)))]
    assert group_by_init([nothing, nothing]) == [[0], [1]]


def test_shared_frames_order_the_groups_energy() -> None:
    adapters = [[random_factors(8, 3, 5, seed)] for seed in range(6)]
    (frame,) = shared_frames(adapters)
    np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-12)
    energies = np.sum([np.sum(turned(f, frame).b ** 2, axis=0) for (f,) in adapters], axis=0)
    assert (np.diff(energies) <= 0).all()


def test_turning_keeps_delta_and_aligning_undoes_it() -> None:
    factors = random_factors(8, 4, 9)
    moved = turned(factors, random_rotation(4))
    np.testing.assert_allclose(moved.delta, factors.delta, atol=1e-12)
    back = aligned(moved, factors)
    np.testing.assert_allclose(back.a, factors.a, atol=1e-10)
    np.testing.assert_allclose(back.b, factors.b, atol=1e-10)


@settings(max_examples=80, deadline=None)
@given(sizes, sizes, st.integers(0, 1000), st.booleans())
def test_a_principal_frame_is_a_rotation_that_makes_b_orthogonal(d_out: int, rank: int, seed: int, flat: bool) -> None:
    b = random_factors(d_out, rank, 2, seed).b
    if flat:
        b = b[:, :1] @ np.ones((1, rank))
    frame = principal_frame(b)
    np.testing.assert_allclose(frame.T @ frame, np.eye(rank), atol=1e-9)
    inner = (b @ frame).T @ (b @ frame)
    np.testing.assert_allclose(inner - np.diag(np.diagonal(inner)), 0, atol=1e-8)
    assert (np.diagonal(frame) >= -1e-12).all()
