"""What adapters are held to: which contracts make sense, and encodings that hold them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lorareg.compress.codec.encode import Draft, Original, encode
from lorareg.compress.codec.residual import CORE_UNIT, Quantised
from lorareg.compress.contracts.contract import DEFAULT_TOLERANCE, CompressOptions, Contract
from lorareg.compress.contracts.course import LARGEST_WAVE, Course, Outcome
from lorareg.compress.contracts.forecast import GAIN_LOST_BY_ERROR, GAIN_LOST_BY_KL, KL_BY_ERROR
from lorareg.compress.contracts.gate import Candidate, Gate, Kept
from lorareg.compress.contracts.rate import TOLERANCES, USUAL_TOLERANCE, Budget, plan_budget
from lorareg.compress.factors.weights import Factors
from lorareg.registry.errors import ContractError

SHAPES = ((40, 4, 60), (24, 4, 60)) * 2
MODEL = Path("base")
NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": 0.1, "budget": 0.01}, "--tolerance with --budget is not valid: bytes and closeness"),
        ({"budget": 0.01, "gain": 0.9}, "--budget with --gain is not valid: bytes and closeness"),
        ({"kl": 0.1, "budget": 0.1}, "--budget with --tolerance kl is not valid: bytes and closeness"),
        ({"kl": 0.0}, "--tolerance kl=0 is not valid: a divergence is above 0"),
        ({"kl": NAN}, "--tolerance kl=nan is not valid"),
        ({"gain": 0.9, "tolerance": 0.1, "distill": True}, "--distill is not valid: it trades weight error"),
        ({"tolerance": 0.1, "budget": 0.1, "gain": 0.9}, "--tolerance with --budget with --gain is not valid"),
        ({"tolerance": -0.1}, "--tolerance -0.1 is not valid: a relative error is at least 0"),
        ({"tolerance": 1.0}, "--tolerance 1 is not valid: a relative error"),
        ({"tolerance": NAN}, "--tolerance nan is not valid: a relative error"),
        ({"budget": 0.0}, "--budget 0 is not valid: a budget is a share of the original bytes"),
        ({"budget": 1.0}, "--budget 1 is not valid: a budget is a share"),
        ({"budget": -0.01}, "--budget -0.01 is not valid: a budget is a share"),
        ({"budget": NAN}, "--budget nan is not valid: a budget is a share"),
        ({"gain": 0.0}, "--gain 0 is not valid: gain retained lies between 0 and 1"),
        ({"gain": 1.0}, "--gain 1 is not valid: gain retained lies between 0 and 1"),
        ({"gain": 1.5}, "--gain 1.5 is not valid: gain retained lies between 0 and 1"),
        ({"gain": NAN}, "--gain nan is not valid: gain retained lies between 0 and 1"),
        ({"distill": True}, "--distill is not valid: it trades weight error for the model's behaviour"),
        ({"tolerance": 0.2, "distill": True}, "--distill is not valid: it trades weight error"),
    ],
)
def test_contracts_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=re.escape(message)):
        Contract(**fields)


@pytest.mark.parametrize(
    ("contract", "option"),
    [
        (Contract(gain=0.9), "--gain"),
        (Contract(gain=0.9, distill=True), "--gain"),
        (Contract(kl=0.1), "--tolerance kl"),
        (Contract(budget=0.01, distill=True), "--distill"),
    ],
)
def test_what_a_model_does_takes_a_model(contract: Contract, option: str) -> None:
    options = CompressOptions(contract)
    assert (options.needs_model, options.model_option) == (True, option)


def test_weights_are_compared_without_a_model() -> None:
    assert not any(CompressOptions(c).needs_model for c in (Contract(), Contract(tolerance=0.1), Contract(budget=0.1)))


def test_what_is_asked_is_what_is_recorded() -> None:
    assert Contract().asked == {}
    assert Contract(tolerance=0.0).asked == {"relative_error": 0.0}
    assert Contract(budget=0.01, distill=True).asked == {"budget": 0.01, "distilled": 1.0}
    assert Contract(gain=0.99).asked == {"gain": 0.99}
    assert Contract(0.3, kl=0.01, gain=0.9).asked == {"relative_error": 0.3, "kl": 0.01, "gain": 0.9}


def test_behaviour_is_asked_for_unless_the_weights_are_exact() -> None:
    assert [c.behaves for c in (Contract(kl=1.0), Contract(gain=0.9), Contract(0.1, gain=0.9))] == [True] * 3
    assert [c.behaves for c in (Contract(0.1), Contract(budget=0.1), Contract(0.0, kl=1.0))] == [False] * 3


def test_plans_are_made_at_the_tolerance_or_a_usual_one() -> None:
    planned = [c.planned_error for c in (Contract(), Contract(tolerance=0.05), Contract(tolerance=0.0))]
    assert planned == [DEFAULT_TOLERANCE, 0.05, 0.0]
    assert Contract(budget=0.01).planned_error == USUAL_TOLERANCE


def test_a_search_begins_where_most_adapters_just_hold_the_contract() -> None:
    at = {gain: Contract(gain=gain).planned_error for gain in (0.95, 0.99, 0.999)}
    assert GAIN_LOST_BY_ERROR(at[0.99]) == pytest.approx(0.8 * 0.01)
    assert at[0.999] < at[0.99] < at[0.95]
    assert KL_BY_ERROR(Contract(kl=0.001).planned_error) == pytest.approx(0.8 * 0.001)
    assert Contract(0.05, gain=0.9).planned_error == 0.05
    assert Contract(0.9, kl=0.001, gain=0.99).planned_error == min(at[0.99], Contract(kl=0.001).planned_error)
    assert Contract(0.0, gain=0.9).planned_error == 0.0
    assert (Contract(gain=0.01).planned_error, Contract(kl=1e-30).planned_error) == TOLERANCES[::-1]


# -- encoding to a contract ----------------------------------------------------------------------


class FakeJudge:
    """Finds the share of ΔW's energy that is kept, and calls it gain."""

    def __init__(
        self, base: float = 4.0, original: float = 3.0, most: float = 1.0, at_a_glance: float | None = None
    ) -> None:
        """`at_a_glance` is what every glance finds; None for next to nothing."""
        self.base, self.original, self.most = base, original, most
        self.measured, self.diverged, self.tuned, self.glanced = 0, 0, 0, 0
        self.at_a_glance = at_a_glance

    def case(self, adapter: Any, original: Original) -> Any:
        return SimpleNamespace(
            loss_base=self.base, loss_original=self.original, text="samples", factors=original.factors
        )

    def gain(self, case: Any, restored: Sequence[Factors]) -> dict[str, Any]:
        self.measured += 1
        lost = sum(float(((x.delta - y.delta) ** 2).sum()) for x, y in zip(case.factors, restored, strict=True))
        total = sum(float((x.delta**2).sum()) for x in case.factors)
        return {"gain_retained": self.most * (1 - lost / total), "measured_on": case.text}

    def divergence(self, adapter: Any, original: Original, restored: Sequence[Factors]) -> dict[str, Any]:
        self.diverged += 1
        lost = sum(float(((x.delta - y.delta) ** 2).sum()) for x, y in zip(original.factors, restored, strict=True))
        total = sum(float((x.delta**2).sum()) for x in original.factors)
        return {"kl_divergence": lost / total, "kl_measured_on": "samples"}

    def glance(self, adapter: Any, original: Original) -> Any:
        def divergence(restored: Sequence[Factors]) -> float:
            self.glanced += 1
            return self.at_a_glance or 0.0

        return SimpleNamespace(divergence=divergence, base_kl=1.0)

    def distiller(self, adapter: Any, original: Original) -> Any:
        def tune(modules: Sequence[Quantised], layout: Any, prediction: Any) -> list[Quantised]:
            self.tuned += 1
            return [q.with_core(1.125 * q.core * CORE_UNIT) for q in modules]

        return SimpleNamespace(tune=tune)


