"""Judging adapters by what they do: gain retained, and divergence of what the model says.

Gain is measured on a task's own text: the adapter's evaluation tokens, else its samples, else what the
adapted model writes itself. Distilling takes the last two alone: it never sees the tokens an adapter is
judged on. Divergence is measured on its samples, else on text of many kinds that lorareg brings along.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorareg.compress.base_model import BaseModel, Tokens, Weights, gain_retained
from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.weights import Factors
from lorareg.compress.probe import PROBE_TEXTS
from lorareg.compress.progress import Reporter, Silent
from lorareg.registry.errors import BaseModelError, ContractError, InvalidAdapterError
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE, Adapter, Layout

if TYPE_CHECKING:
    from lorareg.compress.contracts.distill import Distiller
    from lorareg.registry.store import Registry

ROW_LENGTH = 128
WRITTEN_ROWS = 16
MOST_ROWS = 32
"""Rows of samples that distilling looks at."""

SETTING = "base_model:"
"""What a registry remembers the path of a base model under, before its name."""

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


class Judges:
    """The judge of each cohort: base models are loaded when they are first needed, and remembered by name."""

    def __init__(self, registry: Registry, given: Path | None, seed: int, reporter: Reporter) -> None:
        self.registry, self.given, self.seed, self.reporter = registry, given, seed, reporter
        self._loaded: dict[Path, Judge] = {}

    def of(self, base_model: str, option: str) -> Judge:
        """The judge of adapters of a base model; `option` is what needs it.

        Raises:
            ContractError: no path to that model is known.
            BaseModelError: it does not load.
        """
        path = base_model_path(self.registry, base_model, self.given, option)
        if path not in self._loaded:
            self._loaded[path] = Judge(BaseModel(path), self.registry, self.seed, self.reporter)
        if self.given is not None:
            remember_base_model(self.registry, base_model, path)
        return self._loaded[path]


def remember_base_model(registry: Registry, base_model: str, path: Path) -> None:
    """Keep where a base model is, by its name."""
    registry.remember(SETTING + base_model, str(path.absolute()))


def base_model_path(registry: Lookup, base_model: str, given: Path | None, option: str) -> Path:
    """Where a base model is: as given, else as it was the last time it was given for that name.

    Raises:
        ContractError: neither is known.
        BaseModelError: it is not where it was.
    """
    if given is not None:
        return given
    remembered = registry.setting(SETTING + base_model)
    if remembered is None:
        reason = f"what a model does is measured on it; give --base-model too (the adapters are of {base_model!r})"
        raise ContractError(option=option, reason=reason)
    path = Path(remembered)
    if not path.exists():
        raise BaseModelError(path=path, reason="it is not there any more", remedy="Give --base-model once more.")
    return path


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

    def __init__(self, model: BaseModel, files: Files, seed: int, reporter: Reporter | None = None) -> None:
        self.model, self.files, self.seed = model, files, seed
        self.reporter = reporter or Silent()

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
        base = self._loss(f"{adapter.ref} without its adapter", tokens, {})
        return Case(original, tokens, text, base, self._loss(f"{adapter.ref} as it was", tokens, weights))

    def gain(self, case: Case, restored: Sequence[Factors]) -> dict[str, float | str]:
        """Gain retained by a restored adapter, with the losses it comes from."""
        loss = self._loss(
            f"{case.original.what} restored", case.tokens, self.model.weights_of(case.original.layout, restored)
        )
        return {
            "gain_retained": gain_retained(case.loss_base, case.loss_original, loss),
            "loss_base": case.loss_base,
            "loss_original": case.loss_original,
            "loss_restored": loss,
            "measured_on": case.text,
            "base_model_sha256": self.model.digest,
        }

    def gain_from_losses(
        self, adapter: Adapter, layout: Layout, restored: Sequence[Factors], base: float, original: float
    ) -> dict[str, float | str] | None:
        """Gain retained, by losses that were measured while the original was here.

        None where those are of text that only the original can write again.
        """
        tokens, text = self._evaluation(adapter), "evaluation tokens"
        if tokens is None:
            tokens, text = self._samples(adapter), "samples"
        if tokens is None:
            return None
        loss = self._loss(f"{adapter.ref} restored", tokens, self.model.weights_of(layout, restored))
        found = gain_retained(base, original, loss)
        return {"gain_retained": found, "loss_restored": loss, "measured_on": text}

    def divergence(self, adapter: Adapter, original: Original, restored: Sequence[Factors]) -> dict[str, float | str]:
        """KL divergence, in nats a token, from the original's next-token distribution to a restored one's.

        Raises:
            LayoutMismatchError: the adapter does not fit the base model.
        """
        tokens, text = self._spoken(adapter)
        first, second = (self.model.weights_of(original.layout, factors) for factors in (original.factors, restored))
        self.reporter.start(f"divergence of {adapter.ref}", len(tokens))
        found = self.model.divergence(tokens, first, second, self.reporter.advance)
        self.reporter.finish()
        return {"kl_divergence": found, "kl_measured_on": text, "base_model_sha256": self.model.digest}

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
        from lorareg.compress.contracts.distill import DistillConfig, Distiller

        weights = self.model.weights_of(original.layout, original.factors)
        tokens, _ = self.training_text(adapter, weights)
        return Distiller(self.model, weights, tokens, DistillConfig())

    def training_text(self, adapter: Adapter, weights: Weights) -> tuple[Tokens, str]:
        """Tokens (rows, length) of the adapter's samples, else of what it writes, and which of the two."""
        samples = self._samples(adapter)
        if samples is not None:
            return samples, "samples"
        from lorareg.compress.contracts.distill import self_written

        return self_written(self.model, weights, WRITTEN_ROWS, ROW_LENGTH, self.seed), "self-written text"

    def _loss(self, stage: str, tokens: Tokens, weights: Weights) -> float:
        self.reporter.start(f"loss of {stage}", len(tokens))
        loss = self.model.loss(tokens, weights, self.reporter.advance)
        self.reporter.finish()
        return loss

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
