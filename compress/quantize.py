"""Quantising one vector of residuals: rate against distortion.

The step of a vector is one of a fixed grid, 2^(i/4), so that a step is an integer in the code and
an exact number in every decoder. A symbol q stands for the value (|q| - pull) * step with q's sign:
inside a bin small magnitudes are likelier than large ones, so the best point lies a little inwards.
"""

from __future__ import annotations

import math

import numpy as np

from lorareg.compress.entropy import DEAD_ZONE, ZERO_TABLE, Int64, bit_costs, cheapest_table, reach
from lorareg.compress.weights import Float64

STEP_COUNT = 256
STEPS_PER_OCTAVE = 4
_LOWEST_OCTAVE = -44
_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(i/4), correctly rounded

PULL = 0.08
"""How far a point lies inwards, in steps; 0.05-0.10 measured alike."""

RATE_WEIGHT = 0.13
"""Squared steps worth paying for a bit: the slope of the rate-distortion curve, measured."""


def step_of(index: int) -> float:
    """The step with this index of the grid, exact on every machine."""
    return math.ldexp(_QUARTERS[index % STEPS_PER_OCTAVE], index // STEPS_PER_OCTAVE + _LOWEST_OCTAVE)


def nearest_step(step: float) -> int:
    """The index of the grid's step nearest to `step` in ratio."""
    index = round(STEPS_PER_OCTAVE * (math.log2(max(step, 2.0**-60)) - _LOWEST_OCTAVE))
    return min(max(index, 0), STEP_COUNT - 1)


def quantise(values: Float64, step: float) -> tuple[Int64, int]:
    """Symbols for `values` and the table that codes them, trading bits for error bin by bin."""
    magnitude = np.abs(values) / step
    symbols = np.floor(magnitude + (1 - DEAD_ZONE)).astype(np.int64)
    table, _ = cheapest_table(symbols)
    if table == ZERO_TABLE:
        return symbols, table
    bits = np.append(bit_costs(table), np.inf)
    low = np.minimum(np.floor(magnitude).astype(np.int64), reach(table))
    candidates = np.stack([np.zeros_like(low), low, low + 1])
    points = np.where(candidates > 0, candidates - PULL, 0.0)
    costs = (magnitude - points) ** 2 + RATE_WEIGHT * bits[candidates]
    symbols = np.take_along_axis(candidates, costs.argmin(axis=0)[None], axis=0)[0]
    table, _ = cheapest_table(symbols)
    return np.where(values < 0, -symbols, symbols), table


def dequantise(symbols: Int64, step: float) -> Float64:
    """The values that `symbols` stand for."""
    return (symbols - np.sign(symbols) * PULL) * step
