"""Searches for a gain, replayed on the curves that `bench/proxies.py` measured: dear measurements, and what is kept.

Each adapter's curves are its own points, gain lost as a monotone function of the error of ΔW and divergence
likewise, so a replay costs nothing and the same adapters can be searched with and without forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import numpy as np
from proxy_statistics import Row, isotonic

from lorareg.compress.codec.encode import Encoded
from lorareg.compress.contracts import rate
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.course import Course, Outcome
from lorareg.compress.contracts.forecast import HOPELESS, first_error, strain_at_a_glance
from lorareg.compress.contracts.rate import USUAL_TOLERANCE, encode_to_hold

LEAST = 1e-5
SIZE_SLOPE = -1.7
PLAIN: dict[str, Any] = {"_LOSS_SLOPE": 2.0, "_LOSS_SLOPES": (2.0, 2.0), "_HOLD_ENOUGH": 0.6}
"""How searches went before there were points to learn from: losses taken for quadratic, whatever trials show."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A code, as far as a search asks for it."""

    error: float

    @property
    def code(self) -> range:
        return range(round(1e6 * self.error**SIZE_SLOPE))


@dataclass(frozen=True, slots=True)
class Replay:
    """What searches for one gain came to, over all adapters."""

    gain: float
    encoded: int  # trials encoded
    measured: int  # trials whose gain was measured
    skipped_wrongly: int  # trials left out that would have held
    unheld: int  # adapters for which no trial held
    size: float  # mean size of what was kept, in units of a code with an error of 1


def curve(errors: Sequence[float], values: Sequence[float]) -> Callable[[float], float]:
    """A monotone curve through measured points in logarithms, a power of the error beyond them."""
    x, y = isotonic(np.asarray(errors, float), np.asarray(values, float))
    x, y = np.log(x), np.log(np.maximum(y, LEAST))

    def at(error: float) -> float:
        wanted = math.log(error)
        beyond = min(wanted - x[0], 0.0) + max(wanted - x[-1], 0.0)
        return float(np.exp(np.interp(wanted, x, y) + 3.0 * beyond))

    return at


def replay(rows: Sequence[Row], gain: float, *, forecasts: bool) -> Replay:
    """Search for every adapter in the waves of a `course`; without forecasts, each from where the last one ended."""
    encoded, measured, wrongly, unheld, sizes = 0, 0, 0, 0, []
    start = (first_error(None, gain) or USUAL_TOLERANCE) if forecasts else USUAL_TOLERANCE
    course, adapters = Course(Contract(gain=gain), start), list(dict.fromkeys(row["adapter"] for row in rows))

    def search(adapter: str, start: float) -> float | None:
        nonlocal unheld
        own = [row for row in rows if row["adapter"] == adapter]
        errors = [row["relative_error"] for row in own]
        lost, kl = (
            curve(errors, values)
            for values in ([1 - r["gain"] for r in own], [r["kl_samples"] / r["kl_samples_base"] for r in own])
        )

        def strain(trial: Any, lost: Callable[[float], float] = lost, kl: Callable[[float], float] = kl) -> float:
            nonlocal encoded, measured, wrongly
            encoded += 1
            used = lost(trial.error) / (1 - gain)
            forecast = strain_at_a_glance(kl(trial.error), 1.0, None, gain) if forecasts else 0.0
            if forecast > HOPELESS:
                wrongly += used <= 1
                return forecast
            measured += 1
            return used

        with nullcontext() if forecasts else mock.patch.multiple(rate, **PLAIN):
            best = encode_to_hold(lambda tolerance: cast(Encoded, Trial(tolerance)), strain, start)
        if best is None:
            unheld += 1
            return None
        sizes.append(best[1] ** SIZE_SLOPE)
        return best[1]

    if forecasts:
        for wave in course.waves(len(adapters)):
            ask = course.ask()
            course.learn(ask, [Outcome(0, None, search(adapters[i], ask.relative_error)) for i in wave])
    else:
        for adapter in adapters:
            start = search(adapter, start) or start
    return Replay(gain, encoded, measured, wrongly, unheld, float(np.mean(sizes)) if sizes else math.nan)
