"""What a cheap figure says of a dear one: which candidates cannot hold a contract, and where to look first.

Gain takes a reading of all evaluation tokens, divergence two of all samples. A glance reads two rows of
the samples (or of the built-in text), which ranks candidates better than any figure of their weights
does (see docs/contract.md). A forecast only ever leaves candidates out: whatever is kept was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorareg.compress.contract import Contract

GLANCE_ROWS = 2


@dataclass(frozen=True, slots=True)
class Law:
    """y = factor * x ** power, as `bench/proxies.py` fits it."""

    factor: float
    power: float

    def __call__(self, x: float) -> float:
        return float(self.factor * max(x, 0.0) ** self.power)

    def inverse(self, y: float) -> float:
        return float((max(y, 0.0) / self.factor) ** (1 / self.power))


GAIN_LOST_BY_KL = Law(1.0, 1.0)
HOPELESS = 4.0


def strain_at_a_glance(contract: Contract, kl: float) -> float:
    """What a candidate should lose of what it may lose, from the divergence on a few rows."""
    strains = [0.0]
    if contract.kl is not None:
        strains.append(kl / contract.kl)
    if contract.gain is not None:
        strains.append(GAIN_LOST_BY_KL(kl) / (1 - contract.gain))
    return max(strains)
