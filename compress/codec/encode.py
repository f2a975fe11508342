"""Encoding one adapter: the cheapest code whose decoded bytes hold the tolerance.

Tiers are tried from cheapest to dearest: what the generator draws alone, a residual (against the
prediction, or without one), the file itself. For a residual the one free number is the global
step; the error grows with it, so a search finds the coarsest step that still passes. Every
candidate is judged by `codecs.decode` on its finished bytes, never by what the encoder believes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lorareg.compress.codec.codecs import (
    CODECS,
    GENERATED,
    LOSSLESS,
    PREDICTED,
    RESIDUAL,
    Codec,
    LoadedGenerator,
    decode,
    join_inputs,
)
from lorareg.compress.codec.container import NO_GENERATOR, Code, pack_code
from lorareg.compress.codec.extras import Extras, read_extras
from lorareg.compress.codec.lossless import encode_lossless
from lorareg.compress.codec.residual import (
    STRENGTH,
    Quantised,
    Target,
    quantise_modules,
    restore_module,
    targets,
)
from lorareg.compress.codec.residual_payload import pack_residual
from lorareg.compress.factors.fidelity import Fidelity, measure
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.generators.prediction import Prediction
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

FIRST_STEP = 0.1
"""Of the root mean square of ΔW's principal entries: where the search for a step starts."""

CLOSE_ENOUGH = 0.005
"""The search ends when the error is this close below the tolerance, relative to it: 0.1% of the bytes."""

MAX_TRIES = 14
LOSSLESS_WORTH_TRYING = 0.5
"""A residual of more than this share of the file is compared with the lossless codec before it is kept."""


@dataclass(frozen=True, slots=True)
class Original:
    """An adapter to encode. It is read when it is looked at, so that a cohort takes no memory."""

    what: str  # how errors name it
    read: Callable[[], bytes]  # its weights file
    layout: Layout

    @property
    def data(self) -> bytes:
        """Its weights file."""
        return self.read()

    @property
    def factors(self) -> tuple[Factors, ...]:
        """As they are in the file."""
        return read_weights(self.read(), self.layout)

    @property
    def extras(self) -> Extras:
        """What its file holds beside factors."""
        return read_extras(self.read(), self.layout)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a generator contributes to one adapter."""

    loaded: LoadedGenerator
    latent: Int8
    condition: Int8
    turn: Callable[[], Sequence[Factors]]

    @property
    def turned(self) -> Sequence[Factors]:
        """The adapter in the generator's coordinates; like an original, read when it is looked at."""
        return self.turn()

    def prediction(self, layout: Layout) -> Prediction:
        return self.loaded.draw(layout, self.latent, self.condition)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A finished code file, and what decoding it gave."""

    codec: Codec
    code: bytes
    output: bytes
    fidelity: Fidelity
    step: float | None  # the global step of a residual
    uses_generator: bool
    reason: str = ""  # why it stayed lossless, where that was not asked for


class Tuner(Protocol):
    """Changes quantised modules without a look at the tolerance (see `distill`)."""

    def tune(
        self, modules: Sequence[Quantised], layout: Layout, prediction: Prediction | None
    ) -> Sequence[Quantised]: ...


def encode(
    original: Original,
    draft: Draft | None,
    tolerance: float,
    hint: float | None = None,
    tuner: Tuner | None = None,
) -> Encoded:
    """The cheapest code of an adapter whose relative error of ΔW is at most `tolerance`.

    Args:
        original: the adapter.
        draft: a generator's contribution, or None to do without.
        tolerance: relative Frobenius error of ΔW, 0 for lossless.
        hint: the step that served a similar adapter; saves part of the search.
        tuner: changes the residual that holds the tolerance, which it then need not hold any more.
    """
    if tuner is not None and tolerance > 0:
        tuned = _tuned(original, draft, tolerance, hint, tuner)
        if tuned is not None:
            return tuned
    if draft is not None:
        generated = _generated(original, draft)
        if generated is not None and generated.fidelity.relative_error <= tolerance:
            return generated
    residual = _residual(original, draft, tolerance, hint) if tolerance > 0 else None
    if residual is None and draft is not None and tolerance > 0:
        residual = _residual(original, None, tolerance, hint)  # an update of zero, say, is best left unpredicted
    if residual is not None and len(residual.code) <= LOSSLESS_WORTH_TRYING * len(original.data):
        return residual
    lossless = _finish(original, LOSSLESS, None, encode_lossless(original.data, original.layout), None)
    assert lossless is not None
    assert lossless.output == original.data, "the lossless codec gives the file back"
    if residual is None:
        reason = f"no residual holds a relative error of {tolerance:g}" if tolerance > 0 else ""
        return replace(lossless, reason=reason)
    if len(lossless.code) <= len(residual.code):
        return replace(lossless, reason=f"a residual that holds {tolerance:g} takes {len(residual.code)} bytes")
    return residual


def _generated(original: Original, draft: Draft) -> Encoded | None:
    return _finish(original, GENERATED, draft, join_inputs(draft.latent, draft.condition), None)


def _tuned(
    original: Original, draft: Draft | None, tolerance: float, hint: float | None, tuner: Tuner
) -> Encoded | None:
    """The coarsest residual that holds the tolerance, tuned; None when there is none."""
    search = StepSearch.of(original, draft)
    found = search.coarsest(tolerance, hint)
    if found is None:
        return None
    step, modules = found
    tuned = tuner.tune(modules, original.layout, search.prediction)
    return _finish(original, *search.payload(tuned), step)


def _residual(original: Original, draft: Draft | None, tolerance: float, hint: float | None) -> Encoded | None:
    """The coarsest residual that passes once decoded, or None when no step of the grid does."""
    search = StepSearch.of(original, draft)
    aim = tolerance
    for _ in range(3):  # narrow dtypes add rounding that the search does not see
        found = search.coarsest(aim, hint)
        if found is None:
            return None
        step, modules = found
        finished = _finish(original, *search.payload(modules), step)
        if finished is not None and finished.fidelity.relative_error <= tolerance:
            return finished
        if finished is None:
            return None
        aim *= 0.97 * tolerance / finished.fidelity.relative_error
        hint = step
    return None


@dataclass(frozen=True, slots=True)
class StepSearch:
    """One adapter in the frame it is coded in, ready to be quantised at any step."""

    layout: Layout
    targets: list[Target]
    draft: Draft | None
    prediction: Prediction | None
    total: float  # the adapter's ΔW energy
    strength: float | None = STRENGTH  # of cores; see `residual`

    @staticmethod
    def of(original: Original, draft: Draft | None) -> StepSearch:
        layout = original.layout
        prediction = draft.prediction(layout) if draft is not None else None
        framed = targets(original.factors if draft is None else draft.turned, prediction)
        total = math.fsum(_energy(t.wanted, t.wanted, s) for t, s in zip(framed, layout.scales, strict=True))
        return StepSearch(layout, framed, draft, prediction, total)

    def quantise(self, step: float) -> list[Quantised]:
        """Every module at one global step."""
        steps = [step / max(abs(scale), 1e-30) for scale in self.layout.scales]
        return quantise_modules(self.targets, steps, self.strength)

    def error(self, modules: Sequence[Quantised]) -> float:
        """Relative error of ΔW before rounding to the file's dtype."""
        lost = []
        for target, scale, quantised in zip(self.targets, self.layout.scales, modules, strict=True):
            restored = restore_module(quantised, target.predicted)
            difference = Factors(
                b=np.concatenate([target.wanted.b, -restored.b], axis=1),
                a=np.concatenate([target.wanted.a, restored.a]),
            )
            lost.append(_energy(difference, difference, scale))
        return math.sqrt(max(math.fsum(lost), 0.0) / self.total) if self.total > 0 else 0.0

    def payload(self, modules: Sequence[Quantised]) -> tuple[int, Draft | None, bytes]:
        """Codec number, draft and payload of quantised modules."""
        packed = pack_residual(modules, self.layout)
        if self.draft is None:
            return RESIDUAL, None, packed
        return PREDICTED, self.draft, join_inputs(self.draft.latent, self.draft.condition) + packed

    def coarsest(self, tolerance: float, hint: float | None) -> tuple[float, list[Quantised]] | None:
        """The largest step whose error is within the tolerance, by bracketing and then false position."""
        if self.total <= 0:
            return 1.0, self.quantise(1.0)
        low: tuple[float, float, list[Quantised]] | None = None  # passes: log step, log error, modules
        high: tuple[float, float] | None = None  # does not pass
        aim, log_step = math.log(tolerance), math.log(hint or self._first_step())
        for _ in range(MAX_TRIES):
            try:
                modules = self.quantise(math.exp(log_step))
            except OverflowError:  # finer than the entropy coder's widest table: no residual can pass
                return (math.exp(low[0]), low[2]) if low else None
            log_error = math.log(max(self.error(modules), 1e-30))
            if log_error <= aim:
                low = (log_step, log_error, modules)
                if aim - log_error < CLOSE_ENOUGH:
                    break
            else:
                high = (log_step, log_error)
            log_step = _next(low, high, aim)
        return (math.exp(low[0]), low[2]) if low else None

    def _first_step(self) -> float:
        count = sum(target.wanted.rank for target in self.targets)
        return FIRST_STEP * math.sqrt(self.total / max(count, 1)) / 24


