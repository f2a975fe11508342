"""Rate-distortion points, and what one curve saves against another at equal gain.

The saving is Bjøntegaard's (ITU-T VCEG-M33), with gain retained in place of PSNR: the logarithm of
the bytes as a monotone piecewise cubic of the gain (Fritsch and Carlson 1980, so that no overshoot
invents a saving), averaged over the gains that both curves reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SAMPLES = 2001
OURS = "ours"
"""What the names of our own methods begin with."""


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one operating point, on one collection. A point with a reason was not measured."""

    name: str
    marginal_bytes: float = math.nan  # mean per adapter
    shared_bytes: float = math.nan
    original_bytes: float = math.nan  # mean per adapter
    count: int = 0  # adapters that the shared bytes are spread over
    errors: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    reason: str = ""

    @property
    def family(self) -> str:
        """The method: the name up to its first comma."""
        return self.name.partition(",")[0]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def total_percent(self) -> float:
        """All bytes for `count` adapters, in % of their files."""
        return 100 * (self.shared_bytes + self.count * self.marginal_bytes) / (self.count * self.original_bytes)

    @property
    def marginal_percent(self) -> float:
        return 100 * self.marginal_bytes / self.original_bytes

    @property
    def gain(self) -> float:
        """Mean gain retained; not a number where none was measured."""
        return float(np.mean(self.gains)) if self.gains else math.nan

    @property
    def worst_gain(self) -> float:
        return min(self.gains, default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        if self.reason:
            return {"name": self.name, "family": self.family, "reason": self.reason}
        return {
            "name": self.name,
            "family": self.family,
            "marginal_bytes": self.marginal_bytes,
            "marginal_percent": self.marginal_percent,
            "shared_bytes": self.shared_bytes,
            "total_percent": self.total_percent,
            "error_mean": float(np.mean(self.errors)),
            "error_worst": max(self.errors),
            "gain_mean": self.gain if self.gains else None,
            "gain_worst": self.worst_gain if self.gains else None,
            "gains": list(self.gains),
        }


Sample = tuple[float, float]  # (size, gain)


@dataclass(frozen=True, slots=True)
class Saving:
    """What ours saves against a peer; negative percent is fewer bytes for ours."""

    percent: float | None  # None where the curves have no gains in common
    low: float  # the gains that the mean runs over, or, for a nearest comparison, those of the two points
    high: float
    note: str


def rising(points: Sequence[Sample]) -> list[Sample]:
    """The points that no smaller one equals in gain, by size: what a user would choose from."""
    kept: list[Sample] = []
    for size, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if math.isfinite(gain) and (not kept or gain > kept[-1][1]):
            kept.append((size, gain))
    return kept


def compare(ours: Sequence[Sample], peer: Sequence[Sample]) -> Saving | None:
    """The average saving at equal gain, or the nearest comparison; None where a side has no gain measured."""
    ours, peer = rising(ours), rising(peer)
    if not ours or not peer:
        return None
    low, high = max(ours[0][1], peer[0][1]), min(ours[-1][1], peer[-1][1])
    if len(ours) < 2 or len(peer) < 2 or high <= low:
        return _nearest(ours, peer)
    at = np.linspace(low, high, SAMPLES)
    difference = _log_sizes(ours, at) - _log_sizes(peer, at)
    mean = float(np.trapezoid(difference, at) / (high - low))
    return Saving(100 * math.expm1(mean), low, high, "average at equal gain")


def _nearest(ours: Sequence[Sample], peer: Sequence[Sample]) -> Saving:
    """The peer's best point against our smallest that gains at least as much."""
    size, gain = peer[-1]
    match = next((point for point in ours if point[1] >= gain), None)
    why = "one point" if len(peer) < 2 else "no gain in common"
    if match is None:
        return Saving(None, gain, ours[-1][1], f"{why}: the peer's gain is beyond our best")
    return Saving(100 * (match[0] / size - 1), gain, match[1], f"{why}: our first point that gains as much")


def _log_sizes(points: Sequence[Sample], at: Array) -> Array:
    sizes, gains = np.array(points, dtype=np.float64).T
    return monotone_cubic(gains, np.log(sizes), at)


def monotone_cubic(x: Array, y: Array, at: Array) -> Array:
    """Values at `at` of the monotone piecewise cubic through (x, y); x strictly rises and spans `at`."""
    steps = np.diff(x)
    secants = np.diff(y) / steps
    slopes = _slopes(steps, secants)
    index = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(steps) - 1)
    h, t = steps[index], (at - x[index]) / steps[index]
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * y[index]
        + t * (1 - t) ** 2 * h * slopes[index]
        + t**2 * (3 - 2 * t) * y[index + 1]
        + t**2 * (t - 1) * h * slopes[index + 1]
    )


def _slopes(steps: Array, secants: Array) -> Array:
    """Weighted harmonic means of neighbouring secants, zero where these differ in sign."""
    if len(secants) == 1:
        return np.repeat(secants, 2)
    slopes = np.zeros(len(secants) + 1)
    left, right = secants[:-1], secants[1:]
    same = left * right > 0
    first, second = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
    slopes[1:-1][same] = ((first + second) / (first / np.where(same, left, 1) + second / np.where(same, right, 1)))[
        same
    ]
    slopes[0] = _end_slope(steps[0], steps[1], secants[0], secants[1])
    slopes[-1] = _end_slope(steps[-1], steps[-2], secants[-1], secants[-2])
    return slopes


def _end_slope(near: float, far: float, secant: float, next_secant: float) -> float:
    """Three-point slope at an end, limited so that the curve stays monotone."""
    slope = ((2 * near + far) * secant - near * next_secant) / (near + far)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return slope
