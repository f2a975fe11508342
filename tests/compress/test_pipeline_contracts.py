"""`compress` held to bytes, or to what adapters do, instead of to an error."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.base_model import gain_retained
from lorareg.compress.factors.weights import read_weights
from lorareg.compress.materialize import restore_weights
from lorareg.compress.pipeline import CohortSummary
from lorareg.compress.planning import choose
from lorareg.registry.errors import InvalidAdapterError, LayoutMismatchError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE, Adapter, Encoding, Layout

AddGroup = Callable[..., None]
AddTiny = Callable[..., Adapter]
Run = Callable[..., CohortSummary]
ByRef = Callable[[Registry], dict[str, Encoding]]
SIX = ("a", "b", "c", "d", "e", "f")
WORDS = [f"w{i}" for i in np.random.default_rng(1).integers(1, 64, 300)]


def weights_bytes(registry: Registry) -> int:
    return sum(adapter.original_bytes for adapter in registry.adapters())


# -- a budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "arch"), [(0.1, "none"), (0.06, "mean"), (0.12, "auto")])
def test_a_budget_is_met(
    budget: float, arch: str, registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX, width=96)
    summary = run(registry, budget=budget, arch=arch)
    assert summary.stored_bytes == pytest.approx(budget * weights_bytes(registry), rel=0.05)
    assert summary.encoded == 6
    for encoding in encodings(registry).values():
        held = json.loads(encoding.tolerance)
        assert held == {"budget": budget, "relative_error": json.loads(encoding.fidelity)["relative_error"]}


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.01, 0.05])
def test_a_budget_is_met_on_the_samples(budget: float, registry: Registry, run: Run, sample_adapters: Path) -> None:
    for path in sorted(p for p in sample_adapters.iterdir() if p.is_dir()):
        registry.ingest(read_folder(path), name=path.name)
    summary = run(registry, budget=budget)
    assert summary.stored_bytes == pytest.approx(budget * weights_bytes(registry), rel=0.05)
    assert (summary.mean_gain, summary.worst_gain) == (None, None)


@pytest.mark.parametrize(
    ("budget", "words"),
    [(0.9, "the budget is not used up: codes take "), (0.001, "the budget is out of reach: codes take ")],
)
def test_a_budget_that_cannot_be_met_is_told_apart(
    budget: float, words: str, registry: Registry, run: Run, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:3], width=96)
    summary = run(registry, budget=budget, arch="none")
    assert words in summary.message
    assert summary.encoded == 3


class StrictReporter:
    """Fails where a stage is advanced that was not started, or started before the last one ended."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.running = False

    def start(self, stage: str, total: int) -> None:
        assert not self.running
        self.running = True
        self.stages.append(stage)

    def advance(self, n: int = 1, **figures: float) -> None:
        assert self.running

    def finish(self) -> None:
        self.running = False

    def note(self, message: str) -> None: ...


def test_a_budget_that_is_planned_twice_trains_once(
    registry: Registry, run: Run, add_group: AddGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(choose, "ROUGH_ROUNDS", 0)  # so that the first plan is far from the budget
    add_group(registry, *SIX[:4], width=96)
    reporter = StrictReporter()
    summary = run(registry, reporter, budget=0.3, arch="slots", steps=2)
    assert summary.generator == "slots v1"
    assert sum("training" in stage for stage in reporter.stages) == 1


def test_a_budget_is_settled_until_another_is_asked_for(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:3], width=96)
    run(registry, budget=0.1, arch="none")
    before = encodings(registry)
    again = run(registry, budget=0.1, arch="none")
    assert (again.encoded, again.unchanged, encodings(registry)) == (0, 3, before)
    assert (run(registry, arch="none").encoded, encodings(registry)) == (0, before)
    smaller = run(registry, budget=0.07, arch="none")
    assert (smaller.encoded, smaller.unchanged) == (3, 0)
    assert smaller.stored_bytes == pytest.approx(0.07 * weights_bytes(registry), rel=0.05)
    looser = run(registry, tolerance=0.5, arch="none")
    assert looser.encoded == 3
    assert {json.loads(e.tolerance)["relative_error"] for e in encodings(registry).values()} == {0.5}


