"""What a generator hands to the codecs: integers with an exponent, so that nothing is rounded twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lorareg.compress.factors.weights import Factors, Float64


@dataclass(frozen=True, slots=True)
class ModulePrediction:
    """Predicted factors of one module in the cohort's coordinates.

    `b` (d_out, r) and `a` (r, d_in) hold integers of at most 2^30 as float64; the values are
    `b * 2^b_exponent` and `a * 2^a_exponent`.
    """

    b: Float64
    a: Float64
    b_exponent: int
    a_exponent: int

    @property
    def factors(self) -> Factors:
        return Factors(b=self.b * 2.0**self.b_exponent, a=self.a * 2.0**self.a_exponent)  # exact, faster than ldexp


@dataclass(frozen=True)
class Prediction:
    """Predicted factors of every module of a layout, in its order."""

    modules: tuple[ModulePrediction, ...]

    @cached_property
    def factors(self) -> tuple[Factors, ...]:
        return tuple(module.factors for module in self.modules)
