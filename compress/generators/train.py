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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorareg.compress.generators import conv1d_decoder, slots_decoder
from lorareg.compress.generators.checkpoint import Checkpoint, restore
from lorareg.compress.generators.examples import MODULES, Examples
from lorareg.compress.generators.generator import Generator, Int8
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.refine import losses_of, prior_means, refine
from lorareg.compress.generators.trainers import Trainers
from lorareg.compress.integers.tensors import quantise_tensor
from lorareg.compress.progress import Reporter

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


def train_generator(
    group: Group,
    config: TrainConfig,
    checkpoint: Checkpoint | None,
    reporter: Reporter,
    trainers: Trainers | None = None,
) -> Trained:
    """Train, round, refine. Interrupted, it leaves a checkpoint from which the same call goes on.

    With several `trainers` all of them call this, and all get the same; the first has the checkpoint.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return _train(group, config, checkpoint, reporter, trainers or Trainers())


def _train(
    group: Group, config: TrainConfig, checkpoint: Checkpoint | None, reporter: Reporter, trainers: Trainers
) -> Trained:
    torch.manual_seed(config.seed)
    own = replace(group, adapters=group.adapters[trainers.own], conditions=group.conditions[trainers.own])
    examples = Examples.of(own, config.arch, trainers.device)
    condition_size = len(group.conditions[0])
    model = MODULES[config.arch].Model(group.layout, config.latent_size, condition_size, config.stored)
    model.to(trainers.device)
    metrics = _fit(model, examples, len(group.conditions), config, checkpoint, reporter, trainers)
    model.eval()
    with torch.no_grad():
        starts = [
            model.encode(examples.batch(part), examples.condition[part])[0]
            for part in examples.parts(config.batch_size)
        ]
        exported = {name: tensor.double().cpu().numpy() for name, tensor in model.export().items()}
    generator = Generator(
        arch=config.arch,
        coordinates=group.coordinates,
        encoder=group.encoder,
        latent_size=config.latent_size,
        condition_size=condition_size,
        config=config.stored,
        slot_exponents=group.slot_exponents,
        means=group.means,
        tensors={name: quantise_tensor(value, bits_of(name, config)) for name, value in exported.items()},
    )
    latents, losses = refine(
        generator, group.layout, examples, torch.cat(starts), config.refine_steps, config.batch_size, reporter
    )
    total = len(group.conditions)
    metrics |= {"refined_loss": float(trainers.sum(losses.sum())) / total}
    if config.mask_share:
        expected = prior_means(generator, own.conditions)
        losses = losses_of(generator, group.layout, examples, expected, config.batch_size)
        metrics |= {"mask_share": config.mask_share, "prior_loss": float(trainers.sum(losses.sum())) / total}
    return Trained(generator, list(trainers.gathered(latents, total).numpy()), metrics)


def fit_latents(generator: Generator, group: Group, steps: int, reporter: Reporter) -> list[Int8]:
    """Latents of adapters that a frozen generator was not trained on, from its prior's mean, else from zero."""
    start, batch_size = prior_means(generator, group.conditions), PRESETS[generator.arch].batch_size
    examples = Examples.of(group, generator.arch)
    latents, _ = refine(generator, group.layout, examples, start, steps, batch_size, reporter)
    return list(latents.numpy())


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
    examples: Examples,
    total: int,
    config: TrainConfig,
    checkpoint: Checkpoint | None,
    reporter: Reporter,
    trainers: Trainers,
) -> dict[str, float]:
    """The training loop over `total` adapters; gives the last losses and the time it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order = torch.Generator().manual_seed(config.seed)
    kept = trainers.first(b"" if checkpoint is None else checkpoint.read())
    first = restore(kept, model, optimizer, order)
    batch_loss = trainers.parallel(_BatchLoss(model, examples, config, trainers))
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
            chosen = torch.randperm(total, generator=order)[: config.batch_size]
            noise = torch.randn((len(chosen), config.latent_size), generator=order)
            loss, divergence = batch_loss(chosen, noise)
            optimizer.zero_grad()
            # Every trainer has a part of the batch's sum, and gradients are averaged over them.
            (trainers.count * (loss + config.kl_weight * divergence)).backward()
            optimizer.step()
            value = float(trainers.sum(loss.detach()))
            smooth = value if step == first else 0.9 * smooth + 0.1 * value
            rate = (step + 1 - first) * len(chosen) / max(time.monotonic() - started, 1e-9)
            reporter.advance(1, loss=smooth, adapters_per_s=rate)
            if smooth < best * 0.9999:
                best, best_step = smooth, step
            if step - best_step > config.patience_steps:
                break
            if checkpoint is not None and (step + 1) % config.checkpoint_steps == 0:
                checkpoint.save(step + 1, model, optimizer, order)
    finally:
        reporter.finish()
    return {"loss": smooth, "steps": float(step + 1), "train_s": time.monotonic() - started}


class _BatchLoss(nn.Module):
    """This trainer's share of a batch's loss: all that gradients go through, so that they can be averaged."""

    def __init__(self, model: Any, examples: Examples, config: TrainConfig, trainers: Trainers) -> None:
        super().__init__()
        self.model, self.examples, self.config, self.trainers = model, examples, config, trainers

    def forward(self, chosen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and KL divergence of a batch in random order, whose first adapters are masked.

        Args:
            chosen: (batch,) the places of its adapters among all.
            noise: (batch, k) standard normal.

        Returns:
            The sums over this trainer's own adapters, divided by the size of the batch.
        """
        mine, part = self.trainers.is_own(chosen), self.trainers.places(chosen)
        batch, condition = self.examples.batch(part), self.examples.condition[part]
        mean, log_variance = self.model.encode(batch, condition)
        z = mean + noise[mine].to(mean.device) * (0.5 * log_variance).exp()
        if self.config.mask_share:
            masked = max(1, round(self.config.mask_share * len(chosen)))
            prior_mean, prior_log_variance = self.model.prior(condition, self._stored)
            is_masked = (torch.arange(len(chosen)) < masked)[mine].to(mean.device)
            z = torch.where(is_masked[:, None], prior_mean, z)
            mean, log_variance = _standardised(mean, log_variance, prior_mean, prior_log_variance)
        drawn = self.model.decode(z, condition, self._stored)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return self.examples.objective(drawn, batch, part).sum() / len(chosen), divergence / len(chosen)

    def _stored(self, name: str, weight: Tensor) -> Tensor:
        return rounded(name, weight, self.config)


def _standardised(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """A posterior in units of its prior: its divergence from N(0, 1) is then that from the prior."""
    return (mean - prior_mean) * (-0.5 * prior_log_variance).exp(), log_variance - prior_log_variance
