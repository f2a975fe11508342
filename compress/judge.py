"""Judging adapters by what they do: gain retained, and divergence of what the model says.

Gain is measured on a task's own text: the adapter's evaluation tokens, else its samples, else what the
adapted model writes itself. Distilling takes the last two alone: it never sees the tokens an adapter is
judged on. Divergence is measured on its samples, else on text of many kinds that lorareg brings along.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorareg.compress.base_model import BaseModel, Tokens, Weights, gain_retained
from lorareg.compress.encode import Original
from lorareg.compress.probe import PROBE_TEXTS
from lorareg.compress.weights import Factors
from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE, Adapter

if TYPE_CHECKING:
    from lorareg.compress.distill import Distiller

ROW_LENGTH = 128
WRITTEN_ROWS = 16
MOST_ROWS = 32
"""Rows of samples that distilling looks at."""

TOKEN_DTYPES = {"U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
"""Of evaluation tokens in a safetensors file."""


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


class Glance:
    """The divergence of restored versions of one adapter on a few rows of tokens.

    What the model says with the original is held, so that each version takes a single reading.
    """

    def __init__(self, model: BaseModel, original: Original, tokens: Tokens) -> None:
        """`tokens` are (rows, length); a row takes 25 MB of memory where the vocabulary is of 49152."""
        import torch

        self.model, self.layout, self.tokens = model, original.layout, torch.as_tensor(tokens)
        self._said = model.log_probabilities(self.tokens, model.weights_of(original.layout, original.factors))
        self.base_kl = self._divergence({})  # of the base model: what it is to lose everything

    def divergence(self, restored: Sequence[Factors]) -> float:
        """Mean KL divergence in nats a token, from the original to a restored version."""
        return self._divergence(self.model.weights_of(self.layout, restored))

    def _divergence(self, weights: Weights) -> float:
        import torch

        said = self.model.log_probabilities(self.tokens, weights)
        total = float(torch.nn.functional.kl_div(said, self._said, reduction="sum", log_target=True))
        return total / self.tokens.numel()


class Judge:
    """Measures adapters of one base model."""

    def __init__(self, model: BaseModel, files: Files, seed: int) -> None:
        self.model, self.files, self.seed = model, files, seed

    def case(self, adapter: Adapter, original: Original) -> Case:
        """What the gain of restored versions of an adapter is measured against.

        Raises:
            LayoutMismatchError: the adapter does not fit the base model.
            InvalidAdapterError: its evaluation tokens are none of the base model's.
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

    def divergence(self, adapter: Adapter, original: Original, restored: Sequence[Factors]) -> dict[str, float | str]:
        """KL divergence, in nats a token, from the original's next-token distribution to a restored one's.

        Raises:
            LayoutMismatchError: the adapter does not fit the base model.
        """
        tokens, text = self._spoken(adapter)
        first, second = (self.model.weights_of(original.layout, factors) for factors in (original.factors, restored))
        return {"kl_divergence": self.model.divergence(tokens, first, second), "kl_measured_on": text}

    def glance(self, adapter: Adapter, original: Original) -> Glance:
        """A look at restored versions of an adapter that takes a fraction of what `divergence` and `gain` do.

        Raises:
            LayoutMismatchError: the adapter does not fit the base model.
        """
        tokens, _ = self._spoken(adapter)
        few = tokens[sorted({0, len(tokens) - 1})]  # far apart, as one text may fill neighbouring rows
        return Glance(self.model, original, few)

    def distiller(self, adapter: Adapter, original: Original) -> Distiller:
        """What tunes an adapter's cores, on its samples or on text it writes itself."""
        from lorareg.compress.distill import DistillConfig, Distiller

        weights = self.model.weights_of(original.layout, original.factors)
        tokens, _ = self.training_text(adapter, weights)
        return Distiller(self.model, weights, tokens, DistillConfig())

    def training_text(self, adapter: Adapter, weights: Weights) -> tuple[Tokens, str]:
        """Tokens (rows, length) of the adapter's samples, else of what it writes, and which of the two."""
        samples = self._samples(adapter)
        if samples is not None:
            return samples, "samples"
        from lorareg.compress.distill import self_written

        return self_written(self.model, weights, WRITTEN_ROWS, ROW_LENGTH, self.seed), "self-written text"

    def _spoken(self, adapter: Adapter) -> tuple[Tokens, str]:
        """The tokens (rows, length) that divergence is measured on, and where they are from."""
        tokens, text = self._samples(adapter), "samples"
        if tokens is None:
            tokens, text = self._rows("\n".join(PROBE_TEXTS), MOST_ROWS), "built-in text"
        assert tokens is not None, "the built-in text has more than a row of tokens"
        return tokens, text

    def _samples(self, adapter: Adapter) -> Tokens | None:
        """The adapter's samples, (rows, length); None where there are none, or less than a row of them."""
        if not self._has(adapter, SAMPLES_FILE):
            return None
        texts = json.loads(self.files.read_file(adapter, SAMPLES_FILE))
        return self._rows("\n".join(str(text) for text in texts), MOST_ROWS)

    def _rows(self, text: str, most: int) -> Tokens | None:
        """A text as whole rows of tokens, (rows, length)."""
        ids = self.model.tokens(text)
        rows = min(len(ids) // ROW_LENGTH, most)
        return np.array(ids[: rows * ROW_LENGTH], np.int64).reshape(rows, ROW_LENGTH) if rows else None

    def _evaluation(self, adapter: Adapter) -> Tokens | None:
        """The adapter's held-out tokens (rows, length), if it has any.

        Raises:
            InvalidAdapterError: they are no token ids of the base model.
        """
        if not self._has(adapter, EVAL_FILE):
            return None
        from safetensors import deserialize

        tensors = deserialize(self.files.read_file(adapter, EVAL_FILE))  # type: ignore[no-untyped-call]
        found = dict(tensors).get("input_ids")
        if found is None:
            return None
        kind, shape, known = found["dtype"], tuple(found["shape"]), self.model.vocabulary_size
        if kind not in TOKEN_DTYPES or len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
            raise _unusable(adapter, f"are {kind} of shape {shape}, not integers in rows of two or more")
        tokens = np.frombuffer(found["data"], TOKEN_DTYPES[kind]).reshape(shape).astype(np.int64)
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= known:
            raise _unusable(adapter, f"reach from {lowest} to {highest}, and the base model knows 0 to {known - 1}")
        return tokens

    def _has(self, adapter: Adapter, path: str) -> bool:
        return any(file.path == path for file in self.files.files(adapter))


def _unusable(adapter: Adapter, reason: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        path=f"{adapter.ref}/{EVAL_FILE}",
        reason=f"its input_ids {reason}",
        remedy="Ingest the adapter with tokens of its own base model, or without any.",
    )
