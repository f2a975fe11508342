"""Finding tasks for a page, as `lorareg search` does: by meaning where there is a sentence model, else by words.

A server loads the model once, when the first search needs it, and never writes: vectors that nobody has stored yet
are made and kept in memory, a few for each search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.search import Hit, search_by_text, search_by_vector
from lorareg.compress.tasks.task_vectors import SentenceEncoder
from lorareg.registry.errors import BaseModelError, MissingExtraError
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import SENTENCE_MODEL, Adapter

LEAST_SCORE = 0.1
"""What fits less is left out: with nothing in common, twelve tasks score up to 0.09 by words."""

MAKE_AT_ONCE = 64
"""Vectors that one search makes at most: about a second."""


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, the best first, and what is to be said about them."""

    hits: list[Hit]
    note: str


class Finder:
    """Searches; keeps the sentence model and the vectors that were missing."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._encoders: dict[str, SentenceEncoder] = {}
        self._made: dict[tuple[str, str, str, int], Int8] = {}

    def find(self, lookup: Lookup, query: str, adapters: Sequence[Adapter], limit: int) -> Found:
        """The adapters that fit a query; only those given are looked at, in any way."""
        model = lookup.setting(SENTENCE_MODEL)
        note = "Compared by words; with a sentence model the registry would compare by meaning."
        if model is not None:
            try:
                return self._by_sentences(lookup, str(model), query, adapters, limit)
            except (BaseModelError, MissingExtraError):
                note = "Compared by words: the registry's sentence model is not to be had at the moment."
        return Found(_fitting(search_by_text(query, adapters), limit), note)

    def _by_sentences(self, lookup: Lookup, model: str, query: str, adapters: Sequence[Adapter], limit: int) -> Found:
        import numpy as np

        with self._lock:  # one model at work: it takes all the cores it may
            encoder = self._encoder(model)
            wanted = encoder.encode(query, ())
            stored = {
                one.adapter_id: np.frombuffer(one.vector, np.int8) for one in lookup.task_vectors_by(encoder.name)
            }
            missing = [adapter for adapter in adapters if adapter.id not in stored]
            stored |= self._make(lookup, encoder, missing)
        known = [adapter for adapter in adapters if adapter.id in stored]
        hits = search_by_vector(wanted, known, [stored[adapter.id] for adapter in known])
        left_out = len(adapters) - len(known)
        more = f" {left_out} tasks are not described yet and were left out." if left_out else ""
        return Found(_fitting(hits, limit), f"Compared by meaning.{more}")

    def _encoder(self, model: str) -> SentenceEncoder:
        if model not in self._encoders:
            if not Path(model).exists():
                raise BaseModelError(path=model, reason="it is not there any more", remedy="Describe the tasks again.")
            self._encoders[model] = SentenceEncoder(Path(model))
        return self._encoders[model]

    def _make(self, lookup: Lookup, encoder: SentenceEncoder, adapters: Sequence[Adapter]) -> dict[int, Int8]:
        from lorareg.compress.tasks.describe import encoded

        found, made = {}, 0
        for adapter in adapters:
            key = (encoder.name, adapter.digest, adapter.description, adapter.id)
            if key not in self._made and made < MAKE_AT_ONCE:
                self._made[key] = encoded(lookup, encoder, adapter)
                made += 1
            if key in self._made:
                found[adapter.id] = self._made[key]
        return found


def _fitting(hits: Sequence[Hit], limit: int) -> list[Hit]:
    return [hit for hit in hits[:limit] if hit.score >= LEAST_SCORE]