def candidates(make: ModuleType, count: int = 4, drafts: Sequence[Draft | None] | None = None) -> list[Candidate]:
    layout = make.layout(SHAPES)
    adapter: Any = SimpleNamespace(ref="task@1")
    originals = [make.original(layout, seed=seed) for seed in range(count)]
    return [Candidate(adapter, o, d) for o, d in zip(originals, drafts or [None] * count, strict=True)]


def encode_all(
    chosen: Sequence[Candidate], contract: Contract, judge: Any = None, budget_bytes: float | None = None
) -> list[Kept]:
    def sizes_at(indices: Sequence[int], tolerance: float) -> list[int]:
        return [len(encode(chosen[i].original, chosen[i].draft, tolerance).code) for i in indices]

    course = Course(contract, contract.planned_error)
    if budget_bytes is not None:
        course.budget = plan_budget(len(chosen), sizes_at, budget_bytes, contract.planned_error, tuned=contract.distill)
    return follow(course, chosen, judge)


def follow(course: Course, chosen: Sequence[Candidate], judge: Any) -> list[Kept]:
    """Encode adapters in the waves of a course."""
    kept: list[Kept] = []
    for wave in course.waves(len(chosen)):
        ask = course.ask()
        kept += [Gate(course.contract, judge).encode(chosen[i], ask) for i in wave]
        course.learn(ask, [Outcome(len(k.encoded.code), k.encoded.step, k.found) for k in kept[-len(wave) :]])
    return kept