def test_a_contract_that_encoding_anew_drops_is_named(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, *SIX[:3], width=96)
    run(registry, budget=0.1, arch="none")
    words = "3 adapters encoded anew were held to budget, and are now held to weight=0.2"
    assert words in run(registry, arch="none", retrain=True).message
    assert "encoded anew were held" not in run(registry, arch="none", retrain=True).message
    assert "encoded anew were held" not in run(registry, budget=0.1, arch="none", retrain=True).message


def test_a_later_adapter_takes_a_budget_of_its_own(
    registry: Registry, run: Run, encodings: ByRef, add_group: AddGroup
) -> None:
    add_group(registry, *SIX[:4], width=96)
    run(registry, budget=0.08, arch="mean")
    before = encodings(registry)
    add_group(registry, "late", width=96)
    summary = run(registry, budget=0.08, arch="mean")
    assert (summary.encoded, summary.unchanged) == (1, 4)
    after = encodings(registry)
    late = after.pop("late@1")
    assert after == before
    assert late.size_bytes == pytest.approx(0.08 * registry.adapter("late").original_bytes, rel=0.05)


def test_all_users_of_a_generator_pay_for_it_again(registry: Registry, run: Run, add_group: AddGroup) -> None:
    add_group(registry, *SIX, width=96)
    first = run(registry, budget=0.08, arch="mean")
    second = run(registry, budget=0.12, arch="mean")
    assert second.generator == first.generator == "mean v1"
    assert second.stored_bytes == pytest.approx(0.12 * weights_bytes(registry), rel=0.05)


# -- a gain --------------------------------------------------------------------------------------


def gains_of(encodings: dict[str, Encoding]) -> dict[str, float]:
    return {ref: json.loads(encoding.fidelity).get("gain_retained") for ref, encoding in encodings.items()}


@pytest.mark.parametrize("distill", [False, True])
def test_a_gain_is_held_measured_and_recorded(
    distill: bool, registry: Registry, run: Run, encodings: ByRef, add_tiny: AddTiny, tiny_path: Path
) -> None:
    add_tiny(registry, "a")
    add_tiny(registry, "b")
    asked: dict[str, Any] = {"gain": 0.8, "distill": distill, "base_model": tiny_path, "arch": "none"}
    summary = run(registry, **asked)
    before = encodings(registry)
    gains = gains_of(before)
    assert set(gains) == {"a@1", "b@1"}
    assert all(gain >= 0.8 for gain in gains.values())
    assert summary.by_tier == {"residual": 2}
    assert summary.worst_gain == min(gains.values())
    assert summary.mean_gain == pytest.approx(sum(gains.values()) / 2)
    assert summary.stored_bytes < 0.2 * weights_bytes(registry)
    for encoding in before.values():
        fidelity, held = json.loads(encoding.fidelity), json.loads(encoding.tolerance)
        asked_for = {"gain": 0.8, **({"distilled": 1.0} if distill else {})}
        assert held == {**asked_for, "relative_error": fidelity["relative_error"]}
        assert fidelity["measured_on"] == "self-written text"
        assert fidelity["loss_original"] <= fidelity["loss_restored"] < fidelity["loss_base"]
    again = run(registry, **asked)
    assert (again.encoded, again.unchanged, encodings(registry)) == (0, 2, before)
    assert again.mean_gain == summary.mean_gain
    assert run(registry, **asked | {"gain": 0.6}).encoded == 2
    assert sum(e.size_bytes for e in encodings(registry).values()) < sum(e.size_bytes for e in before.values())


def test_levels_hold_together_and_are_recorded(
    registry: Registry, run: Run, encodings: ByRef, add_tiny: AddTiny, tiny_path: Path
) -> None:
    add_tiny(registry, "a")
    asked: dict[str, Any] = {"tolerance": 0.6, "kl": 0.02, "gain": 0.6, "base_model": tiny_path, "arch": "none"}
    summary = run(registry, **asked)
    (encoding,) = encodings(registry).values()
    fidelity = json.loads(encoding.fidelity)
    assert json.loads(encoding.tolerance) == {"relative_error": 0.6, "kl": 0.02, "gain": 0.6}
    assert fidelity["relative_error"] <= 0.6
    assert 0 < fidelity["kl_divergence"] <= 0.02
    assert fidelity["gain_retained"] >= 0.6
    assert fidelity["kl_measured_on"] == "built-in text"
    assert (summary.by_tier, summary.worst_kl) == ({"residual": 1}, fidelity["kl_divergence"])
    assert run(registry, **asked).encoded == 0
    assert run(registry, **asked | {"kl": 0.001}).encoded == 1
    (tighter,) = encodings(registry).values()
    assert tighter.size_bytes > encoding.size_bytes


