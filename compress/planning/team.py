"""Who does the work of a group: this process alone, or several that share it (see `compress.crew`).

What is asked of a team depends on the adapters named in it alone, so that whoever does it gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.generators.generator import Generator, Int8
from lorareg.compress.generators.group import Group
from lorareg.compress.planning.coordinates import EMPTY, draft_of
from lorareg.compress.progress import Reporter
from lorareg.registry.errors import MissingExtraError
from lorareg.registry.types import Layout, sha256_hex


@dataclass(frozen=True, slots=True)
class Trial:
    """An adapter to be encoded for its size alone."""

    index: int  # among the members of the group
    tolerance: float
    step: float | None = None  # where the search begins
    latent: Int8 = field(default_factory=lambda: EMPTY)
    condition: Int8 = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Size:
    """What a trial came to."""

    code_bytes: int
    step: float | None  # None where it is no residual


class Trained(Protocol):
    """What training gives (see `train.Trained`)."""

    @property
    def generator(self) -> Generator: ...

    @property
    def latents(self) -> list[Int8]: ...

    @property
    def metrics(self) -> dict[str, float]: ...


class Team(Protocol):
    """Encodes and trains for one group."""

    def sizes(self, file: bytes, trials: Sequence[Trial], drawn: Layout | None = None) -> list[Size]:
        """What the codes of some members would take, against a generator file or, where it is empty, none.

        `drawn` is the layout that the generator was made for, where that is not the members' own.
        """

    def train(self, group: Group, config: Any, checkpoint: Path) -> Trained:
        """A network trained on all members; `config` is a `train.TrainConfig`."""


@dataclass(frozen=True, slots=True)
class Alone:
    """This process by itself."""

    layout: Layout
    originals: Sequence[Original]
    reporter: Reporter

    def sizes(self, file: bytes, trials: Sequence[Trial], drawn: Layout | None = None) -> list[Size]:
        loaded = load_file(file, drawn or self.layout)
        return [size_of(self.originals[trial.index], loaded, trial) for trial in trials]

    def train(self, group: Group, config: Any, checkpoint: Path) -> Trained:
        train = train_module()
        trained: Trained = train.train_generator(group, config, train.Checkpoint(checkpoint), self.reporter)
        return trained


def load_file(file: bytes, layout: Layout) -> LoadedGenerator | None:
    """The generator in a file; None where it is empty."""
    return LoadedGenerator.from_bytes(file, sha256_hex(file), layout) if file else None


def size_of(original: Original, loaded: LoadedGenerator | None, trial: Trial) -> Size:
    """Encode an adapter for a trial."""
    draft = draft_of(loaded, original, trial.latent, trial.condition) if loaded is not None else None
    encoded = encode(original, draft, trial.tolerance, trial.step)
    return Size(len(encoded.code), encoded.step)


def train_module() -> Any:
    """The training room, which needs torch.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        from lorareg.compress.generators import train
    except ImportError as error:
        raise MissingExtraError(feature="Training a generator", package=error.name or "torch", extra="train") from error
    return train
