"""Judging adapters by what they do: gain retained on a task's own text.

The text is, in this order: the adapter's evaluation tokens, its samples, or what the adapted model
writes itself. Distilling takes the last two alone: it never sees the tokens an adapter is judged on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorareg.compress.base_model import BaseModel, Tokens, Weights, gain_retained
from lorareg.compress.encode import Original
from lorareg.compress.weights import Factors
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE, Adapter

if TYPE_CHECKING:
    from lorareg.compress.distill import Distiller

ROW_LENGTH = 128
WRITTEN_ROWS = 16
MOST_ROWS = 32
"""Rows of samples that distilling looks at."""


class Files(Protocol):
    """Where an adapter's other files are (see `registry.store.Registry`)."""

    def read_file(self, adapter: Adapter, path: str) -> bytes: ...

    def files(self, adapter: Adapter) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Case:
    """One adapter, the text it is judged on, and the losses (nats a token) to compare with."""

    original: Original
    tokens: Tokens
    text: str  # where the tokens are from
    loss_base: float
    loss_original: float


class Judge:
    """Measures adapters of one base model."""

    def __init__(self, model: BaseModel, files: Files, seed: int) -> None:
        self.model, self.files, self.seed = model, files, seed

    def case(self, adapter: Adapter, original: Original) -> Case:
        """What the gain of restored versions of an adapter is measured against.

        Raises:
            LayoutMismatchError: the adapter does not fit the base model.
        """
        weights = self.model.weights_of(original.layout, original.factors)
        tokens, text = self._evaluation(adapter), "evaluation tokens"
        if tokens is None:
            tokens, text = self.training_text(adapter, weights)
        return Case(original, tokens, text, self.model.loss(tokens), self.model.loss(tokens, weights))

    def gain(self, case: Case, restored: Sequence[Factors]) -> dict[str, float | str]:
        """Gain retained by a restored adapter, with the losses it comes from."""
        loss = self.model.loss(case.tokens, self.model.weights_of(case.original.layout, restored))
        return {
            "gain_retained": gain_retained(case.loss_base, case.loss_original, loss),
            "loss_base": case.loss_base,
            "loss_original": case.loss_original,
            "loss_restored": loss,
            "measured_on": case.text,
        }

    def distiller(self, adapter: Adapter, original: Original) -> Distiller:
        """What tunes an adapter's cores, on its samples or on text it writes itself."""
        from lorareg.compress.distill import DistillConfig, Distiller

        weights = self.model.weights_of(original.layout, original.factors)
        tokens, _ = self.training_text(adapter, weights)
        return Distiller(self.model, weights, tokens, DistillConfig())

    def training_text(self, adapter: Adapter, weights: Weights) -> tuple[Tokens, str]:
        """Tokens (rows, length) of the adapter's samples, else of what it writes, and which of the two."""
        names = {file.path for file in self.files.files(adapter)}
        if SAMPLES_FILE in names:
            texts = json.loads(self.files.read_file(adapter, SAMPLES_FILE))
            ids = self.model.tokens("\n".join(str(text) for text in texts))
            rows = min(len(ids) // ROW_LENGTH, MOST_ROWS)
            if rows:
                return np.array(ids[: rows * ROW_LENGTH], np.int64).reshape(rows, ROW_LENGTH), "samples"
        from lorareg.compress.distill import self_written

        return self_written(self.model, weights, WRITTEN_ROWS, ROW_LENGTH, self.seed), "self-written text"

    def _evaluation(self, adapter: Adapter) -> Tokens | None:
        if not any(file.path == EVAL_FILE for file in self.files.files(adapter)):
            return None
        from safetensors.numpy import load

        tensors = load(self.files.read_file(adapter, EVAL_FILE))
        tokens = tensors.get("input_ids")
        if tokens is None or tokens.ndim != 2 or tokens.shape[1] < 2:
            return None
        return np.asarray(tokens, np.int64)
