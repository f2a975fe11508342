"""Task vectors of a registry's adapters: made when something is conditioned on them, and stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lorareg.compress.generators.generator import Int8
from lorareg.compress.progress import Reporter
from lorareg.compress.tasks.task_vectors import HiddenStateEncoder, SentenceEncoder, TaskEncoder, TextEncoder
from lorareg.registry.errors import BaseModelError
from lorareg.registry.listings import TaskText
from lorareg.registry.lookup import Lookup
from lorareg.registry.store import Registry
from lorareg.registry.types import SAMPLES_FILE, Adapter


class TaskVectors:
    """Makes, stores and finds task vectors; loads the base model when the first is asked for."""

    def __init__(
        self, registry: Registry, base_model: Path | None, reporter: Reporter, sentences: Path | None = None
    ) -> None:
        self.registry, self.base_model, self.reporter, self.sentences = registry, base_model, reporter, sentences

    @cached_property
    def encoder(self) -> TaskEncoder:
        """A sentence model or the base model's hidden states where one was given, else the description's text.

        Raises:
            MissingExtraError: what a model needs is not installed.
            BaseModelError: the model does not load.
        """
        if self.sentences is not None:
            return SentenceEncoder(self.sentences)
        return HiddenStateEncoder(self.base_model) if self.base_model else TextEncoder()

    def make(self, adapters: Sequence[Adapter]) -> list[Int8]:
        """The vectors of adapters, made and stored."""
        self.reporter.start(f"task vectors by {self.encoder.name}", len(adapters))
        vectors = []
        for adapter in adapters:
            vectors.append(self._make(adapter))
            self.reporter.advance(1)
        self.reporter.finish()
        return vectors

    def of(self, tasks: Sequence[TaskText]) -> dict[TaskText, Int8]:
        """The vectors of tasks, stored before or made now; without those that were removed meanwhile."""
        ids = [task.id for task in tasks]
        stored = self.registry.task_vectors_of(ids, self.encoder.name)
        known = {key: np.frombuffer(vector.vector, np.int8) for key, vector in stored.items()}
        missing = [one.adapter for one in self.registry.listed([key for key in ids if key not in known])]
        if missing:
            known |= dict(zip((adapter.id for adapter in missing), self.make(missing), strict=True))
        return {task: known[task.id] for task in tasks if task.id in known}

    def by(self, encoder_name: str, adapter: Adapter) -> Int8:
        """The vector that an encoder makes, made now or stored before.

        Raises:
            BaseModelError: it takes a base model that was not given.
        """
        if encoder_name == TextEncoder.name:
            return TextEncoder().encode(adapter.description, ())
        if self.base_model is not None and encoder_name == self.encoder.name:
            return self._make(adapter)
        stored = self.registry.task_vector(adapter.id, encoder_name)
        if stored is None:
            raise BaseModelError(
                path=self.base_model or "(none given)",
                reason=f"the generator takes task vectors by {encoder_name!r}, and {adapter.ref} has none",
                remedy="Pass the base model it was trained with as --base-model, or train anew with --retrain.",
            )
        return np.frombuffer(stored.vector, np.int8)

    def _make(self, adapter: Adapter) -> Int8:
        vector = encoded(self.registry, self.encoder, adapter)
        self.registry.put_task_vector(adapter.id, self.encoder.name, vector.tobytes())
        return vector


def encoded(lookup: Lookup, encoder: TaskEncoder, adapter: Adapter) -> Int8:
    """The vector that an encoder makes of an adapter's description and samples."""
    samples: list[str] = []
    has_samples = any(file.path == SAMPLES_FILE for file in lookup.files(adapter))
    if not isinstance(encoder, TextEncoder) and has_samples:
        samples = [str(text) for text in json.loads(lookup.read_file(adapter, SAMPLES_FILE))]
    return encoder.encode(adapter.description, samples)
