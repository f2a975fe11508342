"""Integer tensors in a stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.integers.entropy import SymbolDecoder, SymbolEncoder
from lorareg.compress.integers.tensors import IntTensor, get_tensor, put_tensor, quantise_tensor, round_tensor


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1,), (7,), (3, 5), (4, 200), (2, 3, 90), (1, 1), (0, 5), (3, 0)]),
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
