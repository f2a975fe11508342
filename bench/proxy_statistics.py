"""How well one figure tells another: correlations, a monotone fit with an adapter left out, and verdicts at a level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SMALLEST = 1e-6
"""What figures are raised to before their logarithm is taken."""
GAINS = (0.99, 0.97, 0.95)
"""Gains that verdicts are about."""

Row = dict[str, Any]


def _strength_lost(row: Row) -> float:
    return 1 - float(np.dot(row["module_shares"], row["module_strengths"]))


def _log_strength_lost(row: Row) -> float:
    return -float(np.mean(np.log(np.maximum(row["module_strengths"], 0.01))))


PROXIES: dict[str, Callable[[Row], float]] = {
    "relative error of ΔW": lambda row: row["relative_error"],
    "error of the worst module": lambda row: row["worst_module_error"],
    "error, mean over modules": lambda row: float(np.mean(row["module_errors"])),
    "1 - cosine": lambda row: 1 - row["cosine"],
    "strength lost, 1 - <ΔW, ΔW'> / |ΔW|²": _strength_lost,
    "strength lost, mean logarithm over modules": _log_strength_lost,
    "error as the inputs feel it": lambda row: row["input_error"],
    "KL, built-in text": lambda row: row["kl_probe"],
    "KL, samples": lambda row: row["kl_samples"],
    "KL, built-in text, of the base model's": lambda row: row["kl_probe"] / row["kl_probe_base"],
    "KL, samples, of the base model's": lambda row: row["kl_samples"] / row["kl_samples_base"],
    "KL, samples, over the gain in loss": lambda row: row["kl_samples"] / (row["loss_base"] - row["loss_original"]),
    "KL, evaluation rows, over the gain in loss": lambda row: (
        row["kl_evaluation"] / (row["loss_base"] - row["loss_original"])
    ),
}
"""Larger is worse, in each. The first six need no model, the seventh one reading of a text for a whole cohort."""


@dataclass(frozen=True, slots=True)
class Telling:
    """How well one proxy tells the gain that is lost."""

    proxy: str
    pearson: float
    pearson_log: float  # of logarithms, over the points that lose some
    spearman: float
    spearman_at_rate: float  # mean over rates: how well it tells adapters apart that are encoded alike
    error: float  # median absolute error of the gain that a monotone fit to the other adapters predicts
    error_90: float  # its ninth decile
    auc: tuple[float, ...]  # for each of GAINS


def telling(proxy: str, rows: Sequence[Row]) -> Telling:
    """The figures of one proxy over all points."""
    x = np.array([PROXIES[proxy](row) for row in rows], float)
    lost = np.array([1 - row["gain"] for row in rows], float)
    rates = np.array([row["rate"] for row in rows])
    adapters = np.array([row["adapter"] for row in rows])
    some = lost > 0
    misses = np.abs(left_out(x, lost, adapters) - lost)
    alike = [spearman(x[rates == rate], lost[rates == rate]) for rate in dict.fromkeys(rates)]
    return Telling(
        proxy,
        pearson(x, lost),
        pearson(np.log(np.maximum(x[some], SMALLEST)), np.log(lost[some])),
        spearman(x, lost),
        float(np.mean(alike)),
        float(np.median(misses)),
        float(np.quantile(misses, 0.9)),
        tuple(auc(x, lost > 1 - gain) for gain in GAINS),
    )


def pearson(x: Array, y: Array) -> float:
    """Correlation; 0 where one of the two does not vary."""
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else 0.0


def spearman(x: Array, y: Array) -> float:
    return pearson(ranks(x), ranks(y))


def ranks(x: Array) -> Array:
    """From 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[index], float)


def auc(x: Array, bad: NDArray[np.bool_]) -> float:
    """The chance that x is larger for a bad point than for a good one; not a number without both kinds."""
    count = int(bad.sum())
    if count in (0, len(bad)):
        return math.nan
    return float((ranks(x)[bad].sum() - count * (count + 1) / 2) / (count * (len(bad) - count)))


def isotonic(x: Array, y: Array) -> tuple[Array, Array]:
    """The rising function nearest y in squares, at the sorted x (pool adjacent violators)."""
    order = np.argsort(x, kind="stable")
    pools: list[tuple[float, int]] = []  # mean, count
    for value in y[order]:
        mean, count = float(value), 1
        while pools and pools[-1][0] >= mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    return x[order], np.repeat([mean for mean, _ in pools], [count for _, count in pools])


def left_out(x: Array, y: Array, groups: NDArray[Any]) -> Array:
    """What a monotone fit to all other groups says of each group's points."""
    found = np.empty_like(y)
    for group in dict.fromkeys(groups):
        inside = groups == group
        found[inside] = np.interp(x[inside], *isotonic(x[~inside], y[~inside]))
    return found


@dataclass(frozen=True, slots=True)
class Skips:
    """What leaving out candidates by a forecast would do, at one gain asked for."""

    gain: float
    failing: int
    skipped: int  # of the failing
    passing: int
    wrongly: int  # skipped, of the passing


def skips(forecast: Array, lost: Array, gain: float, beyond: float) -> Skips:
    """Count what is skipped where the forecast of what is lost exceeds `beyond` times what may be lost."""
    hopeless, fails = forecast > beyond * (1 - gain), lost > 1 - gain
    return Skips(
        gain, int(fails.sum()), int((hopeless & fails).sum()), int((~fails).sum()), int((hopeless & ~fails).sum())
    )


LEAST = 3e-3
"""Losses below it are mostly noise, and taken for it, where a law is fitted."""


def power_law(x: Array, y: Array, least: float = LEAST) -> tuple[float, float]:
    """Factor and power of y = factor * x ** power: of the medians, with the smallest mean deviation of logarithms."""
    tried = []
    for power in np.arange(0.3, 4.501, 0.05):
        factor = float(np.median(y / x**power))
        fit = np.log(np.maximum(factor * x**power, least))
        tried.append((float(np.mean(np.abs(np.log(np.maximum(y, least)) - fit))), factor, float(power)))
    _, factor, power = min(tried)
    return factor, power
