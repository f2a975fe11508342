"""Finding tasks by meaning: the adapters whose task vectors lie closest to a query's.

With a sentence model, by the cosine of embeddings. Without one, by the hashed words and trigrams of name and
description, which know nothing of meaning: there the share of the query's words that are found in them,
in any inflection that shares its beginning, counts as much as the cosine. A word weighs
log(1 + adapters / adapters that have it), so that rare words decide (inverse document frequency, Spärck Jones 1972).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.task_vectors import TextEncoder
from lorareg.registry.types import Adapter

ROWS_AT_ONCE = 4096
SHARED_START = 4
"""Letters that two words must have in common from their beginning, where either is that long."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An adapter that was found, and how well it fits: 1 is best."""

    adapter: Adapter
    score: float


def search_by_text(query: str, adapters: Sequence[Adapter]) -> list[Hit]:
    """All adapters, the best first, by name and description alone."""
    wanted = TextEncoder().encode(query, ())
    texts = {adapter.id: _read(f"{adapter.name} {adapter.description}") for adapter in adapters}
    found = _shares_by_rarity(words_of(query), {key: text.starts for key, text in texts.items()})
    near = cosines(wanted, [texts[adapter.id].vector for adapter in adapters])
    return _ranked(adapters, [(score + found[a.id]) / 2 for a, score in zip(adapters, near, strict=True)])


def search_by_vector(wanted: Int8, adapters: Sequence[Adapter], vectors: Sequence[Int8]) -> list[Hit]:
    """All adapters, the best first, by their task vectors."""
    return _ranked(adapters, cosines(wanted, vectors))


def cosines(wanted: Int8, vectors: Sequence[Int8]) -> list[float]:
    """The cosine of a task vector with each of others; 0 where one is zero. Sums are of integers, so exact."""
    found: list[float] = []
    query = wanted.astype(np.float64)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.asarray(vectors[start : start + ROWS_AT_ONCE], dtype=np.float64)
        norms = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt(query @ query)
        found += (rows @ query / np.where(norms, norms, 1.0)).tolist()
    return found


@dataclass(frozen=True, slots=True)
class _Text:
    """What a name and description are compared by."""

    vector: Int8
    starts: frozenset[str]  # of its words


@lru_cache(maxsize=1 << 15)  # a server is asked about the same tasks again and again, and making these takes longest
def _read(text: str) -> _Text:
    return _Text(TextEncoder().encode(text, ()), frozenset(map(_start, words_of(text))))


def _ranked(adapters: Sequence[Adapter], scores: Sequence[float]) -> list[Hit]:
    hits = [Hit(adapter, score) for adapter, score in zip(adapters, scores, strict=True)]
    return sorted(hits, key=lambda hit: (-hit.score, hit.adapter.name))


def words_of(text: str) -> set[str]:
    """The words of a text, in one case."""
    return set(re.findall(r"[^\W_]+", text.casefold()))


def share_found(words: set[str], among: set[str]) -> float:
    """The share of words that begin like one of others."""
    starts = set(map(_start, among))
    return sum(_start(word) in starts for word in words) / len(words) if words else 0.0


def _shares_by_rarity(words: set[str], texts: Mapping[int, Set[str]]) -> dict[int, float]:
    """The share of words, weighted by their rarity, that each text has; words that none has do not count."""
    shares, whole = dict.fromkeys(texts, 0.0), 0.0
    for word in sorted(words):
        having = [key for key, starts in texts.items() if _start(word) in starts]
        if having:
            weight = math.log1p(len(texts) / len(having))
            whole += weight
            for key in having:
                shares[key] += weight
    return {key: share / whole if whole else 0.0 for key, share in shares.items()}


def _start(word: str) -> str:
    """What two words have in common where one is an inflection of the other."""
    return word[:SHARED_START]
