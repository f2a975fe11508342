"""Training a generator: a conditional VAE over the adapters of one group.

    adapters, less the mean table --> encoder --> z --+
                                                      +--> decoder --> loss: bits left to code
    task vectors (conditions) ------------------------+           + kl_weight * KL(z, N(0, 1))

With masked latents (`mask_share`), some adapters of every batch are drawn from the mean of a learned
prior p(z|c) instead, so that decoder and prior learn what a condition alone tells of an adapter, and
the divergence is to that prior (Sohn et al., 2015). A decoder that always sees the latent has no need
of the condition.

The `slots` decoder is trained with its weights rounded as they will be stored (straight-through),
so nothing is lost when they are. After training each adapter's latent, started at its posterior
mean, is refined by gradient descent against the stored decoder. A latent is never drawn at random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorareg.compress.factors.scratch import scratch_arrays
from lorareg.compress.generators import conv1d_decoder, conv1d_model, slots_decoder, slots_model
from lorareg.compress.generators.checkpoint import Checkpoint
from lorareg.compress.generators.generator import CONDITION_EXPONENT, LATENT_EXPONENT, Generator, Int8
from lorareg.compress.generators.grid import factor_rows
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.objective import MeanSquare, ResidualBits, row_costs
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.integers.tensors import quantise_tensor
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout

MODULES: dict[str, ModuleType] = {slots_decoder.NAME: slots_model, conv1d_decoder.NAME: conv1d_model}
Objective = Callable[[Sequence[Tensor], Sequence[Tensor], Any], Tensor]

BIAS_BITS = 12  # biases are few and steer everything
WARM_UP_STEPS = 20
LAST_RATE = 0.05  # of the learning rate, reached linearly at the last step


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a generator is trained: everything that decides the result but the data."""

    arch: str
    latent_size: int
    sizes: Mapping[str, int]  # what the architecture calls its config
    steps: int
    learning_rate: float
    kl_weight: float
    weight_bits: int
    batch_size: int
    refine_steps: int
    seed: int = 0
    patience_steps: int = 100  # stop when the smoothed loss has not improved by 0.01% for so long
    checkpoint_steps: int = 25
    mask_share: float = 0.0  # of each batch: adapters drawn from the prior's mean; 0 for no prior (`slots` alone)

    def __post_init__(self) -> None:
        assert 0 <= self.mask_share < 1, self.mask_share
        assert not self.mask_share or self.arch == slots_decoder.NAME, self.arch

    @property
    def stored(self) -> dict[str, int]:
        """What a generator file says of it: the sizes, and whether there is a prior."""
        return {**self.sizes, "prior": 1} if self.mask_share else dict(self.sizes)


