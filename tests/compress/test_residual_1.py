"""The first residual format, which is decoded for ever; `test_codecs` and `test_golden` decode its kept files."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.codec.quantize import PULL, STEP_COUNT, steps_of
from lorareg.compress.codec.residual_1 import (
    COARSE_BITS,
    FRACTION_BITS,
    Quantised,
    restore,
    restore_rotation,
    unpack_residual,
)
from lorareg.compress.generators.generator import predict
from lorareg.compress.integers.entropy import SCALE_COUNT, ZERO_TABLE, Int64, SymbolEncoder, cheapest_table
from lorareg.registry.errors import InvalidContainerError

SHAPE = (3, 1, 4)


def packed(tables: list[int], steps: list[int], symbols: list[Int64], rotation: Int64 | None = None) -> bytes:
    """The payload of one module, as codecs 2 and 3 had it; its numbers are not looked at."""
    encoder = SymbolEncoder()
    held = [step for step, table in zip(steps, tables, strict=True) if table != ZERO_TABLE]
    side = [np.zeros(0, np.int64) if rotation is None else rotation.ravel(), np.array(tables), np.array(held)]
    numbers = [cheapest_table(array)[0] if array.size else ZERO_TABLE for array in side]
    for array, number in zip(side, numbers, strict=True):
        encoder.put(array, number)
    for vector, table in zip(symbols, tables, strict=True):
        if 0 <= table < SCALE_COUNT:
            encoder.put(vector, table)
    return bytes([*numbers, 0]) + encoder.finish()


def some_symbols() -> list[Int64]:
    return [np.array([1, 2, -1]), np.array([4, 0, 1, -3])]


def unpacked(payload: bytes, make: ModuleType, *, rotated: bool = False) -> Quantised:
    (module,) = unpack_residual(payload, make.layout((SHAPE,)), rotated=rotated, what="Code")
    return module


def test_symbols_become_factors(make: ModuleType) -> None:
    module = unpacked(packed([14, 14], [170, 180], some_symbols()), make)
    (factors,) = restore([module], None)
    b_step, a_step = steps_of(np.array([170, 180]))
    np.testing.assert_array_equal(factors.b[:, 0], np.array([1 - PULL, 2 - PULL, -(1 - PULL)]) * b_step)
    np.testing.assert_array_equal(factors.a[0], np.array([4 - PULL, 0, 1 - PULL, -(3 - PULL)]) * a_step)


def test_a_prediction_is_turned_and_added(make: ModuleType) -> None:
    layout = make.layout((SHAPE,))
    made = make.generator("mean", layout)
    prediction = predict(made, layout, *make.inputs(made))
    mirrored = np.array([[-32]])  # the identity is sixteen sixteenths, so this is -1
    module = unpacked(packed([14, 14], [100, 100], some_symbols(), mirrored), make, rotated=True)
    (factors,) = restore([module], prediction)
    (alone,) = restore([unpacked(packed([14, 14], [100, 100], some_symbols()), make)], None)
    np.testing.assert_array_equal(factors.b, alone.b - prediction.factors[0].b)
    np.testing.assert_array_equal(factors.a, alone.a - prediction.factors[0].a)


@pytest.mark.parametrize(("table", "step"), [(-1, 0), (SCALE_COUNT, 0), (14, STEP_COUNT), (14, -1)])
def test_numbers_outside_the_tables_are_refused(table: int, step: int, make: ModuleType) -> None:
    limit = SCALE_COUNT if table != 14 else STEP_COUNT
    with pytest.raises(InvalidContainerError, match=rf"Code .*table or step number is outside 0\.\.{limit - 1}"):
        unpacked(packed([table, 14], [step, 9], some_symbols()), make)


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\x30\0\0\0", b"\0\0\0\xff"])
def test_a_prefix_of_unknown_tables_is_refused(payload: bytes, make: ModuleType) -> None:
    with pytest.raises(InvalidContainerError, match="table numbers that do not exist"):
        unpacked(payload, make)


# -- the coded rotation --------------------------------------------------------------------------


def random_rotation(rank: int, seed: int = 0) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(rank, rank)))
    return rotation


def coarsened(rotation: np.ndarray) -> Int64:
    """A rotation as it was stored: in sixteenths, less the identity."""
    identity = np.eye(len(rotation), dtype=np.int64) << COARSE_BITS
    return np.asarray(np.rint(rotation * (1 << COARSE_BITS)).astype(np.int64) - identity)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(0, 1000))
def test_a_restored_rotation_is_orthogonal_and_near(rank: int, seed: int) -> None:
    rotation = random_rotation(rank, seed)
    restored = restore_rotation(coarsened(rotation)) / (1 << FRACTION_BITS)
    np.testing.assert_allclose(restored.T @ restored, np.eye(rank), atol=2e-3)
    assert np.abs(restored - rotation).max() < 0.2


def test_zeros_stand_for_the_identity() -> None:
    np.testing.assert_array_equal(restore_rotation(np.zeros((4, 4), np.int64)), np.eye(4) * (1 << FRACTION_BITS))


@pytest.mark.parametrize("size", [10, 1000, 60_000])
def test_an_absurd_rotation_is_clamped_to_integers(size: int) -> None:
    coarse = np.random.default_rng(size).integers(-size, size, (64, 64))
    restored = restore_rotation(coarse)
    assert np.array_equal(restored, np.rint(restored))
    assert np.abs(restored).max() <= 1 << (FRACTION_BITS + 1)


def test_a_restored_rotation_does_not_depend_on_the_order_of_sums() -> None:
    coarse = coarsened(random_rotation(12))
    order = np.random.default_rng(3).permutation(12)
    np.testing.assert_array_equal(
        restore_rotation(coarse)[np.ix_(order, order)], restore_rotation(coarse[np.ix_(order, order)])
    )