def test_a_tolerance_is_recorded_as_it_was_asked(make: ModuleType) -> None:
    for kept in encode_all(candidates(make), Contract(tolerance=0.1)):
        assert kept.tolerance == {"relative_error": 0.1}
        assert 0.095 < kept.encoded.fidelity.relative_error <= 0.1


@pytest.mark.parametrize("distill", [False, True])
def test_a_budget_is_recorded_with_the_error_it_came_to(distill: bool, make: ModuleType) -> None:
    chosen, judge = candidates(make), FakeJudge()
    total = 0.04 * sum(len(c.original.data) for c in chosen)
    kept = encode_all(chosen, Contract(budget=0.04, distill=distill), judge, total)
    assert sum(len(k.encoded.code) for k in kept) == pytest.approx(total, rel=0.05)
    assert judge.tuned == (len(chosen) if distill else 0)
    for one in kept:
        came_to = {"budget": 0.04, "relative_error": one.encoded.fidelity.relative_error}
        assert one.tolerance == {**came_to, **({"distilled": 1.0} if distill else {})}
        assert one.measured == {}


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("wanted", [0.8, 0.97])
def test_a_gain_is_held_and_recorded(wanted: float, distill: bool, make: ModuleType) -> None:
    judge = FakeJudge()
    for kept in encode_all(candidates(make), Contract(gain=wanted, distill=distill), judge):
        assert kept.encoded.codec.name == "residual-2"
        assert kept.measured["gain_retained"] >= wanted
        assert kept.measured["measured_on"] == "samples"
        error = kept.encoded.fidelity.relative_error
        asked = {"gain": wanted, **({"distilled": 1.0} if distill else {})}
        assert kept.tolerance == {**asked, "relative_error": error}
        assert 1 - kept.measured["gain_retained"] == pytest.approx(error**2, rel=1e-6)
    assert judge.measured <= 4 * 4
    assert (judge.tuned > 0) == distill


def test_searches_come_nearer_to_where_the_last_ones_ended(make: ModuleType) -> None:
    course = Course(Contract(gain=0.97), USUAL_TOLERANCE)
    (kept,) = follow(course, candidates(make, 1), FakeJudge())
    ended = kept.encoded.fidelity.relative_error
    assert course.relative_error == pytest.approx(USUAL_TOLERANCE**0.7 * ended**0.3, rel=0.01)
    follow(course, candidates(make, 8), FakeJudge())
    assert course.relative_error == pytest.approx((0.8 * 0.03) ** 0.5, rel=0.15)
    judge = FakeJudge()
    follow(course, candidates(make, 3), judge)
    assert judge.measured <= 4  # of three adapters: nearly each is done with its first


@pytest.mark.parametrize("count", [0, 1, 2, 5, 34, 1000])
@pytest.mark.parametrize("contract", [Contract(0.2), Contract(gain=0.97), Contract(budget=0.01)], ids=str)
def test_waves_cover_every_adapter_once_and_in_order(contract: Contract, count: int) -> None:
    course = Course(contract, 0.2, budget=Budget(1.0, 0.2, [1.0] * count) if contract.budget is not None else None)
    waves = list(course.waves(count))
    assert [index for wave in waves for index in wave] == list(range(count))
    if contract.tolerance is None and count:  # what is learned of one reaches the next, and the last makes up
        assert len(waves[0]) == len(waves[-1]) == 1
        assert max(map(len, waves)) <= LARGEST_WAVE
    else:
        assert len(waves) == min(count, 2)


def test_with_a_step_known_adapters_held_to_their_weights_are_one_wave() -> None:
    assert list(Course(Contract(0.2), 0.2, step=0.01).waves(50)) == [range(50)]


def test_a_gain_out_of_reach_stays_lossless_and_says_so(make: ModuleType) -> None:
    judge = FakeJudge(most=0.5)
    (kept,) = encode_all(candidates(make, 1), Contract(gain=0.97), judge)
    assert kept.encoded.codec.name == "lossless-2"
    assert kept.encoded.reason == "no residual that was tried holds the contract"
    assert kept.tolerance == {"relative_error": 0.0, "gain": 0.97}
    assert judge.measured == 5


@pytest.mark.parametrize(("base", "original"), [(3.0, 3.0), (3.0, 3.5), (NAN, 3.0), (3.0, NAN)])
def test_an_adapter_that_gains_nothing_is_not_tried_at_all(base: float, original: float, make: ModuleType) -> None:
    judge = FakeJudge(base, original)
    (kept,) = encode_all(candidates(make, 1), Contract(gain=0.97, distill=True), judge)
    assert kept.encoded.codec.name == "lossless-2"
    assert kept.encoded.reason == "the adapter gains nothing on its samples, so no gain can be retained"
    assert (judge.measured, judge.tuned) == (0, 0)


