"""The gate: encoding adapters one after another so that each holds the contract.

A budget and a gain only choose the relative error that an adapter is then encoded and recorded with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorareg.compress.contract import Contract
from lorareg.compress.encode import Draft, Encoded, Original, Tuner, encode
from lorareg.compress.rate import encode_to_gain, plan_budget
from lorareg.compress.weights import read_weights
from lorareg.registry.types import Adapter

if TYPE_CHECKING:
    from lorareg.compress.judge import Judge


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter to encode, and what a generator contributes to it."""

    adapter: Adapter
    original: Original
    draft: Draft | None


@dataclass(frozen=True, slots=True)
class Kept:
    """An encoding that holds the contract, the tolerance to record, and what was measured besides."""

    encoded: Encoded
    tolerance: dict[str, float]
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Encoder:
    """Encodes adapters one after another; the step of the last is where the search for the next begins."""

    contract: Contract
    relative_error: float  # asked of each adapter, where the contract is about that
    judge: Judge | None = None  # where the contract is about gain, or distilling was asked for
    step: float | None = None

    def encode_all(self, candidates: Sequence[Candidate], budget_bytes: float | None) -> Iterator[Kept]:
        """One result a candidate, in order. `budget_bytes` is what their codes may take together."""
        if budget_bytes is not None:
            yield from self._within_budget(candidates, budget_bytes)
            return
        for candidate in candidates:
            if self.contract.gain is not None:
                yield self._with_gain(candidate, self.contract.gain)
            else:
                encoded = self._encode(candidate, self.relative_error, None)
                yield Kept(encoded, {"relative_error": self.relative_error})

    def _within_budget(self, candidates: Sequence[Candidate], budget_bytes: float) -> Iterator[Kept]:
        budget = plan_budget(
            [c.original for c in candidates],
            [c.draft for c in candidates],
            budget_bytes,
            self.relative_error,
            tuned=self.contract.distill,
        )
        for candidate in candidates:
            tolerance = budget.next_tolerance()
            encoded = self._encode(candidate, tolerance, self._tuner(candidate))
            budget.spend(len(encoded.code), tolerance)
            yield Kept(encoded, self._recorded(encoded))

    def _with_gain(self, candidate: Candidate, wanted: float) -> Kept:
        assert self.judge is not None
        judge, original = self.judge, candidate.original
        case = judge.case(candidate.adapter, original)
        if not case.loss_original < case.loss_base:
            return _lossless(
                original, wanted, f"the adapter gains nothing on its {case.text}, so no gain can be retained"
            )
        tuner, measured = self._tuner(candidate), dict[int, dict[str, Any]]()

        def measure(encoded: Encoded) -> float:
            found = measured[id(encoded)] = judge.gain(case, read_weights(encoded.output, original.layout))
            return float(found["gain_retained"])

        best = encode_to_gain(
            lambda tolerance: self._encode(candidate, tolerance, tuner), measure, wanted, self.relative_error
        )
        if best is None:
            return _lossless(original, wanted, f"no residual that was tried keeps {wanted:g} of the gain")
        encoded, self.relative_error = best
        return Kept(encoded, self._recorded(encoded), measured[id(encoded)])

    def _encode(self, candidate: Candidate, tolerance: float, tuner: Tuner | None) -> Encoded:
        original, draft = candidate.original, candidate.draft
        encoded = encode(original, draft, tolerance, self.step, tuner)
        if draft is not None and draft.loaded.generator.coordinates != "shared":
            # Only a shared initialisation makes it certain that a prediction helps.
            alone = encode(original, None, tolerance, self.step, tuner)
            encoded = min(encoded, alone, key=lambda one: len(one.code))
        self.step = encoded.step or self.step
        return encoded

    def _tuner(self, candidate: Candidate) -> Tuner | None:
        if not self.contract.distill:
            return None
        assert self.judge is not None
        return self.judge.distiller(candidate.adapter, candidate.original)

    def _recorded(self, encoded: Encoded) -> dict[str, float]:
        """The tolerance that an encoding made for a budget or a gain is recorded with: what it came to."""
        return {**self.contract.asked, "relative_error": encoded.fidelity.relative_error}


def _lossless(original: Original, wanted: float, reason: str) -> Kept:
    """An adapter whose gain nothing but its own bytes keeps."""
    return Kept(replace(encode(original, None, 0.0), reason=reason), {"relative_error": 0.0, "gain": wanted})
