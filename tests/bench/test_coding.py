from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(0, 2**20), max_size=60))
def test_gaps_come_back(gaps: list[int]) -> None:
    from coding import decode_gaps, encode_gaps

    values = np.array(gaps, dtype=np.int64)
    assert np.array_equal(decode_gaps(encode_gaps(values), len(values)), values)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
def test_gaps_take_about_their_entropy(density: float) -> None:
    from coding import encode_gaps

    kept = np.flatnonzero(np.random.default_rng(1).random(200_000) < density)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    size = len(encode_gaps(np.diff(kept, prepend=-1) - 1))
    assert 0.99 * entropy * 200_000 / 8 < size < 1.06 * entropy * 200_000 / 8


@given(st.integers(1, 9), st.lists(st.integers(0, 511), max_size=40))
def test_bits_come_back_in_the_bytes_said(bits: int, values: list[int]) -> None:
    from coding import bits_size, pack_bits, unpack_bits

    cut = np.array(values, dtype=np.int64) % (1 << bits)
    data = pack_bits(cut, bits)
    assert len(data) == bits_size(bits, len(cut))
    assert np.array_equal(unpack_bits(data, bits, len(cut)), cut)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_groups_come_back_within_a_step(bits: int) -> None:
    from coding import GroupCode

    random = np.random.default_rng(2)
    rows = [random.normal(size=shape) for shape in ((3, 300), (0, 200), (2, 5))]
    shapes = [slot.shape for slot in rows]
    code = GroupCode(bits)
    data = code.encode(rows)
    assert len(data) == code.size(shapes)
    error = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(rows, code.decode(data, shapes), strict=True))
    assert error < {2: 2.2, 3: 1.6, 8: 0.03}[bits]


def test_signs_come_back_with_their_group_means() -> None:
    from coding import SignCode

    rows = [np.where(np.arange(260) % 3, 0.5, -0.5)[None].repeat(2, axis=0), np.zeros((0, 9))]
    shapes = [slot.shape for slot in rows]
    data = SignCode().encode(rows)
    assert len(data) == 2 * 2 * 3 + 520 // 8
    assert np.array_equal(SignCode().decode(data, shapes)[0], rows[0])
