"""What a generator hands to the codecs: integers with an exponent, so that nothing is rounded twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorareg.compress.weights import Factors, Float64


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
        return Factors(b=np.ldexp(self.b, self.b_exponent), a=np.ldexp(self.a, self.a_exponent))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted factors of every module of a layout, in its order."""

    modules: tuple[ModulePrediction, ...]

    @property
    def factors(self) -> tuple[Factors, ...]:
        return tuple(module.factors for module in self.modules)
