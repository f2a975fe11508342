from __future__ import annotations

import math

import numpy as np
import pytest

CURVE = [(0.5, 0.80), (1.0, 0.93), (2.0, 0.975), (4.0, 0.992), (8.0, 0.998)]


def scaled(factor: float) -> list[tuple[float, float]]:
    return [(factor * size, gain) for size, gain in CURVE]


@pytest.mark.parametrize(("factor", "percent"), [(2.0, -50.0), (1.0, 0.0), (0.25, 300.0)])
def test_a_shifted_curve_saves_its_shift(factor: float, percent: float) -> None:
    from curves import compare

    saving = compare(CURVE, scaled(factor))
    assert saving is not None
    assert saving.percent == pytest.approx(percent, abs=1e-9)
    assert (saving.low, saving.high) == (0.80, 0.998)


def test_other_operating_points_of_one_curve_save_nothing() -> None:
    from curves import compare

    def points(gains: np.ndarray) -> list[tuple[float, float]]:
        return [(0.1 * math.exp(3 * gain), float(gain)) for gain in gains]

    saving = compare(points(np.linspace(0.2, 1.0, 9)), points(np.linspace(0.33, 0.9, 5)))
    assert saving is not None
    assert saving.percent == pytest.approx(0, abs=0.05)
    assert saving.low == pytest.approx(0.33)
    assert saving.high == pytest.approx(0.9)


def test_points_that_a_smaller_one_equals_are_left_out() -> None:
    from curves import rising

    assert rising([(2, 0.9), (1, 0.5), (3, 0.8), (4, 0.95), (2, 0.7), (5, math.nan)]) == [(1, 0.5), (2, 0.9), (4, 0.95)]


def test_without_common_gains_the_nearest_points_are_compared() -> None:
    from curves import compare

    lower = compare(CURVE, [(3.0, 0.1), (6.0, 0.4)])
    single = compare(CURVE, [(40.0, 0.99)])
    assert lower is not None
    assert single is not None
    assert (lower.percent, lower.low, lower.high) == (pytest.approx(100 * (0.5 / 6 - 1)), 0.4, 0.80)
    assert "no gain in common" in lower.note
    assert (single.percent, single.low, single.high) == (pytest.approx(-90), 0.99, 0.992)
    assert "one point" in single.note


def test_a_peer_beyond_our_best_is_said_to_be() -> None:
    from curves import compare

    saving = compare(CURVE, [(3.0, 0.9999)])
    assert saving is not None
    assert saving.percent is None
    assert "beyond our best" in saving.note
    assert compare(CURVE, [(3.0, math.nan)]) is None


def test_the_cubic_is_monotone_and_meets_its_points() -> None:
    from curves import monotone_cubic

    x, y = np.array([0.0, 0.1, 0.5, 0.9, 1.0]), np.array([0.0, 2.0, 2.1, 2.2, 9.0])
    assert np.allclose(monotone_cubic(x, y, x), y)
    assert (np.diff(monotone_cubic(x, y, np.linspace(0, 1, 500))) >= -1e-12).all()
    assert np.allclose(monotone_cubic(x, 3 * x, np.linspace(0, 1, 50)), 3 * np.linspace(0, 1, 50))
