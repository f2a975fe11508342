"""Distilling after quantising: tune the cores so that the model says what it said with the original.

The symbols stay as they are; the r x r core of every module is moved by gradient descent on the
KL divergence from the original adapter's next-token distribution to the restored one's, over text
of the task or, where there is none, text that the adapted model writes itself (Hinton et al. 2015
for the loss). Needs torch; decoding does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorareg.compress.base_model import PEFT_PREFIX, BaseModel, Tokens, Weights
from lorareg.compress.codec.residual import CORE_UNIT, Quantised, restore_plain
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.prediction import Prediction
from lorareg.registry.types import Layout


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """Measured on held-out tasks: more steps or rows gained little for their time."""

    steps: int = 16
    rows: int = 2  # of tokens a step
    learning_rate: float = 0.03
    betas: tuple[float, float] = (0.8, 0.95)
    gap_weight: float = 0.5  # of the text's loss above the original's; without it, gains came 0.9% lower
    candidates: int = 256  # tokens of the original's distribution that are told apart; the others are one


class Distiller:
    """Tunes one adapter's cores against its original."""

    def __init__(self, model: BaseModel, original: Weights, tokens: Tokens, config: DistillConfig) -> None:
        """`original` is the adapter as `BaseModel.weights_of` gives it, `tokens` (rows, length) the text."""
        self.model, self.config = model, config
        self.tokens = torch.as_tensor(tokens)
        self._teacher = [self._taught(row[None], original) for row in self.tokens]

    def tune(self, modules: Sequence[Quantised], layout: Layout, prediction: Prediction | None) -> list[Quantised]:
        """The same modules with cores that bring the model closer to what it says with the original."""
        predicted: Sequence[Factors | None] = prediction.factors if prediction else [None] * len(modules)
        plain = [restore_plain(q, p) for q, p in zip(modules, predicted, strict=True)]
        fixed = [(_tensor(f.a), _tensor(f.b)) for f in plain]
        cores = [_tensor(q.core * CORE_UNIT).requires_grad_() for q in modules]
        names = [module.removeprefix(PEFT_PREFIX) for module in layout.modules]
        moved = [core for core in cores if core.numel()]
        if not moved:  # an adapter of zeros
            return list(modules)
        optimizer = torch.optim.Adam(moved, lr=self.config.learning_rate, betas=self.config.betas)
        for step in range(self.config.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * (1 - step / self.config.steps)
            weights = {
                name: (a, b @ core, scale)
                for name, (a, b), core, scale in zip(names, fixed, cores, layout.scales, strict=True)
            }
            optimizer.zero_grad()
            self._loss(step, weights).backward()
            optimizer.step()
        return [q.with_core(core.detach().double().numpy()) for q, core in zip(modules, cores, strict=True)]

    def _loss(self, step: int, weights: Weights) -> Any:
        """Mean KL divergence in nats of the step's rows, and the weighted gap to the original's loss on them."""
        count = len(self.tokens)
        picked = [(step * self.config.rows + i) % count for i in range(min(self.config.rows, count))]
        taught = [self._teacher[i] for i in picked]
        with self.model.adapted(weights):
            logs = self.model.logits(self.tokens[picked]).log_softmax(-1)
        teacher, places = torch.cat([t.logs for t in taught]), torch.cat([t.places for t in taught])
        student = logs.gather(-1, places)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        rest, student_rest = _rest(teacher), _rest(student)
        divergence = divergence + rest * (rest.log() - student_rest.log())
        gap = _loss_on(logs, self.tokens[picked]) - sum(t.loss for t in taught) / len(taught)
        return divergence.mean() + self.config.gap_weight * gap.relu()

    def _taught(self, row: Any, original: Weights) -> _Taught:
        with torch.no_grad(), self.model.adapted(original):
            logs = self.model.logits(row).log_softmax(-1)
        top = logs.topk(min(self.config.candidates, logs.shape[-1]), dim=-1)
        return _Taught(top.values, top.indices, float(_loss_on(logs, row)))


@dataclass(frozen=True, slots=True)
class _Taught:
    """What the original says to one row of tokens."""

    logs: Any  # log-probabilities (1, length, candidates) of its likeliest tokens
    places: Any  # their ids
    loss: float  # mean cross-entropy of the row, nats


def self_written(model: BaseModel, weights: Weights, rows: int, length: int, seed: int) -> Tokens:
    """Text that the adapted model writes from its first token on, (rows, length) token ids."""
    random = torch.Generator().manual_seed(seed)
    start = model.tokenizer.bos_token_id
    tokens = torch.full((rows, 1), 0 if start is None else int(start))
    kept = _cache_argument(model)
    with torch.no_grad(), model.adapted(weights):
        cache, last = None, tokens
        while tokens.shape[1] < length:
            output = model.model(input_ids=last, use_cache=True, **{kept: cache})
            cache = getattr(output, kept)
            last = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=random)
            tokens = torch.cat([tokens, last], dim=1)
    return np.asarray(tokens.numpy(), np.int64)


def _cache_argument(model: BaseModel) -> str:
    """What transformers calls the keys and values of earlier tokens: newer versions have another name for it."""
    known = inspect.signature(model.model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _loss_on(logs: Any, tokens: Any) -> Any:
    """Mean next-token cross-entropy in nats, from log-probabilities (rows, length, vocabulary)."""
    return -logs[:, :-1].gather(-1, tokens[:, 1:, None]).mean()


def _rest(logs: Any) -> Any:
    """The probability of everything but the candidates, kept above zero."""
    return (1 - logs.exp().sum(-1)).clamp(min=1e-6)


def _tensor(matrix: Any) -> Any:
    return torch.tensor(matrix, dtype=torch.float32)