def test_what_was_promised_is_what_decoding_does(
    registry: Registry,
    run: Run,
    encodings: ByRef,
    add_tiny: AddTiny,
    tiny_path: Path,
    tiny_model: Any,
    tiny_layout: Layout,
    make: ModuleType,
) -> None:
    from lorareg.compress.contracts.distill import self_written

    factors = make.factors(tiny_layout, zlib.crc32(b"a"), 0.1)  # those of `add_tiny`
    original = tiny_model.weights_of(tiny_layout, factors)
    tokens = self_written(tiny_model, original, 12, 80, seed=5)
    adapter = add_tiny(registry, "a", tokens=tokens.astype(np.int32), samples=[" ".join(WORDS)])
    run(registry, gain=0.7, base_model=tiny_path, arch="none")
    encoding = encodings(registry)["a@1"]
    output = restore_weights(registry, adapter, encoding)
    restored = tiny_model.weights_of(tiny_layout, read_weights(output, tiny_layout))
    found = gain_retained(*(tiny_model.loss(tokens, weights) for weights in (None, original, restored)))
    fidelity = json.loads(encoding.fidelity)
    assert fidelity["measured_on"] == "evaluation tokens"
    assert fidelity["gain_retained"] == pytest.approx(found, rel=1e-3)
    assert found >= 0.7


def test_an_adapter_that_gains_nothing_stays_lossless(
    registry: Registry, run: Run, encodings: ByRef, add_tiny: AddTiny, tiny_path: Path, tiny_model: Any
) -> None:
    from lorareg.compress.contracts.distill import self_written

    adapter = add_tiny(registry, "a", tokens=self_written(tiny_model, {}, 12, 80, 0))  # what the base model says
    summary = run(registry, gain=0.9, base_model=tiny_path)
    assert (summary.by_tier, summary.mean_gain) == ({"lossless": 1}, None)
    encoding = encodings(registry)["a@1"]
    reason = "the adapter gains nothing on its evaluation tokens, so no gain can be retained"
    assert json.loads(encoding.fidelity)["reason"] == reason
    assert restore_weights(registry, adapter, encoding) == registry.read_file(adapter, WEIGHTS_FILE)
    assert run(registry, gain=0.9, base_model=tiny_path).encoded == 0


def test_a_budget_is_kept_while_distilling(
    registry: Registry, run: Run, encodings: ByRef, add_tiny: AddTiny, tiny_path: Path
) -> None:
    for name in SIX[:4]:
        add_tiny(registry, name)
    summary = run(registry, budget=0.06, distill=True, base_model=tiny_path, arch="none")
    assert summary.stored_bytes == pytest.approx(0.06 * weights_bytes(registry), rel=0.05)
    assert set(gains_of(encodings(registry)).values()) == {None}


@pytest.mark.parametrize("contract", [{"gain": 0.9}, {"budget": 0.1, "distill": True}], ids=str)
def test_an_adapter_of_another_model_stops_the_run(
    contract: dict[str, Any],
    registry: Registry,
    run: Run,
    encodings: ByRef,
    make_adapter: Callable[..., Path],
    tiny_path: Path,
) -> None:
    registry.ingest(read_folder(make_adapter("a")), name="a")
    with pytest.raises(LayoutMismatchError, match="q_proj' has layout 8 x 6, but 32 x 32 in the base model is needed"):
        run(registry, base_model=tiny_path, **contract)
    assert encodings(registry) == {}


def test_tokens_of_another_model_stop_the_run(
    registry: Registry, run: Run, encodings: ByRef, add_tiny: AddTiny, tiny_path: Path
) -> None:
    add_tiny(registry, "a", tokens=np.full((2, 8), 49151, np.int32))
    with pytest.raises(InvalidAdapterError, match=r"a@1/eval\.safetensors: its input_ids reach from 49151 to 49151"):
        run(registry, gain=0.9, base_model=tiny_path)
    assert encodings(registry) == {}
