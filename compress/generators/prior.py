"""The prior of a generator: the latent that its condition alone suggests.

    z given c:  N(W c + b, diag s^2)

A conditional VAE with a learned prior (Sohn et al., 2015) draws an adapter nobody has trained from the
prior's mean. W (k, c) and b (k,) are stored with a `slots` generator that was trained with masked
latents (see `train`); s is needed in training alone. Integers, as all that decodes.
"""

from __future__ import annotations

import numpy as np

from lorareg.compress.generators.generator import CONDITION_EXPONENT, LATENT_EXPONENT, Generator, Int8, expect_size
from lorareg.compress.integers.fixed_point import ACTIVATION_EXPONENT, requantise

LARGEST_LATENT = 127


def prior_latent(generator: Generator, condition: Int8) -> Int8 | None:
    """The prior's mean (k,) for a condition (c,), in the units of latents; None where the generator has no prior.

    Raises:
        LayoutMismatchError: the condition has another size than the generator's.
    """
    if "prior" not in generator.tensors:
        return None
    expect_size("condition", condition, generator.condition_size)
    weight, bias = generator.tensors["prior"], generator.tensors["prior_bias"]
    # Below 2^15 * 2^7 * 2^16, the most entries a condition may have: exact.
    product = requantise(weight.values @ condition.astype(np.float64), weight.exponent + CONDITION_EXPONENT)
    mean = product + requantise(bias.values, bias.exponent)
    rounded = np.floor(np.ldexp(mean, ACTIVATION_EXPONENT - LATENT_EXPONENT) + 0.5)
    return np.clip(rounded, -LARGEST_LATENT, LARGEST_LATENT).astype(np.int8)
