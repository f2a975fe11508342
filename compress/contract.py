"""What `compress` is asked for, and what adapters are held to.

One of three: a relative error of ΔW for each adapter (`tolerance`), bytes for all of them together
(`budget`), or gain retained by each (`gain`). Only the first needs no model to check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lorareg.compress.generator import DECODERS
from lorareg.compress.rate import USUAL_TOLERANCE
from lorareg.registry.errors import ContractError, InvalidNameError

ARCHITECTURES = ("auto", *DECODERS, "none")
DEFAULT_TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class Contract:
    """At most one of the three is given; without any, adapters keep what they have and new ones get the default."""

    tolerance: float | None = None  # relative error of ΔW, 0 for lossless
    budget: float | None = None  # bytes of codes and generator, as a share of the original files'
    gain: float | None = None  # gain retained, 1 for all of it
    distill: bool = False

    def __post_init__(self) -> None:
        """Raises ContractError where a value is out of range or two are given."""
        if sum(value is not None for value in (self.tolerance, self.budget, self.gain)) > 1:
            given = " and ".join(
                f"--{name}" for name in ("tolerance", "budget", "gain") if getattr(self, name) is not None
            )
            raise ContractError(option=given, reason="an adapter is held to one of them; give one")
        ranges = {
            "tolerance": "a relative error is at least 0 (lossless) and below 1",
            "budget": "a budget is a share of the original bytes, such as 1% or 0.01",
            "gain": "gain retained lies between 0 and 1, such as 0.99",
        }
        for name, reason in ranges.items():
            value = getattr(self, name)
            lossless = name == "tolerance" and value == 0
            if value is not None and not (0 < value < 1 or lossless):
                raise ContractError(option=f"--{name} {value:g}", reason=reason)
        if self.distill and self.budget is None and self.gain is None:
            raise ContractError(
                option="--distill", reason="it trades weight error for the model's behaviour; give --budget or --gain"
            )

    @property
    def planned_error(self) -> float:
        """The relative error at which a generator is planned."""
        if self.budget is not None or self.gain is not None:
            return USUAL_TOLERANCE
        return DEFAULT_TOLERANCE if self.tolerance is None else self.tolerance

    @property
    def asked(self) -> dict[str, float]:
        """What was asked for, as it is recorded with an encoding."""
        distilled = 1.0 if self.distill else None
        named = {
            "relative_error": self.tolerance,
            "budget": self.budget,
            "gain": self.gain,
            "distilled": distilled,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class CompressOptions:
    """What `compress` was asked for. `base_model` is needed for a contract about gain, and for distilling."""

    contract: Contract = field(default_factory=Contract)
    arch: str = "auto"
    base_model: Path | None = None
    seed: int = 0
    steps: int | None = None
    retrain: bool = False

    def __post_init__(self) -> None:
        """Raises ContractError (steps below 1, no base model), or InvalidNameError (architecture)."""
        if self.steps is not None and self.steps < 1:
            raise ContractError(option=f"--steps {self.steps}", reason="training takes at least one step")
        if self.arch not in ARCHITECTURES:
            expected = "one of " + ", ".join(ARCHITECTURES)
            raise InvalidNameError(kind="Architecture", value=self.arch, reason="there is none", expected=expected)
        if self.needs_model and self.base_model is None:
            option = "--gain" if self.contract.gain is not None else "--distill"
            raise ContractError(option=option, reason="what a model does is measured on it; give --base-model too")

    @property
    def needs_model(self) -> bool:
        """Whether the contract is about what the base model does."""
        return self.contract.gain is not None or self.contract.distill
