"""Finding tasks for a page, as `lorareg search` does: by meaning where there is a sentence model, else by words.

A server loads the model once, when the first search needs it, and never writes: vectors that nobody has stored yet
are made and kept in memory, a few for each search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.describe import encoded
from lorareg.compress.tasks.search import Score, search_by_text, search_by_vector
from lorareg.compress.tasks.task_vectors import SentenceEncoder
from lorareg.registry.errors import BaseModelError, MissingExtraError
from lorareg.registry.listings import Listed, TaskText
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import SENTENCE_MODEL

LEAST_SCORE = 0.1
"""What fits less is left out: with nothing in common, twelve tasks score up to 0.09 by words."""

MAKE_AT_ONCE = 64
"""Vectors that one search makes at most: about a second."""


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, the best first, and what is to be said about them."""

    hits: list[Listed]
    note: str


class Finder:
    """Searches; keeps the sentence model and the vectors that were missing."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._encoders: dict[str, SentenceEncoder] = {}
        self._made: dict[tuple[str, TaskText], Int8] = {}

    def find(self, lookup: Lookup, query: str, may_see: Callable[[str], bool], limit: int) -> Found:
        """The tasks that fit a query, of those that may be seen; no other is looked at, in any way."""
        model = lookup.setting(SENTENCE_MODEL)
        note = "Compared by words; with a sentence model the registry would compare by meaning."
        if model is not None:
            try:
                return self._by_sentences(lookup, str(model), query, may_see, limit)
            except (BaseModelError, MissingExtraError):
                note = "Compared by words: the registry's sentence model is not to be had at the moment."
        return Found(_fitting(lookup, search_by_text(query, _seen(lookup, may_see), limit)), note)

    def _by_sentences(
        self, lookup: Lookup, model: str, query: str, may_see: Callable[[str], bool], limit: int
    ) -> Found:
        left_out, may_make = 0, MAKE_AT_ONCE

        def known() -> Iterator[dict[TaskText, Int8]]:
            nonlocal left_out, may_make
            for tasks in _seen(lookup, may_see):
                stored = lookup.task_vectors_of([task.id for task in tasks], encoder.name)
                vectors = {task: np.frombuffer(stored[task.id].vector, np.int8) for task in tasks if task.id in stored}
                before = len(self._made)
                vectors |= self._make(lookup, encoder, [task for task in tasks if task.id not in stored], may_make)
                may_make -= len(self._made) - before
                left_out += len(tasks) - len(vectors)
                yield vectors

        with self._lock:  # one model at work: it takes all the cores it may
            encoder = self._encoder(model)
            scores = search_by_vector(encoder.encode(query, ()), known(), limit)
        more = f" {left_out} tasks are not described yet and were left out." if left_out else ""
        return Found(_fitting(lookup, scores), f"Compared by meaning.{more}")

    def _encoder(self, model: str) -> SentenceEncoder:
        if model not in self._encoders:
            if not Path(model).exists():
                raise BaseModelError(path=model, reason="it is not there any more", remedy="Describe the tasks again.")
            self._encoders[model] = SentenceEncoder(Path(model))
        return self._encoders[model]

    def _make(
        self, lookup: Lookup, encoder: SentenceEncoder, tasks: Sequence[TaskText], most: int
    ) -> dict[TaskText, Int8]:
        """Vectors that nobody has stored: those made before, and so many more."""
        unknown = {task.id: task for task in tasks if (encoder.name, task) not in self._made}
        for one in lookup.listed(list(unknown)[:most]):
            self._made[encoder.name, unknown[one.adapter.id]] = encoded(lookup, encoder, one.adapter)
        return {task: self._made[encoder.name, task] for task in tasks if (encoder.name, task) in self._made}


def _seen(lookup: Lookup, may_see: Callable[[str], bool]) -> Iterator[list[TaskText]]:
    for tasks in lookup.texts():
        yield [task for task in tasks if may_see(task.name)]


def _fitting(lookup: Lookup, scores: Sequence[Score]) -> list[Listed]:
    return lookup.listed([key for key, score in scores if score >= LEAST_SCORE])
