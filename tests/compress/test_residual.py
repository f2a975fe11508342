"""The residual codec: quantising a module, its core, packing it, and damage."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.codec.quantize import STEP_COUNT, dequantise, steps_of
from lorareg.compress.codec.residual import (
    CORE_UNIT,
    DIRECTION_UNIT,
    MAX_BOOST,
    STRENGTH,
    Quantised,
    Target,
    quantise_module,
    restore,
    restore_module,
    restore_plain,
    targets,
)
from lorareg.compress.codec.residual_payload import SIDE_ARRAYS, pack_residual, unpack_residual
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import predict
from lorareg.compress.generators.prediction import Prediction
from lorareg.compress.integers.entropy import SCALE_COUNT, ZERO_TABLE, SymbolEncoder, cheapest_table
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

dimension = st.integers(1, 9)
shapes = st.lists(st.tuples(dimension, st.integers(1, 5), dimension), min_size=1, max_size=5)


# -- packing -------------------------------------------------------------------------------------


def random_module(shape: tuple[int, int, int], random: np.random.Generator, predicted: bool) -> Quantised:
    """What an encoder could store of one module; some vectors zero, some components left out."""
    d_out, rank, d_in = shape
    k = int(random.integers(0, rank + 1))

    def vectors(width: int) -> np.ndarray:
        spreads = random.choice([0, 1, 30, 3000], (k, 1))
        return np.asarray(np.rint(random.uniform(-1, 1, (k, width)) * spreads).astype(np.int64))

    b, a = vectors(d_out), vectors(d_in)
    tables = [[cheapest_table(row)[0] for row in rows] for rows in (b, a)]
    width = rank if predicted else k
    return Quantised(
        directions=random.integers(-32, 33, (rank, k)) if predicted else None,
        core=random.integers(-64, 65, (width, width)),
        tables=np.array(tables, np.int64).reshape(2, k),
        steps=random.integers(0, STEP_COUNT, (2, k)),
        b_symbols=b,
        a_symbols=a,
    )


def unpacked(payload: bytes, layout: Layout, *, predicted: bool = False) -> list[Quantised]:
    return unpack_residual(payload, layout, predicted=predicted, what="Code")


def some_prediction(make: ModuleType, layout: Layout, seed: int = 0) -> Prediction:
    made = make.generator("mean", layout, seed)
    return predict(made, layout, *make.inputs(made))


def framed_targets(make: ModuleType, layout: Layout, seed: int, predicted: bool) -> list[Target]:
    """An adapter, and what is predicted of it where that is asked for."""
    return targets(make.factors(layout, seed), some_prediction(make, layout, seed) if predicted else None)


@settings(max_examples=80, deadline=None)
@given(shapes, st.booleans(), st.integers(0, 10_000))
def test_unpacking_gives_back_what_was_packed(
    make: ModuleType, of: list[tuple[int, int, int]], predicted: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    layout = make.layout(of)
    modules = [random_module(shape, random, predicted) for shape in of]
    for module, back in zip(
        modules, unpacked(pack_residual(modules, layout), layout, predicted=predicted), strict=True
    ):
        assert back.count == module.count
        coded = module.tables != ZERO_TABLE
        np.testing.assert_array_equal(back.steps[coded], module.steps[coded])
        for name in ("core", "tables", "b_symbols", "a_symbols"):
            np.testing.assert_array_equal(getattr(back, name), getattr(module, name))
        if predicted:
            np.testing.assert_array_equal(back.directions, module.directions)
        else:
            assert back.directions is None


@settings(max_examples=60, deadline=None)
@given(shapes, st.booleans(), st.integers(0, 10_000), st.sampled_from([1e-3, 0.05, 10.0]))
def test_decoding_gives_the_modules_that_were_quantised(
    make: ModuleType, of: list[tuple[int, int, int]], predicted: bool, seed: int, step: float
) -> None:
    layout = make.layout(of)
    framed = framed_targets(make, layout, seed, predicted)
    prediction = some_prediction(make, layout, seed) if predicted else None
    modules = [quantise_module(target, step) for target in framed]
    payload = pack_residual(modules, layout)
    restored = restore(unpacked(payload, layout, predicted=predicted), prediction, layout)
    for module, factors, target in zip(modules, restored, framed, strict=True):
        wanted = restore_module(module, target.predicted)
        rank = wanted.rank
        np.testing.assert_array_equal(factors.b[:, :rank], wanted.b)
        np.testing.assert_array_equal(factors.a[:rank], wanted.a)
        assert not factors.b[:, rank:].any()
        assert not factors.a[rank:].any()
        assert factors.b.shape == target.wanted.b.shape
        assert factors.a.shape == target.wanted.a.shape
        if step == 1e-3:
            np.testing.assert_allclose(factors.delta, target.wanted.delta, atol=0.1)


@pytest.mark.parametrize("zero", ["a", "b", "both"])
def test_a_zero_module_takes_no_symbols(zero: str, make: ModuleType) -> None:
    layout = make.layout(((8, 3, 7),))
    (factors,) = make.factors(layout)
    emptied = Factors(b=factors.b * (zero == "a"), a=factors.a * (zero == "b"))
    (target,) = targets([emptied], None)
    module = quantise_module(target, 0.1)
    assert (module.count, module.core.size) == (0, 0)
    payload = pack_residual([module], layout)
    assert payload == bytes(SIDE_ARRAYS + 1)
    (restored,) = restore(unpacked(payload, layout), None, layout)
    assert not restored.delta.any()
    assert (restored.b.shape, restored.a.shape) == ((8, 3), (3, 7))


@pytest.mark.parametrize("step", [1e-3, 0.1, 3.0, 1e3])
def test_a_zero_module_is_told_apart_from_what_is_predicted_of_it(step: float, make: ModuleType) -> None:
    layout = make.layout(((8, 3, 7),))
    (factors,) = make.factors(layout)
    prediction = some_prediction(make, layout)
    (target,) = targets([Factors(b=0 * factors.b, a=factors.a)], prediction)
    plain, module = quantise_module(target, step, None), quantise_module(target, step)
    errors = [float(np.linalg.norm(restore_module(q, target.predicted).delta)) for q in (plain, module)]
    assert errors[1] <= errors[0]


def test_a_component_below_the_step_is_left_out(make: ModuleType) -> None:
    layout = make.layout(((20, 4, 30),))
    framed = framed_targets(make, layout, 0, False)
    counts = [quantise_module(framed[0], step).count for step in (0.01, 0.5, 1.0, 2.0, 1e3)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (4, 0)
    assert len(set(counts)) > 2


def test_a_half_of_a_component_is_never_kept_without_a_prediction() -> None:
    # One large entry makes b worth coding; a's even row lies below its dead zone.
    factors = Factors(b=np.eye(8)[:, :1], a=np.full((1, 400), 0.05))
    (target,) = targets([factors], None)
    for step in np.geomspace(0.01, 3, 40):
        module = quantise_module(target, float(step))
        assert ((module.tables == ZERO_TABLE).all(axis=0) | (module.tables != ZERO_TABLE).all(axis=0)).all()


def test_equal_neighbours_cost_little(make: ModuleType) -> None:
    of = ((20, 4, 30),) * 12
    layout = make.layout(of)
    (target,) = targets(make.factors(make.layout(of[:1])), None)
    module = quantise_module(target, 3.0)
    one = len(pack_residual([module], make.layout(of[:1])))
    twelve = len(pack_residual([module] * len(layout.modules), layout))
    assert twelve < 12 * one


@pytest.mark.parametrize("value", [1.0, 1e30])
def test_a_step_too_fine_for_a_module_overflows(value: float, make: ModuleType) -> None:
    layout = make.layout(((6, 2, 5),))
    (target,) = targets(make.factors(layout, size=value), None)
    with pytest.raises(OverflowError, match=r"symbol \d+ is beyond the widest table"):
        quantise_module(target, 1e-12 * value)


# -- exact arithmetic ----------------------------------------------------------------------------


def in_a_loop(small: Any, wide: Any, start: Any) -> np.ndarray:
    """start + small @ wide, one operation at a time, in Python's own floats."""
    result = []
    for row, begin in zip(small.tolist(), start.tolist(), strict=True):
        line = []
        for column in range(wide.shape[1]):
            total = begin[column]
            for k, factor in enumerate(row):
                total = total + factor * float(wide[k, column])
            line.append(total)
        result.append(line)
    return np.array(result, np.float64).reshape(start.shape)


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_decoding_sums_in_a_fixed_order(predicted: bool, seed: int, make: ModuleType) -> None:
    shape = (5, 4, 6)
    layout = make.layout((shape,))
    module = random_module(shape, np.random.default_rng(seed), predicted)
    prediction = some_prediction(make, layout, seed) if predicted else None
    (factors,) = restore([module], prediction, layout)
    b_steps, a_steps = steps_of(module.steps)
    b, a = dequantise(module.b_symbols, b_steps), dequantise(module.a_symbols, a_steps)
    if prediction is not None:
        assert module.directions is not None
        start = prediction.factors[0]
        b = in_a_loop(module.directions * DIRECTION_UNIT, b, start.b.T)
        a = in_a_loop(module.directions * DIRECTION_UNIT, a, start.a)
    b = in_a_loop(module.core.T * CORE_UNIT, b, np.zeros_like(b))
    np.testing.assert_array_equal(factors.b[:, : len(b)], b.T)
    np.testing.assert_array_equal(factors.a[: len(a)], a)


