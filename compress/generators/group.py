"""What a generator is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorareg.compress.factors.canonical import Coordinates
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import Int8
from lorareg.compress.integers.tensors import IntTensor
from lorareg.registry.types import Layout


class Adapters(Protocol):
    """Some adapters, which may be read anew whenever they are gone through."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[Factors]]: ...

    def __getitem__(self, part: slice, /) -> Adapters: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters of one layout in the same coordinates, and the tables they are measured from."""

    layout: Layout
    coordinates: Coordinates
    encoder: str  # that made the conditions
    adapters: Adapters
    conditions: Sequence[Int8]  # (c,) each
    means: tuple[IntTensor, ...]  # one a slot, (r, width) or (1, 1)
    slot_exponents: tuple[int, ...]
    tolerance: float  # the relative error that codes will be held to
    scratch: Path | None = None  # the folder for files that last as long as a run; see `scratch`
