"""Budgets and gains: the searches for the tolerance that meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lorareg.compress.contracts.rate import TOLERANCES, Budget, encode_to_hold, plan_budget, tolerance_for


def encoded(size: float) -> Any:
    return SimpleNamespace(code=bytes(round(size)))


def test_a_budget_is_met_although_codes_come_out_dearer_than_planned() -> None:
    sizes = [1000.0] * 20
    budget = Budget(20_000.0, 0.4, list(sizes))
    spent = 0.0
    for _ in sizes:
        tolerance = budget.next_tolerance()
        size = 1300 * (tolerance / 0.4) ** -1.7  # 30% dearer than expected
        budget.spend([round(size)], tolerance)
        spent += size
    assert spent == pytest.approx(20_000, rel=0.02)


def test_a_wave_is_corrected_as_a_whole() -> None:
    budget = Budget(4000.0, 0.4, [1000.0] * 4)
    budget.spend([1300, 1100], 0.4)
    assert (budget.left_bytes, budget.sizes) == (1600.0, [1000.0, 1000.0])
    assert budget.correction == pytest.approx(1.2)
    assert budget.next_tolerance() == pytest.approx(0.4 * (1600 / 2400) ** (1 / -1.7))


def test_a_budget_that_is_used_up_leaves_the_coarsest_tolerance() -> None:
    budget = Budget(10.0, 0.4, [1000.0, 1000.0])
    assert budget.next_tolerance() == TOLERANCES[1]


def test_planning_a_budget_finds_the_tolerance() -> None:
    asked = []

    def sizes_at(indices: Sequence[int], tolerance: float) -> list[int]:
        asked.extend(indices)
        return [round((100 + i) * tolerance**-1.3) for i in indices]

    wanted = sum((100 + i) * 0.25**-1.3 for i in range(10))
    budget = plan_budget(10, sizes_at, wanted, 0.4, tuned=False)
    assert budget.tolerance == pytest.approx(0.25, rel=0.02)
    assert sum(budget.sizes) == pytest.approx(wanted, rel=0.02)
    assert len(asked) <= 4 * 10


@pytest.mark.parametrize("left", [0.0, -5000.0])
def test_a_generator_that_takes_the_whole_budget_leaves_the_coarsest_codes(left: float) -> None:
    budget = plan_budget(
        2, lambda indices, t: [round(100 * (i + 1) * t**-1.3) for i in indices], left, 0.4, tuned=False
    )
    assert (budget.tolerance, budget.next_tolerance()) == (TOLERANCES[1], TOLERANCES[1])


def test_the_next_tolerance_follows_from_bytes() -> None:
    assert tolerance_for(0.4, 1000, 1000) == pytest.approx(0.4)
    assert tolerance_for(0.4, 1000, 500) > 0.4
    assert tolerance_for(0.4, 1000, 1e-9) == TOLERANCES[1]


def attempt(tolerance: float) -> Any:
    return encoded(1000 * tolerance**-1.7)


def strain_of(lost_at: float) -> Any:
    """What is lost grows with the square of the tolerance, which the size of the code tells."""

    def strain(one: Any) -> float:
        tolerance = (len(one.code) / 1000) ** (-1 / 1.7)
        return float((tolerance / lost_at) ** 2)

    return strain


@pytest.mark.parametrize("lost_at", [0.1, 0.25, 0.4, 0.6])
def test_a_behaviour_is_held_with_few_bytes(lost_at: float) -> None:
    found = encode_to_hold(attempt, strain_of(lost_at), 0.4)
    assert found is not None
    one, tolerance = found
    assert strain_of(lost_at)(one) <= 1
    assert tolerance > 0.7 * lost_at


def test_a_behaviour_that_nothing_holds_gives_nothing() -> None:
    assert encode_to_hold(attempt, lambda one: 50.0, 0.4) is None
    assert encode_to_hold(attempt, lambda one: math.nan, 0.4) is None


def test_of_two_that_hold_the_smaller_is_kept() -> None:
    strains = iter([0.01, 0.01, 10, 10])
    found = encode_to_hold(attempt, lambda one: next(strains), 0.2)
    assert found is not None
    assert found[1] > 0.2


def test_nothing_coarser_than_allowed_is_tried() -> None:
    tried: list[float] = []

    def attempt_and_tell(tolerance: float) -> Any:
        tried.append(tolerance)
        return attempt(tolerance)

    found = encode_to_hold(attempt_and_tell, lambda one: 0.0, 0.4, coarsest=0.3)
    assert found is not None
    assert (found[1], tried) == (0.3, [0.3])
