"""The probability tables and the coder."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorareg.compress.integers.entropy import (
    SCALE_COUNT,
    ZERO_TABLE,
    SymbolDecoder,
    SymbolEncoder,
    bit_costs,
    cheapest_table,
    counts,
    reach,
    scale_of,
)
from lorareg.registry.errors import InvalidContainerError

TABLES = range(1, SCALE_COUNT)
COUNTS_DIGEST = "7c73188b29d26ec6226bbcd547f50cb0cd311336fae3c58ed28033d477127e48"
"""Of every table there is. Codes are read with them for ever: they never change."""

vectors = st.one_of(
    st.lists(st.integers(-40, 40), min_size=1, max_size=80),
    st.lists(st.integers(-50_000, 50_000), min_size=1, max_size=20),
    st.builds(lambda zeros, peak: [0] * zeros + [peak], st.integers(0, 400), st.integers(-50_000, 50_000)),
).map(lambda values: np.array(values, dtype=np.int64))


def all_counts() -> bytes:
    return b"".join(counts(number).astype("<i8").tobytes() for number in TABLES)


def test_the_tables_never_change() -> None:
    assert hashlib.sha256(all_counts()).hexdigest() == COUNTS_DIGEST


def test_the_tables_do_not_depend_on_the_decimal_context() -> None:
    script = (
        "import decimal; decimal.getcontext().prec = 5; decimal.getcontext().rounding = decimal.ROUND_UP\n"
        "from lorareg.compress.integers.entropy import counts\n"
        "print(*(counts(n).tolist() for n in (1, 11, 25)), sep=chr(10))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [str(counts(n).tolist()) for n in (1, 11, 25)]


@pytest.mark.parametrize("number", TABLES)
def test_a_table_is_symmetric_and_falls_to_both_sides(number: int) -> None:
    table = counts(number)
    assert len(table) == 2 * reach(number) + 1
    np.testing.assert_array_equal(table, table[::-1])
    assert (table >= 1).all()
    assert 1 << 16 <= table.sum() + len(table) <= 1 << 18
    # Bin 0 is wider than bin 1 is, so it falls from there as well.
    assert (np.diff(table[reach(number) :]) <= 0).all()
    assert np.isclose(np.exp2(-bit_costs(number)) @ np.r_[1, np.full(reach(number), 2)], 1.0)


def test_scales_and_reaches_grow() -> None:
    assert [float(scale_of(n)) for n in (0, 3, 6)] == [0.1, 0.2, 0.4]
    assert all(reach(n) <= reach(n + 1) for n in range(SCALE_COUNT - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(vectors, min_size=0, max_size=6), st.lists(st.integers(0, 6), max_size=5))
def test_what_goes_in_comes_out(parts: list[np.ndarray], uniform: list[int]) -> None:
    encoder = SymbolEncoder()
    tables = [cheapest_table(part)[0] for part in parts]
    encoder.put_uniform(uniform, 7)
    for part, table in zip(parts, tables, strict=True):
        encoder.put(part, table)
    decoder = SymbolDecoder(encoder.finish(), "Code")
    assert decoder.get_uniform(len(uniform), 7).tolist() == uniform
    for part, table in zip(parts, tables, strict=True):
        np.testing.assert_array_equal(decoder.get(len(part), table), part)
    decoder.finish()


@settings(max_examples=150, deadline=None)
@given(vectors)
def test_the_cheapest_table_is_the_cheapest(symbols: np.ndarray) -> None:
    number, bits = cheapest_table(symbols)
    magnitudes = np.abs(symbols)
    if magnitudes.max() == 0:
        assert (number, bits) == (ZERO_TABLE, 0.0)
        return
    costs = [float(bit_costs(n)[magnitudes].sum()) for n in TABLES if reach(n) >= magnitudes.max()]
    assert reach(number) >= magnitudes.max()
    assert bits == pytest.approx(float(bit_costs(number)[magnitudes].sum()))
    # Beyond 11 scales every symbol costs the same, so few outliers may fit a narrow table one bit better.
    assert bits <= min(costs) * 1.005 + 1.0


def test_one_outlier_among_zeros_can_be_coded() -> None:
    symbols = np.zeros(4000, dtype=np.int64)
    symbols[17] = 40_000
    number, _ = cheapest_table(symbols)
    assert reach(number) >= 40_000


def test_the_bits_promised_are_the_bits_spent() -> None:
    symbols = np.rint(np.random.default_rng(0).logistic(0, 3, 5000)).astype(np.int64)
    number, bits = cheapest_table(symbols)
    encoder = SymbolEncoder()
    encoder.put(symbols, number)
    assert 8 * len(encoder.finish()) == pytest.approx(bits, rel=0.005)


def test_a_symbol_beyond_every_table_is_refused() -> None:
    beyond = reach(SCALE_COUNT - 1) + 1
    with pytest.raises(OverflowError, match=f"symbol {beyond} is beyond the widest table"):
        cheapest_table(np.array([0, -beyond]))


# -- damaged streams -----------------------------------------------------------------------------


def coded(count: int = 400, table: int = 14) -> tuple[np.ndarray, bytes]:
    symbols = np.rint(np.random.default_rng(1).logistic(0, float(scale_of(table)), count)).astype(np.int64)
    encoder = SymbolEncoder()
    encoder.put(symbols, table)
    return symbols, encoder.finish()


def test_symbols_left_over_are_noticed() -> None:
    symbols, data = coded()
    decoder = SymbolDecoder(data, "Code")
    decoder.get(len(symbols) // 2, 14)
    with pytest.raises(InvalidContainerError, match="Code cannot be decoded: its symbol stream has more symbols"):
        decoder.finish()


def test_words_left_over_are_noticed() -> None:
    symbols, data = coded()
    decoder = SymbolDecoder(data + b"abcdefgh", "Code")
    decoder.get(len(symbols), 14)
    with pytest.raises(InvalidContainerError, match="more symbols"):
        decoder.finish()


def test_part_of_a_word_is_refused() -> None:
    with pytest.raises(InvalidContainerError, match="has 5 bytes, not whole words"):
        SymbolDecoder(b"abcde", "Code")


def test_an_impossible_stream_is_refused() -> None:
    with pytest.raises(InvalidContainerError, match=r"symbol stream is not valid \(Tried to decode"):
        SymbolDecoder(b"\xff" * 8, "Code").get(5, 10)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64).map(lambda b: b[: len(b) // 4 * 4]), st.integers(1, SCALE_COUNT - 1))
def test_any_bytes_give_symbols_within_reach_or_a_typed_error(data: bytes, table: int) -> None:
    decoder = SymbolDecoder(data, "Code")
    try:
        symbols = decoder.get(30, table)
    except InvalidContainerError:
        return
    assert np.abs(symbols).max() <= reach(table)


def test_truncated_streams_never_give_the_same_symbols() -> None:
    symbols, data = coded()
    for length in range(0, len(data) - 4, 4):
        decoder = SymbolDecoder(data[:length], "Code")
        try:
            decoded = decoder.get(len(symbols), 14)
        except InvalidContainerError:
            continue
        assert not np.array_equal(decoded, symbols)


def test_zero_vectors_take_no_bytes() -> None:
    encoder = SymbolEncoder()
    encoder.put(np.zeros(1000, dtype=np.int64), ZERO_TABLE)
    assert encoder.finish() == b""
    decoder = SymbolDecoder(b"", "Code")
    assert not decoder.get(1000, ZERO_TABLE).any()
    decoder.finish()