# -- the core ------------------------------------------------------------------------------------


def kept_share(target: Target, restored: Factors) -> float:
    """How much of the update's own direction is left: 1 for the whole."""
    return float(np.sum(target.wanted.delta * restored.delta) / np.sum(target.wanted.delta**2))


def lost_share(target: Target, restored: Factors) -> float:
    return float(np.linalg.norm(target.wanted.delta - restored.delta) / np.linalg.norm(target.wanted.delta))


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_a_fitted_core_brings_the_update_closer(step: float, predicted: bool, make: ModuleType) -> None:
    layout = make.layout(((40, 4, 60), (24, 4, 60)))
    for target in framed_targets(make, layout, 1, predicted):
        plain, closest = (restore_module(quantise_module(target, step, s), target.predicted) for s in (None, 0.0))
        assert lost_share(target, closest) <= lost_share(target, plain) + CORE_UNIT / 4
    lost = [
        sum(
            lost_share(target, restore_module(quantise_module(target, step, s), target.predicted))
            for target in framed_targets(make, layout, 1, predicted)
        )
        for s in (None, 0.0)
    ]
    assert lost[1] < lost[0]


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("step", [2.0, 5.0, 8.0])
def test_strength_gives_the_projection_back(step: float, predicted: bool, make: ModuleType) -> None:
    layout = make.layout(((40, 4, 60), (24, 4, 60)))
    for target in framed_targets(make, layout, 2, predicted):
        plain, closest, usual, full = (
            kept_share(target, restore_module(quantise_module(target, step, s), target.predicted))
            for s in (None, 0.0, STRENGTH, 1.0)
        )
        assert closest < usual <= full
        assert usual > plain
        assert full == pytest.approx(1, abs=CORE_UNIT) or full / closest == pytest.approx(MAX_BOOST, rel=0.03)


