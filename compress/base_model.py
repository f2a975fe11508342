"""The model that adapters adapt: what an adapter does to its predictions, not to its weights.

Adapters are put on a loaded model by forward hooks, as PEFT defines them (out + scale * b @ a @ x),
so that trying one costs no copy of the model. All arithmetic is float32.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.factors.weights import Factors
from lorareg.registry.errors import BaseModelError, LayoutMismatchError, MissingExtraError
from lorareg.registry.types import Layout

Tokens = NDArray[np.int64]  # (rows, length)

PEFT_PREFIX = "base_model.model."
EVALUATION_BATCH, DIVERGENCE_BATCH = 8, 4

Weights = Mapping[str, tuple[Any, Any, float]]
"""Module name in the model -> torch tensors a (r, d_in), b (d_out, r), and the scale."""

Tick = Callable[[int], object]
"""Is told how many rows each batch had."""


def silently(rows: int) -> None:
    """The tick that nobody hears."""


class BaseModel:
    """A causal language model with room for one adapter at a time."""

    def __init__(self, path: Path) -> None:
        """Load the model in a Hugging Face folder, or in a GGUF file (or a folder holding one).

        Raises:
            MissingExtraError: torch or transformers is not installed.
            BaseModelError: there is no model at `path`, or it does not load.
        """
        self.path = path
        self.tokenizer, self.model, self.digest = load_pretrained(path, "AutoModelForCausalLM")
        self._weights: Weights = {}
        self._hooked: set[str] = set()

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text."""
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    @contextmanager
    def adapted(self, weights: Weights) -> Iterator[None]:
        """The model with an adapter on it, until the block ends."""
        before, self._weights = self._weights, weights
        self._hook(weights)
        try:
            yield
        finally:
            self._weights = before

    def loss(self, tokens: Tokens, weights: Weights | None = None, tick: Tick = silently) -> float:
        """Mean next-token cross-entropy in nats over rows of tokens, with an adapter or without one."""
        import torch

        rows, total = torch.as_tensor(tokens), 0.0
        with torch.no_grad(), self.adapted(weights or {}):
            for batch in rows.split(EVALUATION_BATCH):  # type: ignore[no-untyped-call]
                logits = self.logits(batch)[:, :-1].flatten(0, 1)
                total += float(torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
                tick(len(batch))
        return total / (rows.shape[0] * (rows.shape[1] - 1))

    def divergence(self, tokens: Tokens, original: Weights, restored: Weights, tick: Tick = silently) -> float:
        """Mean KL divergence in nats a token, from what the model says with `original` to what with `restored`."""
        import torch

        total = 0.0
        for batch in torch.as_tensor(tokens).split(DIVERGENCE_BATCH):  # type: ignore[no-untyped-call]
            logs = [self.log_probabilities(batch, weights) for weights in (original, restored)]
            total += float(torch.nn.functional.kl_div(logs[1], logs[0], reduction="sum", log_target=True))
            tick(len(batch))
        return total / tokens.size

    def log_probabilities(self, tokens: Any, weights: Weights) -> Any:
        """What the model says with an adapter: torch tensors, (rows, length) to (rows, length, vocabulary)."""
        import torch

        with torch.no_grad(), self.adapted(weights):
            return self.logits(tokens).log_softmax(-1)

    def logits(self, tokens: Any) -> Any:
        """Logits (rows, length, vocabulary) of a torch tensor of tokens, with the adapter that is on."""
        return self.model(input_ids=tokens, use_cache=False).logits

    def weights_of(self, layout: Layout, factors: Sequence[Factors]) -> Weights:
        """An adapter as `adapted` and `loss` take it.

        Raises:
            LayoutMismatchError: the model has no module of that name or shape, or the factors are not all there is.
        """
        import torch

        if not layout.is_linear:
            raise LayoutMismatchError(
                what="What the base model does with this adapter",
                found="tensors beside the factors of linear layers",
                expected="those alone",
                remedy="Hold it to the error of its weights: --tolerance weight=0.2.",
            )

        known = dict(self.model.named_modules())
        weights = {}
        for module, scale, factor in zip(layout.modules, layout.scales, factors, strict=True):
            name = module.removeprefix(PEFT_PREFIX)
            expected = tuple(getattr(getattr(known.get(name), "weight", None), "shape", ()))
            found = (factor.b.shape[0], factor.a.shape[1])
            if expected != found:
                raise LayoutMismatchError(
                    what=f"Module {module!r}",
                    found=f"{found[0]} x {found[1]}",
                    expected=f"{' x '.join(map(str, expected)) or 'no such module'} in the base model",
                    remedy="Give the base model that the adapter was trained on.",
                )
            a, b = (torch.tensor(matrix, dtype=torch.float32) for matrix in (factor.a, factor.b))
            weights[name] = (a, b, scale)
        return weights

    def _hook(self, weights: Weights) -> None:
        modules = dict(self.model.named_modules()) if weights.keys() - self._hooked else {}
        for name in weights.keys() - self._hooked:
            modules[name].register_forward_hook(self._adding(name))
            self._hooked.add(name)

    def _adding(self, name: str) -> Callable[..., Any]:
        def add(module: Any, inputs: Any, output: Any) -> Any:
            if name not in self._weights:
                return output
            a, b, scale = self._weights[name]
            return output + scale * ((inputs[0] @ a.T) @ b.T)

        return add


def gain_retained(base: float, original: float, restored: float) -> float:
    """The share of what an adapter learned that a restored one still has: 1 is all of it.

    (base - restored) / (base - original), from losses on the same tokens. Not a number where the
    adapter gained nothing.
    """
    return (base - restored) / (base - original) if base > original else float("nan")


def load_pretrained(path: Path, kind: str) -> tuple[Any, Any, str]:
    """Tokenizer, model (`kind` of transformers' Auto classes; float32, frozen) and digest of its files.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        BaseModelError: there is no model at `path`, or it does not load.
    """
    folder, gguf_file = _locate(path)
    try:
        import torch
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(feature="--base-model", package=error.name or "transformers", extra="train") from error
    logging.disable_progress_bar()
    arguments: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    weights = {} if gguf_file else {"use_safetensors": True}  # never a pickle, which the digest does not cover either
    try:
        with redirect_stderr(io.StringIO()):  # GGUF files are read with a progress bar that would tear ours
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **arguments)
            loader = getattr(transformers, kind)
            model = loader.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **arguments, **weights)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise BaseModelError(
            path=path,
            reason=f"it does not load ({error})",
            remedy="Pass a folder that transformers reads, or a GGUF file (which needs the package gguf).",
        ) from error
    model.eval()
    model.requires_grad_(False)
    return tokenizer, model, model_digest(folder, gguf_file)


def _locate(path: Path) -> tuple[Path, str | None]:
    """The folder of a model and its GGUF file's name, if it is one."""
    if path.is_file() and path.suffix == ".gguf":
        return path.parent, path.name
    if path.is_dir():
        if (path / "config.json").is_file():
            return path, None
        found = sorted(path.glob("*.gguf"))
        if found:
            return path, found[0].name
    raise BaseModelError(
        path=path,
        reason="there is no model here",
        remedy="Pass a folder with a config.json, or a GGUF file.",
    )


def model_digest(folder: Path, gguf_file: str | None) -> str:
    """SHA-256 over the files that decide the model's output."""
    hasher = hashlib.sha256()
    files = [folder / gguf_file] if gguf_file else sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    for file in files:
        with file.open("rb") as stream:
            hasher.update(hashlib.file_digest(stream, "sha256").digest())
    return hasher.hexdigest()