PRESETS: dict[str, TrainConfig] = {
    slots_decoder.NAME: TrainConfig(
        slots_decoder.NAME,
        latent_size=16,
        sizes={"hidden": 16, "inner": 16},
        steps=300,
        learning_rate=1e-2,
        kl_weight=1e-6,
        weight_bits=6,
        batch_size=64,
        refine_steps=60,
    ),
    conv1d_decoder.NAME: TrainConfig(
        conv1d_decoder.NAME,
        latent_size=256,
        sizes={},
        steps=60,
        learning_rate=1e-3,
        kl_weight=0.005,
        weight_bits=8,
        batch_size=8,
        refine_steps=5,
    ),
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A generator, the latents of the adapters it was trained on, and how training went."""

    generator: Generator
    latents: list[Int8]
    metrics: dict[str, float]


def train_generator(group: Group, config: TrainConfig, checkpoint: Checkpoint, reporter: Reporter) -> Trained:
    """Train, round, refine. Interrupted, it leaves a checkpoint from which the same call goes on."""
    torch.manual_seed(config.seed)
    module = MODULES[config.arch]
    blocks = blocks_of(group, config.arch)
    condition = stacked(group.conditions)
    objective = objective_of(group, config.arch, blocks)
    model = module.Model(group.layout, config.latent_size, condition.shape[1], config.stored)
    metrics = _fit(model, blocks, condition, objective, config, checkpoint, reporter)
    model.eval()
    with torch.no_grad():
        parts = [slice(i, i + config.batch_size) for i in range(0, len(condition), config.batch_size)]
        start = torch.cat([model.encode([b[p] for b in blocks], condition[p])[0] for p in parts])
        exported = {name: tensor.double().numpy() for name, tensor in model.export().items()}
    generator = Generator(
        arch=config.arch,
        coordinates=group.coordinates,
        encoder=group.encoder,
        latent_size=config.latent_size,
        condition_size=condition.shape[1],
        config=config.stored,
        slot_exponents=group.slot_exponents,
        means=group.means,
        tensors={name: quantise_tensor(value, bits_of(name, config)) for name, value in exported.items()},
    )
    latents, loss = refine(generator, group.layout, blocks, condition, objective, start, config, reporter)
    metrics |= {"refined_loss": loss}
    if config.mask_share:
        expected = prior_means(generator, group.conditions)
        metrics |= {
            "mask_share": config.mask_share,
            "prior_loss": loss_of(generator, group.layout, blocks, condition, objective, expected, config.batch_size),
        }
    return Trained(generator, latents, metrics)


def fit_latents(generator: Generator, group: Group, steps: int, reporter: Reporter) -> list[Int8]:
    """Latents of adapters that a frozen generator was not trained on, from its prior's mean, else from zero."""
    config = PRESETS[generator.arch]
    blocks = blocks_of(group, generator.arch)
    objective = objective_of(group, generator.arch, blocks)
    start = prior_means(generator, group.conditions)
    longer = replace(config, refine_steps=steps)
    latents, _ = refine(generator, group.layout, blocks, stacked(group.conditions), objective, start, longer, reporter)
    return latents


def prior_means(generator: Generator, conditions: Sequence[Int8]) -> Tensor:
    """The latents (m, k) that conditions (c,) alone suggest: the prior's means, zeros where there is no prior."""
    found = [prior_latent(generator, condition) for condition in conditions]
    nothing = np.zeros(generator.latent_size, np.int8)
    stored = np.stack([nothing if latent is None else latent for latent in found])
    return torch.from_numpy(stored.astype(np.float32)) * 2.0**LATENT_EXPONENT


def loss_of(
    generator: Generator,
    layout: Layout,
    blocks: Sequence[Tensor],
    condition: Tensor,
    objective: Objective,
    latents: Tensor,
    batch_size: int,
) -> float:
    """The mean loss of what a stored generator draws for latents (m, k)."""
    parameters = real_tensors(generator)
    losses = []
    for start in range(0, len(condition), batch_size):
        part = slice(start, start + batch_size)
        drawn = MODULES[generator.arch].draw(layout, parameters, latents[part], condition[part])
        losses.append(objective(drawn, [block[part] for block in blocks], part))
    return float(torch.cat(losses).mean())


def real_tensors(generator: Generator) -> dict[str, Tensor]:
    """A stored generator's tensors, float32."""
    return {name: torch.from_numpy(tensor.real.astype(np.float32)) for name, tensor in generator.tensors.items()}


def blocks_of(group: Group, arch: str) -> list[Tensor]:
    """Rows less the mean table, in units of each slot's scale, as the architecture groups them."""
    blocks: list[Tensor] = []
    for index, adapter in enumerate(group.adapters):
        deviations = [
            np.ldexp(rows - mean.real, -exponent)
            for rows, mean, exponent in zip(factor_rows(adapter), group.means, group.slot_exponents, strict=True)
        ]
        own = MODULES[arch].blocks_of(group.layout, [deviations])
        if not blocks:
            shapes = [(len(group.adapters), *block.shape[1:]) for block in own]
            blocks = [torch.from_numpy(array) for array in scratch_arrays(shapes, group.scratch)]
        for block, rows in zip(blocks, own, strict=True):
            block[index] = rows[0]
    return blocks


def objective_of(group: Group, arch: str, blocks: Sequence[Tensor]) -> Objective:
    """The loss of an architecture, per adapter."""
    if arch == conv1d_decoder.NAME:
        return MeanSquare()
    costs = [row_costs(group.layout, adapter, group.slot_exponents) for adapter in group.adapters]
    return ResidualBits.of(blocks, MODULES[arch].blocks_of(group.layout, costs), group.tolerance)


def stacked(conditions: Sequence[Int8]) -> Tensor:
    """Conditions as the decoder sees them, (m, c) float32."""
    return torch.from_numpy(np.stack(conditions).astype(np.float32)) * 2.0**CONDITION_EXPONENT


def bits_of(name: str, config: TrainConfig) -> int:
    """How many bits the entries of a stored tensor have."""
    return BIAS_BITS if "bias" in name else config.weight_bits


def rounded(name: str, weight: Tensor, config: TrainConfig) -> Tensor:
    """A weight as it will be stored; gradients pass as if it were not rounded."""
    bits = bits_of(name, config)
    largest = weight.detach().abs().max().clamp(min=1e-12)
    unit = torch.exp2(torch.ceil(torch.log2(largest / ((1 << (bits - 1)) - 1))))
    return weight + (torch.round(weight / unit) * unit - weight).detach()


def _fit(
    model: Any,
    blocks: Sequence[Tensor],
    condition: Tensor,
    objective: Objective,
    config: TrainConfig,
    checkpoint: Checkpoint,
    reporter: Reporter,
) -> dict[str, float]:
    """The training loop; gives the last losses and the time it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order = torch.Generator().manual_seed(config.seed)
    first = checkpoint.load(model, optimizer, order)
    smooth, best, best_step, step = 1.0, float("inf"), first, first
    reporter.start(f"training the {config.arch} generator", config.steps)
    reporter.advance(first)
    if first:
        reporter.note(f"Going on from step {first} of an earlier run.")
    started = time.monotonic()
    try:
        for step in range(first, config.steps):
            warm = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - (1 - LAST_RATE) * step / config.steps)
            for part in optimizer.param_groups:
                part["lr"] = config.learning_rate * warm
            chosen = torch.randperm(len(condition), generator=order)[: config.batch_size]
            loss, divergence = _loss(
                model, [b[chosen] for b in blocks], condition[chosen], objective, chosen, config, order
            )
            optimizer.zero_grad()
            (loss + config.kl_weight * divergence).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            value = float(loss.detach())
            smooth = value if step == first else 0.9 * smooth + 0.1 * value
            rate = (step + 1 - first) * len(chosen) / max(time.monotonic() - started, 1e-9)
            reporter.advance(1, loss=smooth, adapters_per_s=rate)
            if smooth < best * 0.9999:
                best, best_step = smooth, step
            if step - best_step > config.patience_steps:
                break
            if (step + 1) % config.checkpoint_steps == 0:
                checkpoint.save(step + 1, model, optimizer, order)
    finally:
        reporter.finish()
    return {"loss": smooth, "steps": float(step + 1), "train_s": time.monotonic() - started}


def _loss(
    model: Any,
    batch: list[Tensor],
    condition: Tensor,
    objective: Objective,
    chosen: Tensor,
    config: TrainConfig,
    order: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Reconstruction loss and KL divergence of one batch, which is in random order: its first adapters are masked."""

    def stored(name: str, weight: Tensor) -> Tensor:
        return rounded(name, weight, config)

    mean, log_variance = model.encode(batch, condition)
    noise = torch.randn(mean.shape, generator=order)
    z = mean + noise * (0.5 * log_variance).exp()
    if config.mask_share:
        masked = max(1, round(config.mask_share * len(z)))
        prior_mean, prior_log_variance = model.prior(condition, stored)
        z = torch.cat([prior_mean[:masked], z[masked:]])
        mean, log_variance = _standardised(mean, log_variance, prior_mean, prior_log_variance)
    drawn = model.decode(z, condition, stored)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
    return objective(drawn, batch, chosen).mean(), divergence.mean()


def _standardised(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """A posterior in units of its prior: its divergence from N(0, 1) is then that from the prior."""
    return (mean - prior_mean) * (-0.5 * prior_log_variance).exp(), log_variance - prior_log_variance


def refine(
    generator: Generator,
    layout: Layout,
    blocks: Sequence[Tensor],
    condition: Tensor,
    objective: Objective,
    start: Tensor,
    config: TrainConfig,
    reporter: Reporter,
) -> tuple[list[Int8], float]:
    """Gradient descent on latents against the frozen decoder; the best seen of each, and their mean loss."""
    module = MODULES[generator.arch]
    parameters = real_tensors(generator)
    unit, latents, losses = 2.0**LATENT_EXPONENT, [], []
    parts = [slice(i, i + config.batch_size) for i in range(0, len(condition), config.batch_size)]
    reporter.start("refining latents", len(parts) * config.refine_steps)
    for part in parts:
        z = start[part].clamp(-127 * unit, 127 * unit).detach().clone().requires_grad_(True)
        best, best_z = torch.full((len(z),), torch.inf), z.detach().clone()
        optimizer, chosen = torch.optim.Adam([z], lr=unit), [b[part] for b in blocks]
        for _ in range(config.refine_steps):
            stored = z + ((z / unit).round().clamp(-127, 127) * unit - z).detach()
            loss = objective(module.draw(layout, parameters, stored, condition[part]), chosen, part)
            better = loss.detach() < best
            best = torch.where(better, loss.detach(), best)
            best_z[better] = stored.detach()[better]
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            reporter.advance(1, loss=float(best.mean()))
        latents += list((best_z / unit).round().to(torch.int8).numpy())
        losses.append(best)
    reporter.finish()
    return latents, float(torch.cat(losses).mean())
