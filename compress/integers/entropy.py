"""Entropy coding of integers with probability tables that are the same on every machine.

Quantised weights are roughly logistic, so the codec has one family of tables: a logistic density
of scale s, integrated over the bins of a uniform quantiser with a dead zone (bin 0 is
(-0.6, 0.6), bin ±1 ends at 1.6, and so on). `scale_of` numbers the members of the family; a vector
of symbols travels with the number of the member that codes it shortest; number 0 stands for a
vector of zeros, which takes no symbols at all.

The tables are made with `decimal` (correctly rounded by its specification) and rounded to integer
counts, never with the C library's exp, whose last bit differs between machines. The coder is
`constriction`'s range coder; it takes the counts as exact dyadic fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cache
from itertools import accumulate, pairwise, repeat
from operator import mul

import constriction
import numpy as np
from numpy.typing import NDArray

from lorareg.registry.errors import InvalidContainerError

Int64 = NDArray[np.int64]

DEAD_ZONE = 0.6
"""Half the width of the zero bin, in steps. 0.5 is plain rounding; 0.6 cost 10% fewer bytes at equal error."""

SCALE_COUNT = 48
ZERO_TABLE = 0
UNCODABLE_BITS = 1e9
COUNT_BITS = 16
_TOTAL = 1 << COUNT_BITS
_TAIL_SCALES = 11  # beyond it a logistic tail is worth less than one count in _TOTAL
_DECIMAL = Context(prec=28, rounding=ROUND_HALF_EVEN)


def scale_of(number: int) -> Decimal:
    """The logistic scale, in steps, of table `number`: 0.1 * 2^(number / 3)."""
    with localcontext(_DECIMAL):
        return Decimal("0.1") * Decimal(2) ** (Decimal(number) / 3)


@cache
def reach(number: int) -> int:
    """The largest magnitude that table `number` can code."""
    with localcontext(_DECIMAL):
        return int(scale_of(number) * _TAIL_SCALES) + 2


@cache
def counts(number: int) -> Int64:
    """Integer counts of the symbols -reach..reach under table `number`; they sum to 2^16 or a little more."""
    scale, half_bin = scale_of(number), Decimal(str(DEAD_ZONE))
    with localcontext(_DECIMAL):
        # exp(-(n + 0.6) / s) by repeated multiplication: 28 digits leave 20 good ones after 60,000 of them.
        fall = accumulate(repeat((-1 / scale).exp(), reach(number)), mul, initial=(-half_bin / scale).exp())
        edges = [1 / (1 + tail) for tail in fall]
        mass = [2 * edges[0] - 1, *(high - low for low, high in pairwise(edges))]
        one_side = [max(1, int((m * _TOTAL).to_integral_value())) for m in mass]
    return np.array(one_side[:0:-1] + one_side, dtype=np.int64)


@cache
def bit_costs(number: int) -> NDArray[np.float64]:
    """Bits that table `number` spends on a symbol of magnitude 0..reach, its sign included."""
    table = counts(number)
    return np.asarray(np.log2(table.sum() / table[reach(number) :]))


def symbol_bits(tables: Int64, top: int) -> NDArray[np.float64]:
    """Bits of magnitudes 0..top under each of `tables`, (tables, top + 1); nothing under the zero table."""
    distinct, inverse = np.unique(tables, return_inverse=True)
    matrix = np.full((len(distinct), top + 1), UNCODABLE_BITS)
    for row, number in enumerate(distinct):
        costs = np.zeros(1) if number == ZERO_TABLE else bit_costs(int(number))[: top + 1]
        matrix[row, : len(costs)] = costs
    return np.asarray(matrix[inverse])


def cheapest_table(symbols: Int64) -> tuple[int, float]:
    """The table that codes `symbols` shortest, and how many bits it takes.

    Raises:
        OverflowError: a symbol is beyond the widest table (the step is far too fine).
    """
    tables, bits = cheapest_tables(np.abs(symbols).reshape(1, -1))
    return int(tables[0]), float(bits[0])


def cheapest_tables(magnitudes: Int64) -> tuple[Int64, NDArray[np.float64]]:
    """For each row of magnitudes (rows, width), the table that codes it shortest, and its bits.

    Raises:
        OverflowError: a symbol is beyond the widest table.
    """
    rows = len(magnitudes)
    top = int(magnitudes.max(initial=0))
    if top > reach(SCALE_COUNT - 1):
        raise OverflowError(f"symbol {top} is beyond the widest table")
    tables, bits = np.full(rows, ZERO_TABLE), np.zeros(rows)
    if top == 0:
        return tables, bits
    flat = magnitudes + np.arange(rows)[:, None] * (top + 1)
    histograms = np.bincount(flat.ravel(), minlength=rows * (top + 1)).reshape(rows, top + 1)
    present = histograms[:, 0] < magnitudes.shape[1]
    means = magnitudes[present].mean(axis=1)
    first, last = _candidates(float(means.min()))[0], _candidates(float(means.max()))[-1]
    costs = histograms[present] @ _cost_matrix(first, last, top).T  # (rows, tables)
    best = costs.argmin(axis=1)
    tables[present], bits[present] = first + best, costs[np.arange(len(best)), best]
    return tables, bits


def _candidates(mean_magnitude: float) -> range:
    """The tables worth trying: around and above the scale whose mean magnitude (1.386 s) this is."""
    centre = round(3 * float(np.log2(mean_magnitude / 1.386 / 0.1)))
    return range(min(max(centre - 6, 1), SCALE_COUNT - 9), min(max(centre, 1) + 12, SCALE_COUNT))


def _cost_matrix(first: int, last: int, top: int) -> NDArray[np.float64]:
    """Bits of magnitudes 0..top under tables first..the widest needed; what a table cannot code is dear."""
    while reach(last) < top:
        last += 1
    matrix = np.full((last + 1 - first, top + 1), UNCODABLE_BITS)
    for row, number in enumerate(range(first, last + 1)):
        costs = bit_costs(number)[: top + 1]
        matrix[row, : len(costs)] = costs
    return matrix


@cache
def _model(number: int) -> constriction.stream.model.Categorical:
    table = counts(number)
    return constriction.stream.model.Categorical(table / float(1 << 20), perfect=False)


class SymbolEncoder:
    """Collects vectors of symbols; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: Int64, table: int) -> None:
        if table == ZERO_TABLE:
            return
        self._coder.encode((symbols + reach(table)).astype(np.int32).ravel(), _model(table))

    def put_uniform(self, values: Sequence[int], size: int) -> None:
        """Values in 0..size-1, each as likely as another."""
        self._coder.encode(np.asarray(values, dtype=np.int32), constriction.stream.model.Uniform(size))

    def finish(self) -> bytes:
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class SymbolDecoder:
    """Gives back what a `SymbolEncoder` took, in the same order, with the same tables.

    Raises:
        InvalidContainerError: the bytes are not such a stream.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._what = what
        if len(data) % 4:
            raise InvalidContainerError(what=what, reason=f"its symbol stream has {len(data)} bytes, not whole words")
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def get(self, count: int, table: int) -> Int64:
        if table == ZERO_TABLE:
            return np.zeros(count, dtype=np.int64)
        return self._decode(_model(table), count) - reach(table)

    def get_uniform(self, count: int, size: int) -> Int64:
        return self._decode(constriction.stream.model.Uniform(size), count)

    def _decode(self, model: object, count: int) -> Int64:
        try:
            return np.asarray(self._coder.decode(model, count)).astype(np.int64)
        except (AssertionError, ValueError, OverflowError) as error:
            raise InvalidContainerError(what=self._what, reason=f"its symbol stream is not valid ({error})") from error

    def finish(self) -> None:
        """Raises InvalidContainerError when symbols are left over."""
        if not self._coder.maybe_exhausted():
            raise InvalidContainerError(what=self._what, reason="its symbol stream has more symbols than its layout")
