"""Where each row of each factor sits: the tokens of the slots architecture.

A slot holds one factor of one module; each of its r rows (a column of b counts as a row) is one
token. Tokens whose rows have the same length and the same place in a layer (the same kind) share
an output head; a token is told apart by its layer, and by its row within its kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.weights import Factors, Float64
from lorareg.registry.types import Layout


@dataclass(frozen=True, slots=True)
class Kind:
    """All tokens of one kind, in layout order."""

    name: str
    width: int  # length of a row
    slots: tuple[int, ...]  # indices into the layout
    layers: NDArray[np.int64]  # (tokens,)
    rows: NDArray[np.int64]  # (tokens,), numbered over all kinds


@dataclass(frozen=True, slots=True)
class Grid:
    """The tokens of a layout. `layer_count` and `row_count` size the embeddings."""

    kinds: tuple[Kind, ...]
    layer_count: int
    row_count: int


def factor_rows(modules: Sequence[Factors]) -> list[Float64]:
    """Every slot's matrix as rows (r, width), in layout order: a as it is, b transposed."""
    return [rows for factors in modules for rows in (factors.a, factors.b.T)]


@cache
def grid_of(layout: Layout) -> Grid:
    """The token grid of a layout."""
    places: dict[tuple[str, int], list[int]] = {}
    layer_names: dict[str, int] = {}
    slot_layers = []
    for index, slot in enumerate(layout.slots):
        width = slot.shape[1] if slot.factor == "A" else slot.shape[0]
        kind = re.sub(r"\d+", "#", slot.module) + ":" + slot.factor
        places.setdefault((kind, width), []).append(index)
        numbers = ".".join(re.findall(r"\d+", slot.module))
        slot_layers.append(layer_names.setdefault(numbers, len(layer_names)))
    kinds, row_count = [], 0
    for (name, width), slots in places.items():
        ranks = [rank_of(layout, index) for index in slots]
        layers = np.concatenate([np.full(rank, slot_layers[index]) for rank, index in zip(ranks, slots, strict=True)])
        rows = np.concatenate([np.arange(rank) for rank in ranks]) + row_count
        row_count += max(ranks)
        kinds.append(Kind(name, width, tuple(slots), layers, rows))
    return Grid(tuple(kinds), len(layer_names), row_count)


def rank_of(layout: Layout, slot_index: int) -> int:
    """The rank of the module that a slot belongs to."""
    slot = layout.slots[slot_index]
    return slot.shape[0] if slot.factor == "A" else slot.shape[1]


def width_of(layout: Layout, slot_index: int) -> int:
    """The length of a slot's rows."""
    slot = layout.slots[slot_index]
    return slot.shape[1] if slot.factor == "A" else slot.shape[0]
