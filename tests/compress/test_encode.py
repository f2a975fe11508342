"""Encoding: the tolerance holds whatever the adapter is like, and no byte is wasted on the way."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.codec import encode as encode_module
from lorareg.compress.codec.codecs import decode
from lorareg.compress.codec.encode import Draft, Encoded, Original, encode
from lorareg.compress.factors.weights import Factors, write_weights
from lorareg.compress.planning.coordinates import in_coordinates
from lorareg.registry.errors import InvalidContainerError

WIDE = ((40, 4, 60), (24, 4, 60), (40, 4, 60), (24, 4, 60))
TOLERANCES = (1e-4, 0.01, 0.2, 0.9)


def encode_checked(original: Original, tolerance: float, draft: Draft | None = None) -> Encoded:
    """Encode, and hold the result to what it claims."""
    encoded = encode(original, draft, tolerance)
    loaded = draft.loaded if draft and encoded.uses_generator else None
    assert decode(encoded.code, original.layout, loaded, original.what) == encoded.output
    assert encoded.fidelity.relative_error <= tolerance
    return encoded


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_the_tolerance_holds(dtype: str, tolerance: float, make: ModuleType) -> None:
    original = make.original(make.layout(WIDE, dtype=dtype))
    encoded = encode_checked(original, tolerance)
    assert len(encoded.code) < len(original.data)
    if tolerance >= 0.2:
        assert encoded.codec.tier == "residual"
        assert encoded.fidelity.relative_error > 0.9 * tolerance


def test_no_tolerance_is_lossless(make: ModuleType) -> None:
    original = make.original(make.layout(WIDE))
    encoded = encode_checked(original, 0.0)
    assert encoded.codec.name == "lossless-2"
    assert encoded.output == original.data
    assert (encoded.step, encoded.reason, encoded.fidelity.exact) == (None, "", True)


def test_looser_tolerances_take_fewer_bytes(make: ModuleType) -> None:
    original = make.original(make.layout(WIDE))
    sizes = [len(encode(original, None, tolerance).code) for tolerance in (0.9, 0.5, 0.2, 0.05, 0.01)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 5


@pytest.mark.parametrize("task", ["man-nl", "src-rust", "doc-git"])
def test_the_search_ends_just_below_the_tolerance(task: str, sample_weights: dict[str, Any]) -> None:
    original = sample_weights[task]
    encoded = encode_checked(original, 0.2)
    assert 0.99 * 0.2 <= encoded.fidelity.relative_error <= 0.2
    assert encoded.codec.name == "residual-2"
    assert len(encoded.code) < 0.08 * len(original.data)


def test_a_hint_saves_work_and_changes_nothing_else(sample_weights: dict[str, Any]) -> None:
    first = encode_checked(sample_weights["man-de"], 0.2)
    assert first.step is not None
    hinted = encode(sample_weights["man-de"], None, 0.2, hint=first.step)
    assert 0.99 * 0.2 <= hinted.fidelity.relative_error <= 0.2
    assert len(hinted.code) == pytest.approx(len(first.code), rel=0.01)
    absurd = encode(sample_weights["man-de"], None, 0.2, hint=1e6)
    assert absurd.fidelity.relative_error <= 0.2


def test_narrow_dtypes_that_cannot_hold_a_tolerance_stay_lossless(make: ModuleType) -> None:
    original = make.original(make.layout(WIDE, dtype="BF16"))
    encoded = encode_checked(original, 1e-4)
    assert encoded.codec.name == "lossless-2"
    assert encoded.reason == "no residual holds a relative error of 0.0001"


def test_a_residual_that_saves_nothing_gives_way_to_lossless(make: ModuleType) -> None:
    original = make.original(make.layout(((2, 2, 2),)))
    encoded = encode_checked(original, 1e-7)
    assert encoded.codec.name == "lossless-2"
    assert encoded.output == original.data
    assert "1e-07" in encoded.reason


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_an_untrained_adapter_takes_almost_nothing(tolerance: float, make: ModuleType) -> None:
    layout = make.layout(WIDE)
    modules = [Factors(b=0 * f.b, a=f.a) for f in make.factors(layout)]
    encoded = encode_checked(make.original(layout, modules), tolerance)
    assert encoded.fidelity.relative_error == 0.0
    assert len(encoded.code) < 50


def test_one_untrained_module_among_others(make: ModuleType) -> None:
    layout = make.layout(WIDE)
    modules = make.factors(layout)
    modules[1] = Factors(b=0 * modules[1].b, a=modules[1].a)
    encoded = encode_checked(make.original(layout, modules), 0.2)
    assert encoded.fidelity.worst_module_error < 1


@pytest.mark.parametrize(
    "shapes",
    [((1, 1, 1),), ((30, 1, 40),), ((1, 4, 30),), ((30, 4, 1),), ((2, 8, 3), (30, 1, 20)), ((64, 32, 64),)],
    ids=str,
)
@pytest.mark.parametrize("tolerance", [0.01, 0.5])
def test_every_shape_is_encoded(shapes: tuple[tuple[int, int, int], ...], tolerance: float, make: ModuleType) -> None:
    encode_checked(make.original(make.layout(shapes)), tolerance)


@pytest.mark.parametrize("scale", [0.0, 1e-6, -3.0, 1e6])
def test_every_scale_is_encoded(scale: float, make: ModuleType) -> None:
    encoded = encode_checked(make.original(make.layout(WIDE, scale=scale)), 0.2)
    assert encoded.codec.tier == "residual"


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("tolerance", [0.01, 0.2])
def test_every_size_of_weights_is_encoded(size: float, tolerance: float, make: ModuleType) -> None:
    encode_checked(make.original(make.layout(WIDE), size=size), tolerance)


def test_weights_near_the_limit_of_float16_stay_finite(make: ModuleType) -> None:
    layout = make.layout(WIDE, dtype="F16")
    modules = [
        Factors(b=f.b / np.abs(f.b).max() * 65000, a=f.a / np.abs(f.a).max() * 65000) for f in make.factors(layout)
    ]
    encoded = encode_checked(make.original(layout, modules), 0.2)
    assert np.isfinite(encoded.fidelity.relative_error)


def test_a_factor_that_only_fits_unbalanced_is_still_encoded(make: ModuleType) -> None:
    """One factor huge, the other tiny: what is decoded may share the load otherwise, but must fit float16."""
    layout = make.layout(WIDE, dtype="F16")
    modules = [Factors(b=f.b / np.abs(f.b).max() * 60000, a=f.a * 1e-3) for f in make.factors(layout)]
    encode_checked(make.original(layout, modules), 0.1)


def test_a_few_huge_weights_are_encoded(make: ModuleType) -> None:
    layout = make.layout(WIDE)
    modules = make.factors(layout)
    modules[0].a[0, 0] = 1e6
    modules[2].b[3, 1] = -1e5
    encode_checked(make.original(layout, modules), 0.01)


def test_mixed_dtypes_are_encoded(make: ModuleType) -> None:
    encode_checked(make.original(make.layout(WIDE, dtype=["F32", "BF16", "F16", "F32"] * 2)), 0.2)


def test_a_prediction_saves_bytes(make: ModuleType) -> None:
    layout = make.layout(WIDE)
    made = make.loaded(layout, make.generator("mean", layout, coordinates="shared"))
    original, draft = make.near_prediction(layout, made, 1, 0.05)
    predicted = encode_checked(original, 0.05, draft)
    alone = encode_checked(original, 0.05)
    assert (predicted.codec.name, predicted.uses_generator) == ("predicted-2", True)
    assert (alone.codec.name, alone.uses_generator) == ("residual-2", False)
    assert len(predicted.code) < 0.6 * len(alone.code)


@pytest.mark.parametrize("untrained", [(0,), (0, 1, 2, 3)], ids=["one module", "all modules"])
@pytest.mark.parametrize("arch", ["mean", "slots"])
def test_untrained_modules_are_encoded_against_a_prediction(
    arch: str, untrained: tuple[int, ...], make: ModuleType
) -> None:
    layout = make.layout(WIDE)
    loaded = make.loaded(layout, make.generator(arch, layout, coordinates="shared"))
    modules = [
        Factors(b=f.b * (index not in untrained), a=f.a) for index, f in enumerate(make.factors(layout, size=3.0))
    ]
    original = make.original(layout, modules)
    turn = partial(in_coordinates, original.factors, loaded.generator)
    draft = Draft(loaded, *make.inputs(loaded.generator), turn)
    encoded = encode_checked(original, 0.2, draft)
    assert encoded.codec.tier == "residual"


def test_what_the_generator_draws_well_enough_takes_no_residual(make: ModuleType) -> None:
    layout = make.layout(WIDE)
    made = make.loaded(layout, make.generator("slots", layout))
    original, draft = make.near_prediction(layout, made, 1, 0.001)
    encoded = encode_checked(original, 0.2, draft)
    assert encoded.codec.name == "generated-1"
    assert len(encoded.code) == 32 + draft.latent.size + draft.condition.size
    assert encode_checked(original, 0.0, draft).codec.name == "lossless-2"


def test_damage_while_encoding_is_not_mistaken_for_overflow(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise InvalidContainerError(what="Adapter 'task@1'", reason="the decoder is broken")

    monkeypatch.setattr(encode_module, "decode", broken)
    with pytest.raises(InvalidContainerError, match="the decoder is broken"):
        encode(make.original(make.layout()), None, 0.2)


def test_a_residual_that_overflows_its_dtype_stays_lossless(make: ModuleType) -> None:
    layout = make.layout(((6, 1, 8),), dtype="F16")
    # Both factors at the limit, so that rounding either of them up by a step is too much.
    modules = [Factors(b=np.full((6, 1), 65504.0), a=np.full((1, 8), 65504.0))]
    encoded = encode_checked(make.original(layout, modules), 0.9)
    assert encoded.fidelity.relative_error <= 0.9


def test_other_header_orders_survive_lossless(make: ModuleType) -> None:
    layout = make.layout()
    data = write_weights(layout, make.factors(layout)).replace(b'{"__metadata__":{"format":"pt"},', b"{" + b" " * 31)
    encoded = encode(Original("Adapter 'task@1'", lambda: data, layout), None, 0.0)
    assert encoded.output == data
