"""What `compress` is asked for, and what adapters are held to.

Either bytes for all of them together (`budget`), or closeness of each at any of three levels, from
cheap to dear to measure: the relative error of ΔW (`tolerance`), the divergence of what the model
says (`kl`), and what is left of what the adapter learned (`gain`). The last two need the base model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from lorareg.compress.contracts.forecast import first_error
from lorareg.compress.contracts.rate import USUAL_TOLERANCE
from lorareg.compress.generators import slots_decoder
from lorareg.compress.generators.generator import DECODERS
from lorareg.registry.errors import ContractError, InvalidNameError

ARCHITECTURES = ("auto", *DECODERS, "none")
DEFAULT_TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class Contract:
    """Without any of them, adapters keep the contract they have and new ones get the default tolerance."""

    tolerance: float | None = None  # relative error of ΔW, 0 for lossless
    budget: float | None = None  # bytes of codes and generator, as a share of the original files'
    gain: float | None = None  # gain retained, 1 for all of it
    kl: float | None = None  # mean KL divergence from the original's predictions, nats a token
    distill: bool = False

    def __post_init__(self) -> None:
        """Raises ContractError where a value is out of range or two do not go together."""
        for name, (low, high, reason) in _RANGES.items():
            value = getattr(self, name)
            lossless = name == "tolerance" and value == 0
            if value is not None and not (low < value < high or lossless):
                raise ContractError(option=f"{_OPTIONS[name]}{value:g}", reason=reason)
        given = [_OPTIONS[name].rstrip(" =") for name in _RANGES if getattr(self, name) is not None]
        if self.budget is not None and len(given) > 1:
            raise ContractError(option=" with ".join(given), reason="bytes and closeness cannot both be fixed")
        if self.distill and (self.tolerance is not None or not given):
            raise ContractError(
                option="--distill",
                reason="it trades weight error for the model's behaviour; give --budget, --gain or --tolerance kl=",
            )

    @property
    def behaves(self) -> bool:
        """Whether it is about what the model does, which takes a search of its own for each adapter."""
        return self.tolerance != 0 and (self.gain is not None or self.kl is not None)

    @property
    def planned_error(self) -> float:
        """The relative error at which a generator is planned, and the search for a contract begins."""
        if self.tolerance == 0:
            return 0.0
        first = first_error(self.kl, self.gain)
        errors = [error for error in (self.tolerance, first) if error is not None]
        return min(errors, default=USUAL_TOLERANCE if self.asked else DEFAULT_TOLERANCE)

    @property
    def asked(self) -> dict[str, float]:
        """What was asked for, as it is recorded with an encoding."""
        distilled = 1.0 if self.distill else None
        named = {
            "relative_error": self.tolerance,
            "budget": self.budget,
            "gain": self.gain,
            "kl": self.kl,
            "distilled": distilled,
        }
        return {name: value for name, value in named.items() if value is not None}


_OPTIONS = {"tolerance": "--tolerance ", "budget": "--budget ", "gain": "--gain ", "kl": "--tolerance kl="}

_RANGES = {
    "tolerance": (0, 1, "a relative error is at least 0 (lossless) and below 1"),
    "budget": (0, 1, "a budget is a share of the original bytes, such as 1% or 0.01"),
    "gain": (0, 1, "gain retained lies between 0 and 1, such as 0.99"),
    "kl": (0, math.inf, "a divergence is above 0 nats a token, such as 0.01"),
}


@dataclass(frozen=True, slots=True)
class CompressOptions:
    """What `compress` was asked for.

    A contract about behaviour, and distilling, need `base_model`, or one that was given before.
    """

    contract: Contract = field(default_factory=Contract)
    arch: str = "auto"
    base_model: Path | None = None
    seed: int = 0
    steps: int | None = None
    retrain: bool = False
    mask_latents: float = 0.0  # share of adapters that training draws from their condition alone
    generator_budget: int | None = None  # bytes that the file of each generator may have

    def __post_init__(self) -> None:
        """Raises ContractError (steps or bytes below 1, masked latents), or InvalidNameError (architecture)."""
        if self.steps is not None and self.steps < 1:
            raise ContractError(option=f"--steps {self.steps}", reason="training takes at least one step")
        if self.generator_budget is not None and self.generator_budget < 1:
            option = f"--generator-budget {self.generator_budget}"
            raise ContractError(option=option, reason="a generator takes at least one byte; --arch none does without")
        if self.arch not in ARCHITECTURES:
            expected = "one of " + ", ".join(ARCHITECTURES)
            raise InvalidNameError(kind="Architecture", value=self.arch, reason="there is none", expected=expected)
        if not 0 <= self.mask_latents < 1:
            reason = "it is a share of the adapters in training, at least 0 and below 1, such as 30% or 0.3"
            raise ContractError(option=f"--mask-latents {self.mask_latents:g}", reason=reason)
        if self.mask_latents and self.arch != slots_decoder.NAME:
            option = f"--mask-latents {self.mask_latents:g} with --arch {self.arch}"
            raise ContractError(option=option, reason="only slots learns to; give --arch slots")

    @property
    def needs_model(self) -> bool:
        """Whether the contract is about what the base model does."""
        return self.contract.behaves or self.contract.distill

    @property
    def model_option(self) -> str:
        """The option that makes it need one."""
        behaviour = "--gain" if self.contract.gain is not None else "--tolerance kl"
        return behaviour if self.contract.behaves else "--distill"
