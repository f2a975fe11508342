"""Quantising a module and packing it."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.entropy import (
    DEAD_ZONE,
    SCALE_COUNT,
    ZERO_TABLE,
    SymbolDecoder,
    SymbolEncoder,
    bit_costs,
    cheapest_table,
    reach,
)
from lorareg.compress.generator import predict
from lorareg.compress.quantize import (
    PULL,
    RATE_WEIGHT,
    STEP_COUNT,
    dequantise,
    nearest_steps,
    quantise,
    step_of,
    steps_of,
)
from lorareg.compress.residual import (
    Quantised,
    dequantise_module,
    pack_residual,
    quantise_module,
    restore,
    targets,
    unpack_residual,
)
from lorareg.compress.tensors import IntTensor, get_tensor, put_tensor, quantise_tensor, round_tensor
from lorareg.compress.weights import Factors
from lorareg.registry.errors import InvalidContainerError

dimension = st.integers(1, 9)
shapes = st.lists(st.tuples(dimension, st.integers(1, 5), dimension), min_size=1, max_size=5)


# -- steps and symbols ---------------------------------------------------------------------------


def test_the_grid_of_steps_is_exact() -> None:
    steps = [step_of(i) for i in range(STEP_COUNT)]
    assert steps[0] == 2.0**-44
    assert all(steps[i + 4] == 2 * steps[i] for i in range(STEP_COUNT - 4))
    assert [s.hex() for s in steps[176:180]] == [
        "0x1.0000000000000p+0",
        "0x1.306fe0a31b715p+0",
        "0x1.6a09e667f3bcdp+0",
        "0x1.ae89f995ad3adp+0",
    ]


def test_the_nearest_step_is_found_and_clamped() -> None:
    indices = np.arange(STEP_COUNT)
    np.testing.assert_array_equal(nearest_steps(1.0, 1 / steps_of(indices)), indices)
    assert nearest_steps(1.05 * step_of(100), np.ones(1)).tolist() == [100]
    assert nearest_steps(1.0, np.array([1e300, 1e-300, 0.0])).tolist() == [0, STEP_COUNT - 1, STEP_COUNT - 1]


def cost(values: np.ndarray, symbols: np.ndarray, table: int) -> float:
    """What quantising in steps of 1 minimises."""
    bits = bit_costs(table)[np.abs(symbols)].sum() if table else 0.0
    return float(((values - dequantise(symbols[None], np.ones(1))[0]) ** 2).sum() + RATE_WEIGHT * bits)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 8.0), st.integers(0, 10_000))
def test_trading_bits_for_error_is_never_worse_than_rounding(count: int, spread: float, seed: int) -> None:
    values = np.random.default_rng(seed).logistic(0, spread, (3, count)) * [[1], [0.1], [4]]
    plain = (np.sign(values) * np.floor(np.abs(values) + 1 - DEAD_ZONE)).astype(np.int64)
    symbols, tables = quantise(values, np.ones(3))
    for row, drawn, table, rounded in zip(values, symbols, tables, plain, strict=True):
        assert cost(row, drawn, int(table)) <= cost(row, rounded, cheapest_table(rounded)[0]) * 1.0001 + 1e-9
        assert (np.abs(drawn).max() <= reach(int(table))) if table else not drawn.any()
        magnitudes = np.abs(drawn)
        if table:
            assert bit_costs(int(table))[magnitudes].sum() <= cheapest_table(drawn)[1] * 1.005 + 1


def test_a_symbol_stands_for_a_point_pulled_inwards() -> None:
    values = dequantise(np.array([[-2, -1, 0, 1, 2]]), np.array([0.5]))
    np.testing.assert_array_equal(values[0], [-(2 - PULL) / 2, -(1 - PULL) / 2, 0, (1 - PULL) / 2, (2 - PULL) / 2])


def test_a_row_below_the_dead_zone_is_zero() -> None:
    symbols, tables = quantise(np.array([[0.3, -0.39, 0.0], [0.0, 0.0, 7.0]]), np.ones(2))
    assert tables[0] == ZERO_TABLE
    assert not symbols[0].any()
    assert symbols[1].tolist() == [0, 0, 7]


@pytest.mark.parametrize("value", [1.0, 1e38, -1e38])
def test_a_step_far_too_fine_overflows(value: float) -> None:
    with pytest.raises(OverflowError, match="is beyond the widest table"):
        quantise(np.array([[value]]), np.array([2.0**-44]))


# -- packing -------------------------------------------------------------------------------------


def quantised(shape: tuple[int, int, int], random: np.random.Generator, rotated: bool) -> Quantised:
    """Random symbols of one module; some vectors zero."""
    d_out, rank, d_in = shape
    symbols, tables, steps = [], [], []
    for length in [d_out] * rank + [d_in] * rank:
        spread = random.choice([0, 1, 30, 3000])
        drawn = random.integers(-spread, spread + 1, length)
        symbols.append(drawn)
        tables.append(cheapest_table(drawn)[0])
        steps.append(int(random.integers(0, STEP_COUNT)))
    rotation = random.integers(-32, 33, (rank, rank)) if rotated else None
    return Quantised(np.array(tables), np.array(steps), tuple(symbols), rotation)


@settings(max_examples=80, deadline=None)
@given(shapes, st.booleans(), st.integers(0, 10_000))
def test_unpacking_gives_back_what_was_packed(
    make: ModuleType, of: list[tuple[int, int, int]], rotated: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    layout = make.layout(of)
    modules = [quantised(shape, random, rotated) for shape in of]
    unpacked = unpack_residual(pack_residual(modules), layout, rotated=rotated, what="Code")
    for module, back in zip(modules, unpacked, strict=True):
        np.testing.assert_array_equal(back.tables, module.tables)
        coded = module.tables != ZERO_TABLE
        np.testing.assert_array_equal(back.steps[coded], module.steps[coded])
        for symbols, other in zip(module.symbols, back.symbols, strict=True):
            np.testing.assert_array_equal(other, symbols)
        if rotated:
            np.testing.assert_array_equal(back.rotation, module.rotation)
        else:
            assert back.rotation is None


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 10_000), st.sampled_from([1e-3, 0.05, 10.0]))
def test_decoding_gives_the_modules_that_were_quantised(
    make: ModuleType, of: list[tuple[int, int, int]], seed: int, step: float
) -> None:
    layout = make.layout(of)
    framed = targets(make.factors(layout, seed), None)
    modules = [quantise_module(target, step) for target in framed]
    restored = restore(unpack_residual(pack_residual(modules), layout, rotated=False, what="Code"), None)
    for module, factors, target in zip(modules, restored, framed, strict=True):
        wanted = dequantise_module(module, None)
        np.testing.assert_array_equal(factors.b, wanted.b)
        np.testing.assert_array_equal(factors.a, wanted.a)
        if step == 1e-3:
            np.testing.assert_allclose(factors.delta, target.wanted.delta, atol=0.1)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 10_000))
def test_decoding_against_a_prediction_is_what_the_encoder_saw(
    make: ModuleType, of: list[tuple[int, int, int]], seed: int
) -> None:
    layout = make.layout(of)
    made = make.generator("mean", layout, seed)
    prediction = predict(made, layout, *make.inputs(made))
    adapter = make.factors(layout, seed)
    framed = targets(adapter, prediction)
    modules = [quantise_module(target, 1e-3) for target in framed]
    restored = restore(unpack_residual(pack_residual(modules), layout, rotated=True, what="Code"), prediction)
    for module, target, factors, original in zip(modules, framed, restored, adapter, strict=True):
        wanted = dequantise_module(module, target.predicted)
        np.testing.assert_array_equal(factors.b, wanted.b)
        np.testing.assert_array_equal(factors.a, wanted.a)
        np.testing.assert_allclose(factors.delta, original.delta, atol=0.1)


@pytest.mark.parametrize("zero", ["a", "b", "both"])
def test_a_zero_module_takes_no_symbols(zero: str, make: ModuleType) -> None:
    layout = make.layout(((8, 3, 7),))
    (factors,) = make.factors(layout)
    emptied = Factors(b=factors.b * (zero == "a"), a=factors.a * (zero == "b"))
    (target,) = targets([emptied], None)
    module = quantise_module(target, 0.1)
    assert not module.tables.any()
    payload = pack_residual([module])
    assert len(payload) == 4
    (restored,) = restore(unpack_residual(payload, layout, rotated=False, what="Code"), None)
    assert not restored.delta.any()


def test_equal_neighbours_cost_little(make: ModuleType) -> None:
    of = ((20, 4, 30),) * 12
    layout = make.layout(of)
    (target,) = targets(make.factors(make.layout(of[:1])), None)
    one = len(pack_residual([quantise_module(target, 3.0)]))
    twelve = len(pack_residual([quantise_module(target, 3.0)] * len(layout.modules)))
    assert twelve < 12 * one


@pytest.mark.parametrize(("table", "step"), [(-1, 0), (14, STEP_COUNT), (14, -1)])
def test_numbers_outside_the_tables_are_refused(table: int, step: int, make: ModuleType) -> None:
    symbols = (np.array([1, 2, -1]), np.array([4, 0, 1, -3]))
    module = Quantised(np.array([table, 14]), np.array([step, 9]), symbols, None)
    limit = STEP_COUNT if table > 0 else SCALE_COUNT
    with pytest.raises(InvalidContainerError, match=rf"table or step number is outside 0\.\.{limit - 1}"):
        unpack_residual(_packed_unchecked(module), make.layout(((3, 1, 4),)), rotated=False, what="Code")


def _packed_unchecked(module: Quantised) -> bytes:
    """As `pack_residual`, with numbers that no encoder makes."""
    encoder = SymbolEncoder()
    steps = module.steps[module.tables != ZERO_TABLE]
    numbers = [cheapest_table(array)[0] for array in (module.tables, steps)]
    for array, number in zip((module.tables, steps), numbers, strict=True):
        encoder.put(array, number)
    return bytes([0, *numbers, 0]) + encoder.finish()


# -- integer tensors -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1,), (7,), (3, 5), (4, 200), (2, 3, 90), (1, 1)]),
    st.sampled_from([0, 1, 100, 32767]),
    st.integers(0, 10_000),
)
def test_tensors_come_back(shape: tuple[int, ...], spread: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-spread, spread + 1, shape).astype(float)
    encoder = SymbolEncoder()
    put_tensor(encoder, IntTensor(values, -7))
    decoder = SymbolDecoder(encoder.finish(), "Generator")
    back = get_tensor(decoder, shape, -7)
    decoder.finish()
    np.testing.assert_array_equal(back.values, values)
    np.testing.assert_array_equal(back.real, values / 128)


@pytest.mark.parametrize("bits", [2, 6, 8, 12, 16])
def test_quantised_tensors_use_their_bits(bits: int) -> None:
    real = np.random.default_rng(bits).normal(size=(5, 6)) * 1e-3
    tensor = quantise_tensor(real, bits)
    limit = (1 << (bits - 1)) - 1
    assert limit / 2 - 1 <= np.abs(tensor.values).max() <= limit
    assert np.abs(tensor.real - real).max() <= 2.0**tensor.exponent / 2


def test_extreme_tensors_are_clamped() -> None:
    assert not quantise_tensor(np.zeros(3), 6).values.any()
    assert quantise_tensor(np.array([1e-300]), 6).exponent == -60
    assert round_tensor(np.array([1e9, -1e9]), 0).values.tolist() == [32767.0, -32767.0]
