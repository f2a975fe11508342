"""Finding tasks by meaning: the adapters whose task vectors lie closest to a query's.

With a sentence model, by the cosine of embeddings. Without one, by the hashed words and trigrams of name and
description, which know nothing of meaning: there the share of the query's words that are found in them,
in any inflection that shares its beginning, counts as much as the cosine. A word weighs
log(1 + adapters / adapters that have it), so that rare words decide (inverse document frequency, Spärck Jones 1972).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.task_vectors import TextEncoder
from lorareg.registry.types import Adapter

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
    found = _shares_by_rarity(words_of(query), {key: text.words for key, text in texts.items()})
    return _ranked(adapters, lambda adapter: (cosine(wanted, texts[adapter.id].vector) + found[adapter.id]) / 2)


def search_by_vector(wanted: Int8, adapters: Sequence[Adapter], vectors: Sequence[Int8]) -> list[Hit]:
    """All adapters, the best first, by their task vectors."""
    by_id = {adapter.id: vector for adapter, vector in zip(adapters, vectors, strict=True)}
    return _ranked(adapters, lambda adapter: cosine(wanted, by_id[adapter.id]))


def cosine(first: Int8, second: Int8) -> float:
    """The cosine of two task vectors; 0 where one is zero."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


@dataclass(frozen=True, slots=True)
class _Text:
    """What a name and description are compared by."""

    vector: Int8
    words: frozenset[str]


@lru_cache(maxsize=1 << 15)  # a server is asked about the same tasks again and again, and making these takes longest
def _read(text: str) -> _Text:
    return _Text(TextEncoder().encode(text, ()), frozenset(words_of(text)))


def _ranked(adapters: Sequence[Adapter], score: Callable[[Adapter], float]) -> list[Hit]:
    hits = [Hit(adapter, score(adapter)) for adapter in adapters]
    return sorted(hits, key=lambda hit: (-hit.score, hit.adapter.name))


def words_of(text: str) -> set[str]:
    """The words of a text, in one case."""
    return set(re.findall(r"[^\W_]+", text.casefold()))


def share_found(words: set[str], among: set[str]) -> float:
    """The share of words that begin like one of others."""
    return sum(any(_alike(word, other) for other in among) for word in words) / len(words) if words else 0.0


def _shares_by_rarity(words: set[str], texts: Mapping[int, Set[str]]) -> dict[int, float]:
    """The share of words, weighted by their rarity, that each text has; words that none has do not count."""
    shares, whole = dict.fromkeys(texts, 0.0), 0.0
    for word in sorted(words):
        having = [key for key, others in texts.items() if any(_alike(word, other) for other in others)]
        if having:
            weight = math.log1p(len(texts) / len(having))
            whole += weight
            for key in having:
                shares[key] += weight
    return {key: share / whole if whole else 0.0 for key, share in shares.items()}


def _alike(first: str, second: str) -> bool:
    length = min(SHARED_START, max(len(first), len(second)))
    return first[:length] == second[:length]
