"""A task that was never ingested: which mixture of known adapters to expect of it, and whether it is like any of them.

    new task's vector --> kernel with the known tasks' vectors --> weights that sum to 1 --> sum of w_i ΔW_i

ΔW is taken for a Gaussian process over task vectors with an unknown constant mean (ordinary kriging, Matheron 1963):
the mean is estimated with the rest, so that a task unlike all others gets the cohort's mean adapter. The prediction is
a mixture of the known ΔW, and weights and leave-one-out errors need nothing but their inner products:

    w = first m of [K + ridge I, 1; 1', 0]^-1 [k; 1]
    error of the ith from the others = row i of B over B_ii, where B is the m by m part of that inverse

Width of the kernel, ridge and encoder are those that predict the known tasks best when each is left out in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.search import share_found, words_of
from lorareg.compress.tasks.task_vectors import TextEncoder

WIDTHS = (0.25, 0.5, 1.0, 2.0)
"""Of the kernel exp(-d²/width), in medians of the known tasks' squared distances."""

RIDGES = tuple(float(ridge) for ridge in np.geomspace(0.03, 100, 15))
"""Noise variances of the process, its own being 1; the largest gives the mean adapter."""

LEAST_DISTANCE = 1e-6
"""That a median is taken for: tasks that are all alike have none."""

SHUFFLES = 100
CHANCE_QUANTILE = 0.95
"""A description has to be nearer to a known task than this share of shuffled ones."""

Kinship = Literal["known", "near", "far", "unrelated"]
Encode = Callable[[str], Int8]


@dataclass(frozen=True, slots=True)
class Condition:
    """Task vectors by one encoder: of the m known tasks and of the new one, (c,) each."""

    encoder: str
    known: Sequence[Int8]
    wanted: Int8

    @property
    def similarities(self) -> Float64:
        """The cosine of the new task with each known one, (m,)."""
        return np.asarray(cosines(np.stack([self.wanted]), np.stack(self.known))[0])


@dataclass(frozen=True, slots=True)
class Mixture:
    """Weights of the known adapters, and how well such weights predict those: relative squared errors of ΔW."""

    weights: Float64  # (m,), summing to 1
    encoder: str
    width: float
    ridge: float
    error: float  # mean over the known tasks, each predicted from the others
    error_of_mean: float  # the same of the others' mean adapter


def cosines(first: Float64 | Int8, second: Float64 | Int8) -> Float64:
    """The cosines of rows of (p, c) with rows of (q, c), (p, q); 0 where one is zero."""
    left, right = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return np.asarray(np.divide(left @ right.T, norms, out=np.zeros(norms.shape), where=norms > 0))


def predict_mixture(conditions: Sequence[Condition], gram: Float64) -> Mixture:
    """The mixture of known adapters to expect of a new task, by the condition, width and ridge that predict best.

    Args:
        conditions: one or several kinds of task vectors of the same m >= 2 tasks.
        gram: inner products of the known ΔW over all modules, (m, m).
    """
    count = len(gram)
    of_mean = _relative((count * np.eye(count) - 1) / (count - 1), gram)
    best: Mixture | None = None
    for condition in conditions:
        known = np.stack(condition.known)
        distances, to_wanted = (np.maximum(1 - c, 0) for c in (cosines(known, known), condition.similarities))
        median = max(float(np.median(distances[~np.eye(count, dtype=bool)])), LEAST_DISTANCE)
        for width in WIDTHS:
            kernel, wanted = (np.exp(-d / (width * median)) for d in (distances, to_wanted))
            np.fill_diagonal(kernel, 1.0)
            for ridge in RIDGES:
                inverse = _bordered_inverse(kernel, ridge)
                loo = inverse[:count, :count]
                error = _relative(loo / np.diagonal(loo)[:, None], gram)
                if best is None or error < best.error:
                    weights = inverse[:count] @ np.append(wanted, 1.0)
                    best = Mixture(weights, condition.encoder, width, ridge, error, of_mean)
    assert best is not None, "there is at least one condition"
    return best


def similarity_average(similarities: Float64, temperature: float = 0.1) -> Float64:
    """Softmax of similarities over a temperature, (m,): what mixing by likeness usually means."""
    powers = np.exp((similarities - similarities.max()) / temperature)
    return np.asarray(powers / powers.sum())


def _bordered_inverse(kernel: Float64, ridge: float) -> Float64:
    """The inverse of [K + ridge I, 1; 1', 0], (m + 1, m + 1)."""
    count = len(kernel)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = kernel + ridge * np.eye(count)
    system[count, count] = 0
    return np.asarray(np.linalg.inv(system), np.float64)


def _relative(residuals: Float64, gram: Float64) -> float:
    """The mean relative squared norm of residuals given as mixtures, a row each (m, m); zero adapters do not count."""
    energies = np.diagonal(gram)
    errors = np.einsum("ij,jk,ik->i", residuals, gram, residuals)
    counted = energies > 0
    return float(np.mean(errors[counted] / energies[counted])) if counted.any() else 0.0


# -- novelty -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Novelty:
    """How near a description is to known ones, beside what chance gives and what known ones are to each other."""

    measure: str  # the encoder that similarity is by
    similarities: Float64  # with each known description, (m,)
    by_chance: float  # what 95% of known descriptions stay below to all others once their letters are shuffled
    least_known: float  # of known descriptions, the similarity with the nearest other: the least
    median_known: float

    @property
    def nearest(self) -> float:
        return float(self.similarities.max())

    @property
    def kinship(self) -> Kinship:
        """How a new task is related to the known ones.

        `unrelated`: no nearer to any than shuffled letters come by chance. `far`: nearer than that, and further from
        all than any known task is from its nearest. `known`: the same description.
        """
        if self.nearest <= self.by_chance:
            return "unrelated"
        if self.nearest >= 1 - 1e-9:
            return "known"
        return "near" if self.nearest >= self.least_known else "far"


def judge_novelty(description: str, known: Sequence[str], encode: Encode, measure: str, seed: int = 0) -> Novelty:
    """Compare a description with those of m >= 2 known tasks, by a sentence model's vectors or by text.

    By text the similarity is that of `search`: the mean of the vectors' cosine and of the share of words found.
    What chance gives is measured on the known descriptions with their letters shuffled and their spaces kept, so that
    it follows the registry's language, the lengths of its descriptions and the encoder.
    """
    vectors = np.stack([encode(text) for text in known])
    words = [words_of(text) for text in known] if measure == TextEncoder.name else None

    def similarities(text: str) -> Float64:
        cosine = np.asarray(cosines(np.stack([encode(text)]), vectors)[0])
        if words is None:
            return cosine
        return np.asarray((cosine + [share_found(words_of(text), among) for among in words]) / 2)

    among = np.stack([similarities(text) for text in known])
    np.fill_diagonal(among, -1.0)
    random = np.random.default_rng(seed)
    shuffled = [_shuffled(known[i % len(known)], random) for i in range(SHUFFLES)]
    chance = [float(similarities(text).max()) for text in shuffled]
    nearest = among.max(axis=1)
    return Novelty(
        measure=measure,
        similarities=similarities(description),
        by_chance=float(np.quantile(chance, CHANCE_QUANTILE)),
        least_known=float(nearest.min()),
        median_known=float(np.median(nearest)),
    )


def _shuffled(text: str, random: np.random.Generator) -> str:
    """The same letters in another order, spaces where they were."""
    letters = iter(random.permutation([char for char in text if not char.isspace()]))
    return "".join(char if char.isspace() else str(next(letters)) for char in text)
