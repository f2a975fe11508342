"""Finding tasks by meaning: the adapters whose task vectors lie closest to a query's.

With a sentence model, by the cosine of embeddings. Without one, by the hashed words and trigrams of name and
description, which know nothing of meaning: there the share of the query's words that are found in them,
in any inflection that shares its beginning, counts as much as the cosine. A word weighs
log(1 + adapters / adapters that have it), so that rare words decide (inverse document frequency, Spärck Jones 1972).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.task_vectors import TextEncoder
from lorareg.registry.listings import TaskText

SHARED_START = 4
"""Letters that two words must have in common from their beginning, where either is that long."""


Score = tuple[int, float]
"""An adapter's id, and how well it fits: 1 is best."""


def search_by_text(query: str, pages: Iterable[Sequence[TaskText]], limit: int) -> list[Score]:
    """The tasks that fit best, the best first, by name and description alone; of each a few numbers are held."""
    encoder, words = TextEncoder(), sorted(words_of(query))
    wanted, asked = encoder.encode(query, ()), [_finder(word) for word in words]
    ranking, having = _Ranking(), [np.zeros((0, len(words)), bool)]
    for page in pages:
        texts = [f"{task.name} {task.description}".encode(errors="replace").decode() for task in page]
        ranking.add(page, cosines(wanted, encoder.encode_all(texts)))
        folded = [text.casefold() for text in texts]
        having.append(np.array([[find(text) for find in asked] for text in folded], bool).reshape(-1, len(words)))
    shares = _shares_by_rarity(np.concatenate(having))
    return ranking.best(limit, lambda near: (near + shares) / 2)


def search_by_vector(wanted: Int8, pages: Iterable[Mapping[TaskText, Int8]], limit: int) -> list[Score]:
    """The tasks that fit best, the best first, by their task vectors."""
    ranking = _Ranking()
    for vectors in pages:
        ranking.add(list(vectors), cosines(wanted, np.asarray(list(vectors.values()))))
    return ranking.best(limit, lambda near: near)


def cosines(wanted: Int8, vectors: Int8) -> Float64:
    """The cosine of a task vector with rows of others; 0 where one is zero. Sums are of integers, so exact."""
    query, rows = wanted.astype(np.float64), vectors.astype(np.float64)
    if not len(rows):
        return np.zeros(0)
    norms = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt(query @ query)
    return np.asarray(rows @ query / np.where(norms, norms, 1.0))


class _Ranking:
    """Tasks by their scores, and by name where these are equal."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._names: list[str] = []
        self._near = [np.zeros(0)]

    def add(self, tasks: Sequence[TaskText], near: Float64) -> None:
        self._ids += [task.id for task in tasks]
        self._names += [task.name for task in tasks]
        self._near.append(near)

    def best(self, limit: int, score: Callable[[Float64], Float64]) -> list[Score]:
        scores = score(np.concatenate(self._near)).tolist()
        best = heapq.nsmallest(limit, range(len(scores)), key=lambda i: (-scores[i], self._names[i]))
        return [(self._ids[i], scores[i]) for i in best]


def words_of(text: str) -> set[str]:
    """The words of a text, in one case."""
    return set(re.findall(r"[^\W_]+", text.casefold()))


def share_found(words: set[str], among: set[str]) -> float:
    """The share of words that begin like one of others."""
    starts = set(map(_start, among))
    return sum(_start(word) in starts for word in words) / len(words) if words else 0.0


def _shares_by_rarity(having: NDArray[np.bool_]) -> Float64:
    """The share of words, weighted by their rarity, that each text has; `having` is (texts, words)."""
    counts = having.sum(axis=0)
    weights = np.where(counts, np.log1p(len(having) / np.maximum(counts, 1)), 0.0)
    shares = np.zeros(len(having))
    for weight, has in zip(weights, having.T, strict=True):  # no BLAS: equal texts have equal shares to the last bit
        shares += weight * has
    return shares / (sum(weights) or 1.0)


def _finder(word: str) -> Callable[[str], bool]:
    """Whether a text has a word that begins like this one."""
    start = _start(word)
    goes_on = "" if len(start) == SHARED_START else r"(?![^\W_])"
    pattern = re.compile(rf"(?<![^\W_]){re.escape(start)}{goes_on}")
    return lambda text: start in text and pattern.search(text) is not None


def _start(word: str) -> str:
    """What two words have in common where one is an inflection of the other."""
    return word[:SHARED_START]