def test_a_prediction_that_does_not_help_is_left_out(make: ModuleType) -> None:
    layout = make.layout(SHAPES)
    loaded = make.loaded(layout, make.generator("mean", layout, coordinates="raw"))
    originals = [make.original(layout, seed=seed) for seed in range(2)]
    near, draft = make.near_prediction(layout, loaded, 1, 0.05)
    adapter: Any = SimpleNamespace(ref="task@1")
    chosen = [Candidate(adapter, originals[0], draft), Candidate(adapter, near, draft)]
    far, close = encode_all(chosen, Contract(tolerance=0.1))
    assert (far.encoded.uses_generator, close.encoded.uses_generator) == (False, True)


def test_a_divergence_is_held_and_recorded(make: ModuleType) -> None:
    judge = FakeJudge()
    for kept in encode_all(candidates(make), Contract(kl=0.02), judge):
        error = kept.encoded.fidelity.relative_error
        assert 0.5 * 0.02 < kept.measured["kl_divergence"] <= 0.02
        assert kept.tolerance == {"kl": 0.02, "relative_error": error}
    assert (judge.measured, judge.diverged <= 4 * 4) == (0, True)


@pytest.mark.parametrize(
    ("contract", "binding"),
    [
        (Contract(0.05, kl=0.5, gain=0.5), 0.05),
        (Contract(0.5, kl=0.02, gain=0.5), 0.02**0.5),
        (Contract(0.5, kl=0.5, gain=0.98), 0.02**0.5),
    ],
)
def test_of_several_levels_all_hold_and_the_tightest_decides(
    contract: Contract, binding: float, make: ModuleType
) -> None:
    for kept in encode_all(candidates(make), contract, FakeJudge()):
        error = kept.encoded.fidelity.relative_error
        assert 0.7 * binding < error <= binding
        assert kept.tolerance == contract.asked
        assert set(kept.measured) == {"kl_divergence", "kl_measured_on", "gain_retained", "measured_on"}


def test_what_fails_a_cheap_level_is_not_measured_at_a_dearer_one(make: ModuleType) -> None:
    judge = FakeJudge()
    encode_all(candidates(make, 1), Contract(kl=0.005, gain=0.5), judge)
    assert 0 < judge.measured < judge.diverged


# -- a glance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", [Contract(gain=0.9), Contract(kl=0.1), Contract(kl=0.1, gain=0.9)], ids=str)
def test_what_is_hopeless_at_a_glance_is_not_measured(contract: Contract, make: ModuleType) -> None:
    judge = FakeJudge(at_a_glance=1000.0)
    (kept,) = encode_all(candidates(make, 1), contract, judge)
    assert (judge.glanced, judge.diverged, judge.measured) == (5, 0, 0)
    assert kept.encoded.reason == "no residual that was tried holds the contract"


@pytest.mark.parametrize("at_a_glance", [0.0, 1e-9, NAN])
def test_nothing_is_kept_for_a_glance_alone(at_a_glance: float, make: ModuleType) -> None:
    judge = FakeJudge(at_a_glance=at_a_glance)
    for kept in encode_all(candidates(make), Contract(gain=0.97, kl=0.02), judge):
        assert kept.measured["gain_retained"] >= 0.97
        assert kept.measured["kl_divergence"] <= 0.02
    assert 4 <= judge.measured <= judge.diverged == judge.glanced
    (out_of_reach,) = encode_all(candidates(make, 1), Contract(gain=0.97), FakeJudge(most=0.5, at_a_glance=at_a_glance))
    assert out_of_reach.encoded.codec.name == "lossless-2"


def test_a_search_goes_on_from_what_a_glance_forecasts(make: ModuleType) -> None:
    class Glancing(FakeJudge):
        """Glances, too, find the energy that is lost."""

        def glance(self, adapter: Any, original: Original) -> Any:
            def divergence(restored: Sequence[Factors]) -> float:
                self.glanced += 1
                lost = 1 - FakeJudge.gain(FakeJudge(), case, restored)["gain_retained"]
                return float(GAIN_LOST_BY_KL.inverse(lost))

            case = self.case(adapter, original)
            return SimpleNamespace(divergence=divergence, base_kl=1.0)

    contract, plain, glancing = Contract(gain=0.995), FakeJudge(), Glancing()
    (before,), (after,) = (encode_all(candidates(make, 1), contract, judge) for judge in (plain, glancing))
    assert glancing.measured < plain.measured
    assert after.encoded.code == before.encoded.code
