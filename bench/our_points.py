"""lorareg's own ways to store an adapter, as methods beside the others: `our_points` lists them.

What is shared is planned on the training adapters; an adapter that was not among them is encoded
against that as it is, the way `lorareg compress` adds to a cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cohort import BenchCohort
from curves import OURS
from methods import Lossless, Method
from ours import CONV1D, Workshop, drawn_code

from lorareg.compress.base_model import BaseModel
from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.codec.encode import Draft, Original, encode
from lorareg.compress.contracts.judge import Judge
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.planning.coordinates import EMPTY, draft_of, latent_of
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout, sha256_hex

TOLERANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.65)
DISTILLED_TOLERANCES = (0.36,)
"""Of the residual before its cores are tuned; a minute an adapter each."""
TRAIN_TOLERANCE = 0.2
"""For the mean table that a plan with a network begins with; the latent alone does not depend on it."""

NAMES = {"none": "without generator", "mean": "with the mean table", "linear": "with a linear generator"}


def our_points(workbench: Workbench) -> list[Method]:
    """Every way of ours, at each of its operating points. Their names begin with OURS."""
    plain = [AtTolerance(workbench, arch, tolerance) for arch in NAMES for tolerance in TOLERANCES]
    tuned: list[Method] = []
    if workbench.base_model is not None:
        tuned = [Distilled(workbench, arch, t) for arch in NAMES for t in DISTILLED_TOLERANCES]
    return [*plain, *tuned, OurLossless()]


@dataclass(frozen=True)
class Workbench:
    """What it takes to plan generators, and to tune codes."""

    folder: Path  # where training keeps checkpoints
    seed: int
    reporter: Reporter
    base_model: Path | None = None  # what codes are tuned on
    folders: Mapping[str, Path] = field(default_factory=dict)  # of the adapters, by name

    def workshop(self, cohort: BenchCohort) -> Workshop:
        return Workshop(cohort, self.folder, self.seed, self.reporter)

    @cached_property
    def judge(self) -> Judge:
        """What tunes codes; loads the base model."""
        assert self.base_model is not None
        return Judge(BaseModel(self.base_model), _Folders(self.folders), self.seed)


class _Folders:
    """The files of adapters that lie in folders, as `Judge` asks a registry for them; a name stands for an adapter."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders

    def read_file(self, adapter: Any, path: str) -> bytes:
        return (self.folders[adapter] / path).read_bytes()

    def files(self, adapter: Any) -> list[_File]:
        return [_File(path.name) for path in self.folders[adapter].iterdir()]


@dataclass(frozen=True, slots=True)
class _File:
    path: str


@dataclass(frozen=True, slots=True)
class AtTolerance:
    """`encode` at one tolerance for the relative error of ΔW, with or without a mean table."""

    workbench: Workbench
    arch: str
    tolerance: float

    @property
    def name(self) -> str:
        return f"{OURS} {NAMES[self.arch]}, error {self.tolerance:g}"

    def share(self, cohort: BenchCohort) -> bytes:
        return b"" if self.arch == "none" else self.workbench.workshop(cohort).plan(self.arch, self.tolerance).file

    def encode(self, original: Original, shared: bytes) -> bytes:
        return encode(original, self._draft(original, shared), self.tolerance).code

    def _draft(self, original: Original, shared: bytes) -> Draft | None:
        loaded = _load(shared, original.layout)
        if loaded is None:
            return None
        return draft_of(loaded, original, latent_of(loaded.generator, original.factors), EMPTY)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        return read_weights(decode(data, layout, _load(shared, layout), self.name), layout)


@dataclass(frozen=True, slots=True)
class Distilled(AtTolerance):
    """The same with its cores tuned on the adapter's samples, which are no part of the tokens it is judged on."""

    @property
    def name(self) -> str:
        return f"{OURS} distilled {NAMES[self.arch]}, error {self.tolerance:g}"

    def encode(self, original: Original, shared: bytes) -> bytes:
        tuner = self.workbench.judge.distiller(original.what, original)
        return encode(original, self._draft(original, shared), self.tolerance, tuner=tuner).code


@dataclass(frozen=True, slots=True)
class OurLossless(Lossless):
    """The codec that gives the file back."""

    name: str = f"{OURS} lossless"


class Conv1dLatent:
    """ICM-LoRA's convolutional CVAE, an adapter being its latent and no more.

    It is trained on the very adapters that it then stores, which favours it: its latents are learned.
    """

    def __init__(self, workbench: Workbench, cohort: BenchCohort, steps: int) -> None:
        """`cohort` holds every adapter that may be stored."""
        self.workbench, self.cohort, self.steps = workbench, cohort, steps
        self.name = f"ICM-LoRA conv1d latent, {steps} steps"
        self._latents: dict[str, Int8] = {}

    def share(self, cohort: BenchCohort) -> bytes:
        plan = self.workbench.workshop(self.cohort).plan(CONV1D, TRAIN_TOLERANCE, self.steps)
        self._latents = dict(zip(self.cohort.names, plan.latents, strict=True))
        return plan.file

    def encode(self, original: Original, shared: bytes) -> bytes:
        loaded = _load(shared, original.layout)
        assert loaded is not None
        condition = dict(zip(self.cohort.names, self.cohort.conditions, strict=True))[original.what]
        return drawn_code(loaded, self._latents[original.what], condition, original.layout)

    def decode(self, data: bytes, shared: bytes, layout: Layout) -> Sequence[Factors]:
        return read_weights(decode(data, layout, _load(shared, layout), self.name), layout)


@lru_cache(maxsize=1)
def _load(shared: bytes, layout: Layout) -> LoadedGenerator | None:
    return LoadedGenerator.from_bytes(shared, sha256_hex(shared), layout) if shared else None
