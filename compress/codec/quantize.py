"""Quantising residuals: rate against distortion.

The step of a row is one of a fixed grid, 2^(i/4), so that a step is an integer in the code and
an exact number in every decoder. A symbol q stands for the value (|q| - pull) * step with q's sign:
inside a bin small magnitudes are likelier than large ones, so the best point lies a little inwards.
"""

from __future__ import annotations

import math

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.integers.entropy import (
    DEAD_ZONE,
    SCALE_COUNT,
    ZERO_TABLE,
    Int64,
    cheapest_tables,
    reach,
    symbol_bits,
)

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


_STEPS = np.array([step_of(index) for index in range(STEP_COUNT)])


def steps_of(indices: Int64) -> Float64:
    """The steps with these indices, in the same shape."""
    return np.asarray(_STEPS[indices])


def nearest_steps(step: float, partner_norms: Float64) -> Int64:
    """Indices of the grid's steps nearest, in ratio, to `step` over each of the norms."""
    ratios = np.log2(step) - np.log2(np.maximum(partner_norms, np.finfo(float).tiny))
    indices = np.rint(STEPS_PER_OCTAVE * (ratios - _LOWEST_OCTAVE))
    return np.asarray(np.clip(indices, 0, STEP_COUNT - 1), dtype=np.int64)


def quantise(values: Float64, steps: Float64) -> tuple[Int64, Int64]:
    """Quantise rows, trading bits for error symbol by symbol.

    Args:
        values: (rows, width).
        steps: (rows,), each from the grid.

    Returns:
        Symbols (rows, width), and the table that codes each row, (rows,).

    Raises:
        OverflowError: a symbol would be beyond the widest table (the step is far too fine).
    """
    magnitudes = np.abs(values) / steps[:, None]
    largest = float(magnitudes.max(initial=0.0))
    if largest > reach(SCALE_COUNT - 1) - 1:
        raise OverflowError(f"symbol {largest:.0f} is beyond the widest table")
    plain = np.floor(magnitudes + (1 - DEAD_ZONE)).astype(np.int64)
    tables, _ = cheapest_tables(plain)
    low = np.floor(magnitudes).astype(np.int64)
    bits = symbol_bits(tables, int(low.max(initial=0)) + 1)
    rows = np.arange(len(values))[:, None]
    best = np.zeros_like(low)
    least = magnitudes**2 + RATE_WEIGHT * bits[:, :1]
    for candidate in (low, low + 1):
        cost = (magnitudes - candidate + PULL) ** 2 + RATE_WEIGHT * bits[rows, candidate]
        better = (cost < least) & (candidate > 0)
        best = np.where(better, candidate, best)
        least = np.where(better, cost, least)
    best[tables == ZERO_TABLE] = 0
    tables, _ = cheapest_tables(best)
    return np.where(values < 0, -best, best), tables


def dequantise(symbols: Int64, steps: Float64) -> Float64:
    """The values that symbols (..., rows, width) stand for, each row with its own step (..., rows)."""
    values: Float64 = (symbols - np.sign(symbols) * PULL) * steps[..., None]
    return values