def _next(low: tuple[float, float, list[Quantised]] | None, high: tuple[float, float] | None, aim: float) -> float:
    """Where to look next: beyond the bracket while it is open, then inside it."""
    if low is None:
        assert high is not None
        return high[0] - max(1.3 * (high[1] - aim), 0.02)
    if high is None:
        return low[0] + max(1.3 * (aim - low[1]), 0.02)
    # Within the bracket the error is nearly a power of the step; aim a little below, to end on the passing side.
    slope = (high[1] - low[1]) / max(high[0] - low[0], 1e-12)
    guess = low[0] + (aim - 0.3 * CLOSE_ENOUGH - low[1]) / max(slope, 1e-12)
    margin = 0.1 * (high[0] - low[0])
    return min(max(guess, low[0] + margin), high[0] - margin)


def _finish(original: Original, number: int, draft: Draft | None, payload: bytes, step: float | None) -> Encoded | None:
    """Pack a payload, decode it in the production path and measure; None where a weight overflows its dtype."""
    loaded = draft.loaded if draft is not None else None
    layout = original.layout
    code = pack_code(Code(number, layout.digest, loaded.digest if loaded else NO_GENERATOR, payload))
    try:
        output = decode(code, layout, loaded, original.what, original.extras)
    except InvalidContainerError as error:
        if isinstance(error.__cause__, OverflowError):
            return None
        raise
    restored = read_weights(output, layout)
    return Encoded(CODECS[number], code, output, measure(layout, original.factors, restored), step, loaded is not None)


def _energy(x: Factors, y: Factors, scale: float) -> float:
    return scale**2 * float(np.sum((x.b.T @ y.b) * (x.a @ y.a.T)))
