"""What a generator is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorareg.compress.canonical import Coordinates
from lorareg.compress.generator import Int8
from lorareg.compress.tensors import IntTensor
from lorareg.compress.weights import Factors
from lorareg.registry.types import Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters of one layout in the same coordinates, and the tables they are measured from."""

    layout: Layout
    coordinates: Coordinates
    encoder: str  # that made the conditions
    adapters: Sequence[Sequence[Factors]]
    conditions: Sequence[Int8]  # (c,) each
    means: tuple[IntTensor, ...]  # one a slot, (r, width) or (1, 1)
    slot_exponents: tuple[int, ...]
    tolerance: float  # the relative error that codes will be held to
