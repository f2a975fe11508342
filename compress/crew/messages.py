"""What orders say: the setting that jobs are done in, as JSON values, and their inputs, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.gate import Ask
from lorareg.compress.crew.jobs import Job
from lorareg.compress.generators import mean_decoder
from lorareg.compress.generators.generator import Generator, pack_generator
from lorareg.compress.generators.group import Group
from lorareg.compress.planning.team import Trial
from lorareg.registry import errors
from lorareg.registry.errors import LoraregError

if TYPE_CHECKING:
    from lorareg.compress.crew.ranks import Arrays
    from lorareg.compress.crew.solo import SoloTeam

SIZES, CODES, TRAIN = "sizes", "codes", "train"


@dataclass(frozen=True, slots=True)
class Setting:
    """Which adapters an order is about, and what they are held to."""

    cohort_id: int
    refs: list[str]  # of the adapters, one a job; of the whole group where it is trained on
    contract: Contract
    base_model: Path | None  # that judges
    seed: int

    @classmethod
    def of(cls, team: SoloTeam, indices: Iterable[int]) -> Self:
        """The setting of a team's work on some of its members."""
        adapters, judge = [team.sources[index].adapter for index in indices], team.workplace.judge
        path, seed = (None, 0) if judge is None else (judge.model.path.absolute(), judge.seed)
        return cls(adapters[0].cohort_id, [a.ref for a in adapters], team.workplace.contract, path, seed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "base_model": None if self.base_model is None else str(self.base_model)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, other settings of the order aside."""
        path = values["base_model"]
        contract = Contract(**values["contract"])
        return cls(values["cohort_id"], values["refs"], contract, path and Path(path), values["seed"])


def trial_arrays(trials: Sequence[Trial]) -> Arrays:
    """Trials as arrays, one row a trial; no step is not a number."""
    return {
        "index": np.array([trial.index for trial in trials], np.int64),
        "tolerance": np.array([trial.tolerance for trial in trials]),
        "step": np.array([np.nan if trial.step is None else trial.step for trial in trials]),
        "latent": np.stack([trial.latent for trial in trials]),
        "condition": np.stack([trial.condition for trial in trials]),
    }


def trials_of(arrays: Arrays) -> list[Trial]:
    """What `trial_arrays` gave."""
    rows = zip(*(arrays[name] for name in ("index", "tolerance", "step", "latent", "condition")), strict=True)
    return [Trial(int(i), float(t), None if np.isnan(s) else float(s), z, c) for i, t, s, z, c in rows]


def job_arrays(jobs: Sequence[Job]) -> Arrays:
    """Jobs as arrays, like trials."""
    return trial_arrays([Trial(j.index, j.ask.relative_error, j.ask.step, j.latent, j.condition) for j in jobs])


def jobs_of(arrays: Arrays) -> list[Job]:
    """What `job_arrays` gave."""
    return [Job(t.index, Ask(t.tolerance, t.step), t.latent, t.condition) for t in trials_of(arrays)]


def pack_table(group: Group) -> bytes:
    """The tables that a group is measured from, as the file of a generator that has nothing else."""
    table = Generator(
        arch=mean_decoder.NAME,
        coordinates=group.coordinates,
        encoder="",
        latent_size=0,
        condition_size=0,
        config={},
        slot_exponents=group.slot_exponents,
        tensors={},
        means=group.means,
    )
    return pack_generator(table, group.layout)


def error_to(error: LoraregError) -> dict[str, Any]:
    """An error as JSON values."""
    return {"kind": type(error).__name__, "fields": {name: str(value) for name, value in error.fields.items()}}


def error_from(values: Mapping[str, Any]) -> LoraregError:
    """The error that another process met."""
    kind: Callable[..., LoraregError] = getattr(errors, values["kind"], LoraregError)
    return kind(**values["fields"])
