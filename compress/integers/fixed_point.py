"""Arithmetic that gives the same integers on every machine.

Floating-point matrix products differ between machines, thread counts and library versions, because
the order of summation does. Products of integers do not, as long as every partial sum stays below
2^53 and so is exact in float64. The generator's decoder therefore runs on integer-valued float64:
weights of at most 2^15, activations of 16 bits, a shift and a clamp after every product.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lorareg.compress.factors.weights import Float64

ACTIVATION_EXPONENT = -10
"""Activations are integers in units of 2^-10, clamped to 16 bits: ±32 in steps of a thousandth."""

ACTIVATION_LIMIT = float((1 << 15) - 1)
_ELU_INPUTS = 1 << 13  # exp(-8) is below one unit, so ELU is flat beyond -8
_ELU_FRACTION_BITS = 62


def requantise(accumulator: Float64, exponent: int) -> Float64:
    """Bring integers in units of 2^exponent to activations: round to nearest, ties up, then clamp."""
    scaled = np.floor(np.ldexp(accumulator, exponent - ACTIVATION_EXPONENT) + 0.5)
    return np.clip(scaled, -ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def relu(activations: Float64) -> Float64:
    """The positive part."""
    return np.maximum(activations, 0.0)


def elu(activations: Float64) -> Float64:
    """exp(x) - 1 below zero, x above, by table."""
    below = np.minimum(-activations, _ELU_INPUTS - 1).clip(min=0).astype(np.int64)
    return np.where(activations < 0, _elu_table()[below], activations)


@cache
def _elu_table() -> Float64:
    """exp(-i 2^-10) - 1 in activation units, by repeated 62-bit integer multiplication."""
    # exp(-2^-10) from its series, in integers: the C library's exp differs in its last bit between machines.
    one = 1 << _ELU_FRACTION_BITS
    ratio, term = 0, one
    for n in range(1, 9):
        ratio += term
        term = -term // (n << -ACTIVATION_EXPONENT)
    table, power = [], one
    for _ in range(_ELU_INPUTS):
        table.append(
            ((power - one) + (1 << (_ELU_FRACTION_BITS + ACTIVATION_EXPONENT - 1)))
            >> (_ELU_FRACTION_BITS + ACTIVATION_EXPONENT)
        )
        power = (power * ratio) >> _ELU_FRACTION_BITS
    return np.array(table, dtype=np.float64)