def test_a_module_is_never_made_much_stronger(make: ModuleType) -> None:
    layout = make.layout(((40, 4, 60),))
    (target,) = framed_targets(make, layout, 3, False)
    closest, boosted = (quantise_module(target, 10.0, strength) for strength in (0.0, 1.0))
    assert 0 < kept_share(target, restore_module(closest, None)) < 1 / MAX_BOOST
    np.testing.assert_allclose(boosted.core, closest.core * MAX_BOOST, atol=1)


def test_no_strength_leaves_the_identity(make: ModuleType) -> None:
    (target,) = framed_targets(make, make.layout(((9, 3, 8),)), 0, True)
    module = quantise_module(target, 0.5, None)
    np.testing.assert_array_equal(module.core * CORE_UNIT, np.eye(3))
    plain, restored = restore_plain(module, target.predicted), restore_module(module, target.predicted)
    np.testing.assert_array_equal(plain.b, restored.b)


def test_a_core_is_rounded_to_its_unit(make: ModuleType) -> None:
    module = random_module((4, 2, 4), np.random.default_rng(1), True)
    core = np.array([[1.0, 0.02], [-0.5, 0.97]])
    np.testing.assert_array_equal(module.with_core(core).core, [[32, 1], [-16, 31]])


# -- damage --------------------------------------------------------------------------------------

SMALL = ((4, 2, 5), (4, 2, 5), (3, 1, 2))


def decode_or_refuse(payload: bytes, layout: Layout, prediction: Prediction | None) -> bool:
    """True where a payload decodes, to the right shapes; any error but the typed one fails the test."""
    try:
        modules = unpacked(payload, layout, predicted=prediction is not None)
    except InvalidContainerError:
        return False
    restored = restore(modules, prediction, layout)
    for factors, a, b in zip(restored, layout.slots[0::2], layout.slots[1::2], strict=True):
        assert (factors.a.shape, factors.b.shape) == (a.shape, b.shape)
        assert np.isfinite(factors.a).all()
        assert np.isfinite(factors.b).all()
    return True


@pytest.fixture(params=[False, True], ids=["alone", "predicted"])
def small_payload(request: pytest.FixtureRequest, make: ModuleType) -> tuple[bytes, Layout, Prediction | None]:
    layout = make.layout(SMALL)
    modules = [quantise_module(target, 0.3) for target in framed_targets(make, layout, 0, request.param)]
    payload = pack_residual(modules, layout)
    return payload, layout, some_prediction(make, layout) if request.param else None


