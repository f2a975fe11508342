"""Rate control: finding the tolerance that meets a promise about bytes, or about what the model does.

Everything is encoded to a relative error of ΔW in the end; a budget or a behaviour only chooses which.
The bytes of a code fall roughly as a power of its error, and so does what is lost of the behaviour, so
both searches run in logarithms and take few trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorareg.compress.codec.encode import Encoded

USUAL_TOLERANCE = 0.4
"""Where searches start: about 1% of the bytes of a float32 adapter."""

TOLERANCES = (0.001, 0.85)
"""What is searched: below it the file itself is nearly as small, beyond it nothing of the adapter is left."""

CLOSE_ENOUGH = 0.01
MOST_SAMPLES = 24
_SIZE_SLOPE = -1.7  # of log bytes over log tolerance, until two trials tell better
_SIZE_SLOPES = (-4.0, -0.1)
_BUDGET_TRIALS = 6
_FINEST_MOVE = (
    0.75  # of a budget's tolerance: where codes suddenly fit in nothing, a slope says little of what is finer
)
_LOSS_SLOPE = 3.0  # of log lost gain, or of log KL, over log tolerance (see `forecast`), until two trials tell better
_LOSS_SLOPES = (1.0, 4.0)
_HOLD_TRIALS = 5
_HOLD_MOVES = (0.25, 1.35)  # of the tolerance, from one trial to the next
_HOLD_AIM, _HOLD_ENOUGH = 0.8, 0.5  # of the loss allowed: where the next trial is put, and where the search ends
TUNING_SHARE = 1.08
"""What tuned cores make of a code's size, until the first is known."""


@dataclass(slots=True)
class Budget:
    """Bytes for the codes of some adapters, spent wave after wave (see `course`).

    Each wave gets the tolerance at which all that are left would together take what is left.
    """

    left_bytes: float
    tolerance: float
    sizes: list[float]  # expected of each adapter that is left, at `tolerance`
    slope: float = _SIZE_SLOPE
    correction: float = 1.0  # what the codes of the last wave came to, over what was expected of them

    def next_tolerance(self) -> float:
        """For the next wave."""
        expected = self.correction * sum(self.sizes)
        ratio = max(self.left_bytes, 1.0) / max(expected, 1.0)
        return _within(self.tolerance * max(ratio ** (1 / self.slope), _FINEST_MOVE))

    def spend(self, sizes: Sequence[int], tolerance: float) -> None:
        """The next adapters took these sizes in bytes at `tolerance`."""
        expected = sum(self.sizes[: len(sizes)]) * (tolerance / self.tolerance) ** self.slope
        del self.sizes[: len(sizes)]
        self.correction = sum(sizes) / max(expected, 1.0)
        self.left_bytes -= sum(sizes)


SizesAt = Callable[[Sequence[int], float], Sequence[int]]
"""Of the places of some adapters and a tolerance: what their codes would take, in bytes."""


def plan_budget(count: int, sizes_at: SizesAt, total_bytes: float, start: float, *, tuned: bool) -> Budget:
    """The tolerance at which the codes of `count` adapters together take `total_bytes`, from trials on some of them."""
    total_bytes = max(total_bytes, 1.0)  # the generator alone may have taken more than all of it
    chosen = sorted({round(i * (count - 1) / (MOST_SAMPLES - 1)) for i in range(MOST_SAMPLES)})
    share = (TUNING_SHARE if tuned else 1.0) * count / len(chosen)
    tolerance, slope, last = _within(start), _SIZE_SLOPE, None
    too_fine, coarse_enough = TOLERANCES  # what trials have shown so far
    sizes: Sequence[int] = []
    for _ in range(_BUDGET_TRIALS):
        sizes = sizes_at(chosen, tolerance)
        total = share * sum(sizes)
        slope = size_slope(last, (tolerance, total), slope)
        if total > total_bytes:
            too_fine = max(too_fine, tolerance)
        else:
            coarse_enough = min(coarse_enough, tolerance)
        moved = _within(tolerance * (total_bytes / total) ** (1 / slope))
        if abs(total / total_bytes - 1) < CLOSE_ENOUGH or moved == tolerance:
            break
        if TOLERANCES[0] < too_fine < coarse_enough < TOLERANCES[1] and not too_fine < moved < coarse_enough:
            moved = math.sqrt(too_fine * coarse_enough)  # a slope that leads out of the bracket is none
        last, tolerance = (tolerance, total), moved
    mean = sum(sizes) / len(sizes)
    known = dict(zip(chosen, sizes, strict=True))
    expected = [float(known.get(i, mean)) for i in range(count)]
    return Budget(total_bytes, tolerance, expected, slope, TUNING_SHARE if tuned else 1.0)


def tolerance_for(tolerance: float, found_bytes: float, wanted_bytes: float, slope: float = _SIZE_SLOPE) -> float:
    """The tolerance that should take `wanted_bytes`, from what another one takes."""
    return _within(tolerance * (wanted_bytes / max(found_bytes, 1.0)) ** (1 / slope))


def size_slope(first: tuple[float, float] | None, second: tuple[float, float], otherwise: float = _SIZE_SLOPE) -> float:
    """The slope of log bytes over log tolerance through two trials, (tolerance, bytes) each, if there are two."""
    if first is None or first[0] == second[0] or first[1] == second[1]:
        return otherwise
    slope = math.log(second[1] / first[1]) / math.log(second[0] / first[0])
    return min(max(slope, _SIZE_SLOPES[0]), _SIZE_SLOPES[1])


Strain = Callable[[Encoded], float]
Try = Callable[[float], Encoded]


def encode_to_hold(
    attempt: Try, strain: Strain, start: float, coarsest: float = TOLERANCES[1]
) -> tuple[Encoded, float] | None:
    """The coarsest encoding found that holds a contract about behaviour, and the tolerance it was made at.

    Args:
        attempt: encodes at a tolerance.
        strain: what an encoding loses of what it may lose: up to 1 it holds. NaN does not hold.
        start: the first tolerance to try.
        coarsest: the last one.

    Returns:
        None when no trial holds.
    """
    tolerance, best = min(_within(start), coarsest), None
    finest_failure = math.inf  # in tolerance: nothing coarser than this is tried again
    slope, last = _LOSS_SLOPE, None
    for _ in range(_HOLD_TRIALS):
        encoded = attempt(tolerance)
        used = strain(encoded)
        used = math.inf if math.isnan(used) else used
        if used <= 1:
            if best is None or len(encoded.code) < len(best[0].code):
                best = (encoded, tolerance)
            if used > _HOLD_ENOUGH:
                break
        else:
            finest_failure = min(finest_failure, tolerance)
        used = min(max(used, 1e-3), 1e3)
        if last is not None:
            slope = math.log(used / last[1]) / math.log(tolerance / last[0])
            slope = min(max(slope, _LOSS_SLOPES[0]), _LOSS_SLOPES[1])
        last = (tolerance, used)
        factor = (_HOLD_AIM / used) ** (1 / slope)
        moved = min(_within(tolerance * min(max(factor, _HOLD_MOVES[0]), _HOLD_MOVES[1])), coarsest)
        if moved >= finest_failure or (best is not None and moved <= best[1]):
            break
        tolerance = moved
    return best


def _within(tolerance: float) -> float:
    return min(max(tolerance, TOLERANCES[0]), TOLERANCES[1])
