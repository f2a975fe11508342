"""Distilling: the cores alone are moved, and the model comes closer to what it says with the original."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.base_model import BaseModel, Tokens
from lorareg.compress.codec.codecs import decode
from lorareg.compress.codec.encode import Draft, Original, StepSearch, encode
from lorareg.compress.codec.residual import CORE_UNIT, Quantised, restore
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.registry.types import Layout

TOLERANCE = 0.3


@pytest.fixture
def original(make: ModuleType, tiny_layout: Layout) -> Original:
    made: Original = make.original(tiny_layout, seed=3, size=0.1)
    return made


@pytest.fixture
def text(tiny_model: BaseModel, original: Original) -> Tokens:
    from lorareg.compress.contracts.distill import self_written

    return self_written(tiny_model, tiny_model.weights_of(original.layout, original.factors), 16, 64, 0)


def distiller(model: BaseModel, original: Original, tokens: Tokens, **config: Any) -> Any:
    from lorareg.compress.contracts.distill import DistillConfig, Distiller

    return Distiller(model, model.weights_of(original.layout, original.factors), tokens, DistillConfig(**config))


def divergence(model: BaseModel, tokens: Tokens, original: Original, restored: Sequence[Factors]) -> float:
    """Mean KL divergence in nats from what the model says with the original to what it says with the restored."""
    torch = pytest.importorskip("torch")
    logs = []
    for factors in (original.factors, restored):
        with torch.no_grad(), model.adapted(model.weights_of(original.layout, factors)):
            logs.append(model.logits(torch.as_tensor(tokens)).log_softmax(-1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def near_drawing(make: ModuleType, layout: Layout, original: Original) -> Draft:
    """A generator whose mean lies halfway to the adapter."""
    from lorareg.compress.planning.coordinates import EMPTY, draft_of, in_coordinates
    from lorareg.compress.planning.plan import Members, Planner
    from lorareg.compress.progress import Silent

    others = [make.original(layout, [Factors(b=f.b * by, a=f.a) for f in original.factors]) for by in (0.3, 0.7)]
    planner = Planner(Members(layout, others, [EMPTY] * 2, "", TOLERANCE), Silent())
    plan = planner.mean(planner.without_generator())
    assert plan.loaded is not None
    assert in_coordinates(original.factors, plan.loaded.generator)
    return draft_of(plan.loaded, original, EMPTY, EMPTY)


@pytest.mark.parametrize("predicted", [False, True], ids=["alone", "predicted"])
def test_the_model_comes_closer_to_the_original(
    predicted: bool,
    tiny_model: BaseModel,
    original: Original,
    text: Tokens,
    make: ModuleType,
    tiny_layout: Layout,
    one_thread: None,
) -> None:
    draft = near_drawing(make, tiny_layout, original) if predicted else None
    plain = encode(original, draft, TOLERANCE)
    tuned = encode(original, draft, TOLERANCE, None, distiller(tiny_model, original, text))
    assert {plain.codec.name, tuned.codec.name} == {"predicted-2" if predicted else "residual-2"}
    far, near = (
        divergence(tiny_model, text, original, read_weights(encoded.output, tiny_layout)) for encoded in (plain, tuned)
    )
    assert near < 0.97 * far
    assert len(tuned.code) < len(plain.code) + 24
    assert decode(tuned.code, tiny_layout, draft.loaded if draft else None, original.what) == tuned.output


def test_only_cores_are_moved(tiny_model: BaseModel, original: Original, text: Tokens) -> None:
    search = StepSearch.of(original, None)
    found = search.coarsest(TOLERANCE, None)
    assert found is not None
    modules: list[Quantised] = found[1]
    tuned = distiller(tiny_model, original, text).tune(modules, original.layout, None)
    for before, after in zip(modules, tuned, strict=True):
        assert after.core.dtype == np.int64
        assert np.abs(after.core - before.core).max() > 0
        assert np.abs(after.core - before.core).max() * CORE_UNIT < 0.5
        for name in ("tables", "steps", "b_symbols", "a_symbols"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_the_same_text_gives_the_same_cores(
    tiny_model: BaseModel, original: Original, text: Tokens, one_thread: None
) -> None:
    codes = [encode(original, None, TOLERANCE, None, distiller(tiny_model, original, text)).code for _ in range(2)]
    assert codes[0] == codes[1]


def test_what_is_the_original_already_stays_as_it_is(tiny_model: BaseModel, original: Original, text: Tokens) -> None:
    search = StepSearch.of(original, None)
    found = search.coarsest(0.002, None)
    assert found is not None
    tuned = distiller(tiny_model, original, text).tune(found[1], original.layout, None)
    restored = restore(tuned, None, original.layout)
    assert divergence(tiny_model, text, original, restored) < 0.05


@pytest.mark.parametrize("untrained", [(0,), (0, 1, 2, 3)], ids=["one module", "all modules"])
def test_modules_of_no_components_are_left_alone(
    untrained: tuple[int, ...], tiny_model: BaseModel, text: Tokens, make: ModuleType, tiny_layout: Layout
) -> None:
    modules = [
        Factors(b=f.b * (index not in untrained), a=f.a)
        for index, f in enumerate(make.factors(tiny_layout, 3, size=0.1))
    ]
    original = make.original(tiny_layout, modules)
    encoded = encode(original, None, TOLERANCE, None, distiller(tiny_model, original, text))
    restored = read_weights(encoded.output, tiny_layout)
    assert all(not restored[index].delta.any() for index in untrained)


@pytest.mark.parametrize(
    "config", [{"rows": 40}, {"rows": 3, "steps": 7}, {"candidates": 1000}, {"candidates": 1}], ids=str
)
def test_any_amount_of_text_and_candidates_will_do(
    config: dict[str, int], tiny_model: BaseModel, original: Original, text: Tokens
) -> None:
    encoded = encode(original, None, TOLERANCE, None, distiller(tiny_model, original, text[:5], **config))
    assert np.isfinite(encoded.fidelity.relative_error)


def test_a_tuned_code_need_not_hold_the_tolerance(make: ModuleType, original: Original) -> None:
    class Doubling:
        """Moves every core as far as no distilling would."""

        def tune(self, modules: Sequence[Quantised], layout: Layout, prediction: Any) -> list[Quantised]:
            return [q.with_core(2 * q.core * CORE_UNIT) for q in modules]

    encoded = encode(original, None, TOLERANCE, None, Doubling())
    assert encoded.codec.name == "residual-2"
    assert encoded.fidelity.relative_error > 0.9
    lossless = encode(original, None, 0.0, None, Doubling())
    assert lossless.output == original.data