def test_a_truncated_payload_decodes_or_is_refused(small_payload: tuple[bytes, Layout, Prediction | None]) -> None:
    payload, layout, prediction = small_payload
    assert decode_or_refuse(payload, layout, prediction)
    for length in range(len(payload)):
        whole_words = length > SIDE_ARRAYS and (length - SIDE_ARRAYS - 1) % 4 == 0
        assert not decode_or_refuse(payload[:length], layout, prediction) or whole_words


def test_a_flipped_payload_decodes_or_is_refused(
    small_payload: tuple[bytes, Layout, Prediction | None], make: ModuleType
) -> None:
    payload, layout, prediction = small_payload
    decoded = [decode_or_refuse(make.flip(payload, bit), layout, prediction) for bit in range(8 * len(payload))]
    assert set(decoded) == {False, True}


def test_noise_decodes_or_is_refused(make: ModuleType) -> None:
    layout = make.layout(SMALL)
    random = np.random.default_rng(0)
    for index in range(400):
        prefix = random.integers(0, SCALE_COUNT, SIDE_ARRAYS).astype(np.uint8).tobytes()
        payload = prefix + random.bytes(1 + 4 * int(random.integers(0, 20)))
        decode_or_refuse(payload, layout, some_prediction(make, layout) if index % 2 else None)


def packed_side(counts: Sequence[int], tables: Sequence[int], steps: Sequence[int], base: int = 0) -> bytes:
    """A payload without directions, with cores at the identity; its numbers are not looked at."""
    encoder = SymbolEncoder()
    numbers = []
    for values in (counts, (), (), tables, steps):
        array = np.array(values, np.int64)
        numbers.append(cheapest_table(array)[0] if array.size else ZERO_TABLE)
        encoder.put(array, numbers[-1])
    return bytes([*numbers, base]) + encoder.finish()


@pytest.mark.parametrize("count", [-1, 3])
def test_a_count_beyond_the_rank_is_refused(count: int, make: ModuleType) -> None:
    with pytest.raises(InvalidContainerError, match=f"Code .*a module has {count} components, rank 2"):
        unpacked(packed_side([count], [], []), make.layout(((4, 2, 5),)))


def test_a_count_is_checked_at_every_module(make: ModuleType) -> None:
    layout = make.layout(((4, 2, 5),) * 3)
    with pytest.raises(InvalidContainerError, match="a module has 3 components, rank 2"):
        unpacked(packed_side([2, 1, -1], [], []), layout)


@pytest.mark.parametrize("table", [-1, SCALE_COUNT])
def test_a_table_that_does_not_exist_is_refused(table: int, make: ModuleType) -> None:
    with pytest.raises(InvalidContainerError, match=rf"a table number is outside 0\.\.{SCALE_COUNT - 1}"):
        unpacked(packed_side([1], [14, table], [9, 9]), make.layout(((4, 2, 5),)))


@pytest.mark.parametrize(("base", "step"), [(0, -1), (0, STEP_COUNT), (255, 1), (100, -101)])
def test_a_step_off_the_grid_is_refused(base: int, step: int, make: ModuleType) -> None:
    with pytest.raises(InvalidContainerError, match=rf"a step number is outside 0\.\.{STEP_COUNT - 1}"):
        unpacked(packed_side([1], [14, 14], [step, 0], base), make.layout(((4, 2, 5),)))


@pytest.mark.parametrize("payload", [b"", bytes(SIDE_ARRAYS), b"\0\0\x30\0\0\0", b"\0\0\0\0\xff\0"])
def test_a_prefix_of_unknown_tables_is_refused(payload: bytes, make: ModuleType) -> None:
    with pytest.raises(InvalidContainerError, match="table numbers that do not exist"):
        unpacked(payload, make.layout(((4, 2, 5),)))


def test_symbols_left_over_are_refused(make: ModuleType) -> None:
    layout = make.layout(((4, 2, 5),))
    payload = packed_side([0], [], []) + np.random.default_rng(0).bytes(40)
    with pytest.raises(InvalidContainerError, match="more symbols than its layout"):
        unpacked(payload, layout)


def test_tables_of_a_smaller_neighbour_are_predicted_from_the_larger(make: ModuleType) -> None:
    layout = make.layout(((6, 3, 7),) * 3)
    (target,) = framed_targets(make, make.layout(((6, 3, 7),)), 0, False)
    modules = [quantise_module(target, step) for step in (1e-3, 1e6, 0.1)]
    assert [q.count for q in modules] == [3, 0, 2]
    for module, back in zip(modules, unpacked(pack_residual(modules, layout), layout), strict=True):
        np.testing.assert_array_equal(back.tables, module.tables)
        np.testing.assert_array_equal(back.steps, module.steps)
