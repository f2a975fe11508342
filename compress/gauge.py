"""Coding the rotation from the cohort's coordinates into an adapter's own principal frame.

The frame is near the identity, because the cohort's coordinates are already ordered by energy. It
is stored coarsely, in sixteenths, and made orthogonal again by Newton-Schulz steps in fixed point:
products of integers below 2^53 in float64 are exact in any order of summation, so every machine
arrives at the same integers. Being coarse costs nothing but a slightly less favourable frame; the
encoder works with the rotation as decoded.
"""

from __future__ import annotations

import numpy as np

from lorareg.compress.entropy import Int64
from lorareg.compress.weights import Float64

COARSE_BITS = 4
FRACTION_BITS = 14
_NEWTON_STEPS = 4
_LIMIT = float(1 << (FRACTION_BITS + 1))


def quantise_rotation(rotation: Float64) -> Int64:
    """A rotation (r, r) in sixteenths, less the identity."""
    coarse = np.rint(rotation * (1 << COARSE_BITS)).astype(np.int64)
    return coarse - (np.eye(len(rotation), dtype=np.int64) << COARSE_BITS)


def restore_rotation(coarse: Int64) -> Float64:
    """The orthogonal matrix (r, r) that `coarse` stands for, integers in units of 2^-14.

    Newton-Schulz, G <- G (3 I - G'G) / 2: it converges for the coarse rotations the encoder makes
    (singular values within 0.7 to 1.3). Entries are clamped, so any input stays exact.
    """
    identity = np.eye(len(coarse))
    unit = 1 << FRACTION_BITS
    turned = (coarse + identity * (1 << COARSE_BITS)) * (unit >> COARSE_BITS)
    for _ in range(_NEWTON_STEPS):
        turned = np.clip(turned, -_LIMIT, _LIMIT)
        inner = 3 * unit * identity - np.floor((turned.T @ turned) / unit + 0.5)
        turned = np.floor((turned @ inner) / (2 * unit) + 0.5)
    return np.clip(turned, -_LIMIT, _LIMIT)
