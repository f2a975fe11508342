"""The grid of steps, and quantising rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.codec.quantize import (
    PULL,
    RATE_WEIGHT,
    STEP_COUNT,
    dequantise,
    nearest_steps,
    quantise,
    step_of,
    steps_of,
)
from lorareg.compress.integers.entropy import DEAD_ZONE, ZERO_TABLE, bit_costs, cheapest_table, reach


def test_the_grid_of_steps_is_exact() -> None:
    steps = [step_of(i) for i in range(STEP_COUNT)]
    assert steps[0] == 2.0**-44
    assert all(steps[i + 4] == 2 * steps[i] for i in range(STEP_COUNT - 4))
    assert [s.hex() for s in steps[176:180]] == [
        "0x1.0000000000000p+0",
        "0x1.306fe0a31b715p+0",
        "0x1.6a09e667f3bcdp+0",
        "0x1.ae89f995ad3adp+0",
    ]


def test_the_nearest_step_is_found_and_clamped() -> None:
    indices = np.arange(STEP_COUNT)
    np.testing.assert_array_equal(nearest_steps(1.0, 1 / steps_of(indices)), indices)
    assert nearest_steps(1.05 * step_of(100), np.ones(1)).tolist() == [100]
    assert nearest_steps(1.0, np.array([1e300, 1e-300, 0.0])).tolist() == [0, STEP_COUNT - 1, STEP_COUNT - 1]


def cost(values: np.ndarray, symbols: np.ndarray, table: int) -> float:
    """What quantising in steps of 1 minimises."""
    bits = bit_costs(table)[np.abs(symbols)].sum() if table else 0.0
    return float(((values - dequantise(symbols[None], np.ones(1))[0]) ** 2).sum() + RATE_WEIGHT * bits)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 8.0), st.integers(0, 10_000))
def test_trading_bits_for_error_is_never_worse_than_rounding(count: int, spread: float, seed: int) -> None:
    values = np.random.default_rng(seed).logistic(0, spread, (3, count)) * [[1], [0.1], [4]]
    plain = (np.sign(values) * np.floor(np.abs(values) + 1 - DEAD_ZONE)).astype(np.int64)
    symbols, tables = quantise(values, np.ones(3))
    for row, drawn, table, rounded in zip(values, symbols, tables, plain, strict=True):
        assert cost(row, drawn, int(table)) <= cost(row, rounded, cheapest_table(rounded)[0]) * 1.0001 + 1e-9
        assert (np.abs(drawn).max() <= reach(int(table))) if table else not drawn.any()
        magnitudes = np.abs(drawn)
        if table:
            assert bit_costs(int(table))[magnitudes].sum() <= cheapest_table(drawn)[1] * 1.005 + 1


def test_a_symbol_stands_for_a_point_pulled_inwards() -> None:
    values = dequantise(np.array([[-2, -1, 0, 1, 2]]), np.array([0.5]))
    np.testing.assert_array_equal(values[0], [-(2 - PULL) / 2, -(1 - PULL) / 2, 0, (1 - PULL) / 2, (2 - PULL) / 2])


def test_a_row_below_the_dead_zone_is_zero() -> None:
    symbols, tables = quantise(np.array([[0.3, -0.39, 0.0], [0.0, 0.0, 7.0]]), np.ones(2))
    assert tables[0] == ZERO_TABLE
    assert not symbols[0].any()
    assert symbols[1].tolist() == [0, 0, 7]


@pytest.mark.parametrize("value", [1.0, 1e38, -1e38])
def test_a_step_far_too_fine_overflows(value: float) -> None:
    with pytest.raises(OverflowError, match="is beyond the widest table"):
        quantise(np.array([[value]]), np.array([2.0**-44]))
