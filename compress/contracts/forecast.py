"""What a cheap figure says of a dear one: which candidates cannot hold a contract, and where to look first.

Gain takes a reading of all evaluation tokens, divergence two of all samples. A glance takes one of two
rows of the samples, whose divergence tells the gain better than any figure of the weights does
(docs/contract.md). A forecast only leaves candidates out: whatever is kept was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorareg.compress.contracts.rate import TOLERANCES


@dataclass(frozen=True, slots=True)
class Law:
    """y = factor * x ** power."""

    factor: float
    power: float

    def __call__(self, x: float) -> float:
        return float(self.factor * max(x, 0.0) ** self.power)

    def inverse(self, y: float) -> float:
        return float((max(y, 0.0) / self.factor) ** (1 / self.power))


# Fitted by `python bench/proxies.py` to 306 codes of 34 adapters of SmolLM2-135M-Instruct at nine rates.
GAIN_LOST_BY_KL = Law(0.62, 0.65)
"""From the divergence on two rows of samples, over that of the base model: a share, whatever an adapter gains."""
GAIN_LOST_BY_ERROR = Law(0.23, 2.65)
"""From the relative error of ΔW: too rough to leave out anything by, but a place to begin."""
KL_BY_ERROR = Law(0.028, 3.0)
"""In nats a token, from the relative error of ΔW."""

HOPELESS = 4.0
"""What a forecast must exceed, of what may be lost, for a candidate to be left out unmeasured."""

_AIM = 0.8
"""Of what may be lost: where a search begins."""


def strain_at_a_glance(found_kl: float, base_kl: float, kl: float | None, gain: float | None) -> float:
    """What a candidate should lose, of what it may lose.

    Args:
        found_kl: its divergence from the original on a few rows, nats a token.
        base_kl: the same of the base model, which has lost everything.
        kl: the divergence it may have.
        gain: the gain it must retain.
    """
    strains = [0.0]
    if kl is not None:
        strains.append(found_kl / kl)
    if gain is not None and base_kl > 0:
        strains.append(GAIN_LOST_BY_KL(found_kl / base_kl) / (1 - gain))
    return max(strains)


def first_error(kl: float | None, gain: float | None) -> float | None:
    """The relative error of ΔW at which most adapters just hold what is asked for; None where nothing is."""
    errors = []
    if kl is not None:
        errors.append(KL_BY_ERROR.inverse(_AIM * kl))
    if gain is not None:
        errors.append(GAIN_LOST_BY_ERROR.inverse(_AIM * (1 - gain)))
    return min(max(min(errors), TOLERANCES[0]), TOLERANCES[1]) if errors else None
