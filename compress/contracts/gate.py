"""The gate: encoding an adapter so that it holds the contract.

Whatever the contract is about, it only chooses the relative error that an adapter is encoded at: the
coarsest at which the decoded code passes every level that was asked for. What none passes stays lossless.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorareg.compress.codec.encode import Draft, Encoded, Original, Tuner, encode
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.forecast import HOPELESS, strain_at_a_glance
from lorareg.compress.contracts.rate import TOLERANCES, encode_to_hold
from lorareg.compress.contracts.source import room
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.registry.types import Adapter

if TYPE_CHECKING:
    from lorareg.compress.contracts.judge import Case, Judge


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter to encode, and what a generator contributes to it."""

    adapter: Adapter
    original: Original
    draft: Draft | None
    carried: float = 0.0  # relative error that the original given here has already; see `source`


@dataclass(frozen=True, slots=True)
class Ask:
    """What one adapter is encoded for, and where the searches begin."""

    relative_error: float  # asked of it; where the contract is about behaviour, the first to try
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """An encoding that holds the contract, the tolerance to record, and what was measured besides."""

    encoded: Encoded
    tolerance: dict[str, float]
    found: float | None  # the error that was asked of it at last; None where it stayed lossless for want of one
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gate:
    """Encodes adapters under one contract. What it gives depends on the adapter and the ask alone."""

    contract: Contract
    judge: Judge | None = None  # where the contract is about behaviour, or distilling was asked for

    def encode(self, candidate: Candidate, ask: Ask) -> Kept:
        """The cheapest code found that holds the contract."""
        if self.contract.budget is not None:
            encoded = self._encode(candidate, ask.relative_error, ask.step, self._tuner(candidate))
            return Kept(encoded, self._recorded(encoded), ask.relative_error)
        return self._behaving(candidate, ask) if self.contract.behaves else self._close(candidate, ask)

    def _close(self, candidate: Candidate, ask: Ask) -> Kept:
        """The cheapest code within the tolerance, what is carried already included."""
        carried, tolerance = candidate.carried, {**self.contract.asked, "relative_error": ask.relative_error}
        encoded = self._encode(candidate, room(ask.relative_error, carried), ask.step, None)
        if not carried:
            return Kept(encoded, tolerance, ask.relative_error)
        bound = carried + encoded.fidelity.relative_error * (1 + carried)
        measured = {"relative_error": bound, "carried_error": carried, "exact": False}
        return Kept(encoded, tolerance, ask.relative_error, measured)

    def _behaving(self, candidate: Candidate, ask: Ask) -> Kept:
        """The coarsest code found that holds every level of the contract, or the file itself."""
        assert self.judge is not None
        contract, original = self.contract, candidate.original
        levels = [_glance_level(self.judge, candidate, contract)]
        if contract.kl is not None:
            levels.append(_divergence_level(self.judge, candidate, contract.kl))
        if contract.gain is not None:
            case = self.judge.case(candidate.adapter, original)
            if not case.loss_original < case.loss_base:
                return self._lossless(
                    original, f"the adapter gains nothing on its {case.text}, so no gain can be retained"
                )
            levels.append(_gain_level(self.judge, case, contract.gain))
        tuner, measured = self._tuner(candidate), dict[int, dict[str, Any]]()

        def strain(encoded: Encoded) -> float:
            restored = read_weights(encoded.output, original.layout)
            found = measured[id(encoded)] = {}
            used = 0.0
            for level in levels:
                if used <= 1:  # what fails one level need not be measured at a dearer one
                    one, figures = level(restored)
                    used = one if math.isnan(one) else max(used, one)
                    found.update(figures)
            return used

        coarsest = TOLERANCES[1] if contract.tolerance is None else contract.tolerance
        step = ask.step

        def attempt(tolerance: float) -> Encoded:
            nonlocal step
            encoded = self._encode(candidate, tolerance, step, tuner)
            step = encoded.step or step
            return encoded

        best = encode_to_hold(attempt, strain, ask.relative_error, coarsest)
        if best is None:
            return self._lossless(original, "no residual that was tried holds the contract")
        encoded, found = best
        return Kept(encoded, self._recorded(encoded), found, measured[id(encoded)])

    def _encode(self, candidate: Candidate, tolerance: float, step: float | None, tuner: Tuner | None) -> Encoded:
        original, draft = candidate.original, candidate.draft
        encoded = encode(original, draft, tolerance, step, tuner)
        if draft is not None and draft.loaded.generator.coordinates != "shared":
            # Only a shared initialisation makes it certain that a prediction helps.
            alone = encode(original, None, tolerance, step, tuner)
            encoded = min(encoded, alone, key=lambda one: len(one.code))
        return encoded

    def _tuner(self, candidate: Candidate) -> Tuner | None:
        if not self.contract.distill:
            return None
        assert self.judge is not None
        return self.judge.distiller(candidate.adapter, candidate.original)

    def _recorded(self, encoded: Encoded) -> dict[str, float]:
        """The tolerance to record: where no error was asked for, what it came to."""
        return {"relative_error": encoded.fidelity.relative_error, **self.contract.asked}

    def _lossless(self, original: Original, reason: str) -> Kept:
        """An adapter whose behaviour nothing but its own bytes keeps."""
        encoded = replace(encode(original, None, 0.0), reason=reason)
        return Kept(encoded, self._recorded(encoded), None)


Level = Callable[[Sequence[Factors]], tuple[float, dict[str, Any]]]
"""Of restored factors: what they lose of what they may lose (up to 1 holds), and the figures to record."""


def _glance_level(judge: Judge, candidate: Candidate, contract: Contract) -> Level:
    """What leaves out the candidates that are hopeless at a glance. It lets all others pass, whatever it forecasts."""
    glance = judge.glance(candidate.adapter, candidate.original)

    def measure(restored: Sequence[Factors]) -> tuple[float, dict[str, Any]]:
        forecast = strain_at_a_glance(glance.divergence(restored), glance.base_kl, contract.kl, contract.gain)
        return (forecast if forecast > HOPELESS else 0.0), {}

    return measure


def _divergence_level(judge: Judge, candidate: Candidate, allowed: float) -> Level:
    def measure(restored: Sequence[Factors]) -> tuple[float, dict[str, Any]]:
        found = judge.divergence(candidate.adapter, candidate.original, restored)
        return float(found["kl_divergence"]) / allowed, dict(found)

    return measure


def _gain_level(judge: Judge, case: Case, wanted: float) -> Level:
    def measure(restored: Sequence[Factors]) -> tuple[float, dict[str, Any]]:
        found = judge.gain(case, restored)
        return (1 - float(found["gain_retained"])) / (1 - wanted), dict(found)

    return measure
