"""Tuning a mixture of adapters on a few samples of a new task: the loss of the base model decides the weights.

    [a_1; ...; a_m], [w_1 b_1 ... w_m b_m]   the mixture as one LoRA of rank m r, whose only free numbers are the w

LoraHub (Huang et al. 2023) searches such weights without gradients; here they follow the gradient of the loss on most
of the rows, from where task vectors put them, and the rows held out say when to stop. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorareg.compress.base_model import PEFT_PREFIX, BaseModel, Tokens, Weights
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout


@dataclass(frozen=True, slots=True)
class FewShotConfig:
    """How weights are tuned."""

    rows: int = 2  # of tokens a step
    learning_rate: float = 0.03
    betas: tuple[float, float] = (0.9, 0.95)
    look_every: int = 4  # steps between two looks at the rows held out
    patience: int = 2  # looks without a better loss before it stops


@dataclass(frozen=True, slots=True)
class Tuned:
    """Weights (m,), and the mean losses in nats a token on the held-out rows before and after."""

    weights: Float64
    loss_before: float
    loss_after: float
    steps: int  # after which the weights were best


class Mixer:
    """The mixtures of some adapters, as the base model takes them."""

    def __init__(self, layout: Layout, adapters: Sequence[Sequence[Factors]]) -> None:
        self.scales = layout.scales
        self.names = [module.removeprefix(PEFT_PREFIX) for module in layout.modules]
        self._a = [_tensor(np.concatenate([f.a for f in factors])) for factors in zip(*adapters, strict=True)]
        self._b = [_tensor(np.concatenate([f.b for f in factors], axis=1)) for factors in zip(*adapters, strict=True)]
        self._ranks = [len(a) // len(adapters) for a in self._a]

    def mixed(self, weights: Any) -> Weights:
        """The mixture of these weights, a torch tensor (m,) that gradients may flow to."""
        return {
            name: (a, b * weights.repeat_interleave(rank), scale)
            for name, a, b, rank, scale in zip(self.names, self._a, self._b, self._ranks, self.scales, strict=True)
        }


def tune(
    model: BaseModel,
    mixer: Mixer,
    weights: Float64,
    rows: tuple[Tokens, Tokens],
    steps: int,
    reporter: Reporter,
    config: FewShotConfig | None = None,
) -> Tuned:
    """Move weights (m,) down the gradient of the loss on the first of `rows`, and keep those best on the second.

    Raises:
        LayoutMismatchError: the adapters do not fit the base model.
    """
    config = config or FewShotConfig()
    train, held = (torch.as_tensor(part) for part in rows)
    free = _tensor(weights).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=config.learning_rate, betas=config.betas)
    looks = [_look(model, mixer, free, held)]
    best, kept = 0, free.detach().clone()
    reporter.start("tuning the mixture", steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / steps)
        picked = [(step * config.rows + i) % len(train) for i in range(min(config.rows, len(train)))]
        optimizer.zero_grad()
        loss = _loss(model, train[picked], mixer.mixed(free))
        loss.backward()
        optimizer.step()
        reporter.advance(1, loss=loss.item())
        if (step + 1) % config.look_every == 0 or step + 1 == steps:
            looks.append(_look(model, mixer, free, held))
            if looks[-1] < looks[best]:
                best, kept = len(looks) - 1, free.detach().clone()
            elif len(looks) - 1 - best >= config.patience:
                break
    reporter.finish()
    taken = min(best * config.look_every, steps)
    return Tuned(kept.double().numpy(), looks[0], looks[best], taken)


def _look(model: BaseModel, mixer: Mixer, weights: Any, held: Any) -> float:
    with torch.no_grad():
        return float(_loss(model, held, mixer.mixed(weights)))


def _loss(model: BaseModel, tokens: Any, weights: Weights) -> Any:
    """Mean next-token cross-entropy in nats, which gradients flow through."""
    with model.adapted(weights):
        logits = model.logits(tokens)[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


def _tensor(array: Any) -> Any:
    return torch.tensor(array, dtype=torch.float32)
