"""Training: the same bytes for the same seed, also after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lorareg.compress.factors.weights import Factors  # noqa: E402
from lorareg.compress.generators.checkpoint import Checkpoint  # noqa: E402
from lorareg.compress.generators.examples import Examples, blocks_of, objective_of, stacked  # noqa: E402
from lorareg.compress.generators.generator import pack_generator, predict, unpack_generator  # noqa: E402
from lorareg.compress.generators.group import Group  # noqa: E402
from lorareg.compress.generators.objective import ResidualBits, row_costs, water_level  # noqa: E402
from lorareg.compress.generators.prior import prior_latent  # noqa: E402
from lorareg.compress.generators.refine import losses_of, prior_means  # noqa: E402
from lorareg.compress.generators.train import (  # noqa: E402
    PRESETS,
    TrainConfig,
    Trained,
    fit_latents,
    rounded,
    train_generator,
)
from lorareg.compress.integers.tensors import quantise_tensor  # noqa: E402
from lorareg.compress.progress import Silent  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CONDITION = 6
STEPS = 12


def group_of(make: ModuleType, arch: str, count: int = 5) -> Group:
    """A few adapters around a common mean."""
    layout = make.layout()
    template = make.generator("mean" if arch == "slots" else "conv1d", layout)
    means = [mean.real for mean in template.means]
    random = np.random.default_rng(0)
    adapters = []
    for seed in range(count):
        own = make.factors(layout, seed, size=0.2)
        if arch == "slots":
            own = [
                replace(f, a=f.a * 0.2 + a, b=f.b + b.T) for f, a, b in zip(own, means[0::2], means[1::2], strict=True)
            ]
        adapters.append(own)
    conditions = [random.integers(-60, 61, CONDITION).astype(np.int8) for _ in range(count)]
    return Group(layout, "raw", "text:test", adapters, conditions, template.means, template.slot_exponents, 0.2)


def config_of(arch: str, **changes: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "latent_size": 4,
        "steps": STEPS,
        "refine_steps": 3,
        "batch_size": 3,
        "checkpoint_steps": 4,
    }
    return replace(PRESETS[arch], **{**small, **changes})


def train(make: ModuleType, path: Path, arch: str = "slots", reporter: Any = None, **changes: Any) -> Trained:
    return train_generator(group_of(make, arch), config_of(arch, **changes), Checkpoint(path), reporter or Silent())


def same(first: Trained, second: Trained, make: ModuleType) -> bool:
    layout = make.layout()
    return pack_generator(first.generator, layout) == pack_generator(second.generator, layout) and all(
        np.array_equal(x, y) for x, y in zip(first.latents, second.latents, strict=True)
    )


class Stop(Silent):
    """Ctrl-C after some steps of training."""

    def __init__(self, steps: int) -> None:
        self.steps, self.stages, self.finished = steps, [""], 0

    def start(self, stage: str, total: int) -> None:
        self.stages.append(stage)

    def advance(self, n: int = 1, **figures: float) -> None:
        self.steps -= n if figures else 0
        if self.steps == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize(("arch", "steps"), [("slots", STEPS), ("conv1d", 3)])
def test_a_seed_decides_every_byte(arch: str, steps: int, make: ModuleType, tmp_path: Path) -> None:
    first, second = (train(make, tmp_path / name, arch, steps=steps) for name in "ab")
    assert same(first, second, make)
    if arch == "slots":
        assert not same(first, train(make, tmp_path / "c", arch, steps=steps, seed=1), make)


def test_what_was_trained_is_a_generator(make: ModuleType, tmp_path: Path) -> None:
    trained = train(make, tmp_path / "checkpoint", steps=3)
    layout = make.layout()
    back = unpack_generator(pack_generator(trained.generator, layout), layout)
    assert (back.arch, back.latent_size, back.condition_size, back.encoder) == ("slots", 4, CONDITION, "text:test")
    assert len(trained.latents) == 5
    assert all(latent.dtype == np.int8 and latent.shape == (4,) for latent in trained.latents)
    assert trained.metrics["steps"] == 3
    assert np.isfinite(trained.metrics["refined_loss"])
    predict(back, layout, trained.latents[0], np.zeros(CONDITION, np.int8))


def test_stored_weights_are_the_rounded_weights_of_training() -> None:
    config = PRESETS["slots"]
    for name in ("head.0", "input_bias"):
        weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
        bits = 12 if "bias" in name else config.weight_bits
        kept = quantise_tensor(weight.double().numpy(), bits)
        np.testing.assert_array_equal(rounded(name, weight, config).double().numpy(), kept.real)


def test_an_interrupted_run_goes_on_to_the_same_bytes(make: ModuleType, tmp_path: Path) -> None:
    whole = train(make, tmp_path / "whole")
    path, stop = tmp_path / "stopped", Stop(10)
    with pytest.raises(KeyboardInterrupt):
        train(make, path, reporter=stop)
    assert stop.finished == 1
    assert path.exists()
    resumed = train(make, path)
    assert same(whole, resumed, make)
    assert resumed.metrics["steps"] == STEPS


def test_a_run_resumes_where_it_stopped(make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(make, path, reporter=Stop(10))
    counted = Stop(-1)
    train(make, path, reporter=counted)
    refining = 2 * 3  # two batches, three steps each
    assert -1 - counted.steps == STEPS - 8 + refining


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff" * 64])
def test_a_damaged_checkpoint_is_ignored(damage: bytes, make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(damage)
    assert same(train(make, path, steps=3), train(make, tmp_path / "none", steps=3), make)


@pytest.mark.parametrize("size", [0.3, 0.9])
def test_a_truncated_checkpoint_is_ignored(size: float, make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    train(make, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(size * len(data))])
    assert same(train(make, path), train(make, tmp_path / "none"), make)


def test_a_checkpoint_of_another_model_is_ignored(make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    train(make, path)
    other = {"hidden": 8, "inner": 8}
    assert same(train(make, path, steps=3, sizes=other), train(make, tmp_path / "none", steps=3, sizes=other), make)


def test_training_lowers_the_loss(make: ModuleType, tmp_path: Path) -> None:
    trained = train(make, tmp_path / "checkpoint", steps=80, refine_steps=20, latent_size=8)
    assert trained.metrics["refined_loss"] < 0.97


def test_training_stops_when_nothing_improves(make: ModuleType, tmp_path: Path) -> None:
    trained = train(make, tmp_path / "checkpoint", steps=60, patience_steps=5, learning_rate=0.0)
    assert trained.metrics["steps"] < 60


def test_fitted_latents_are_no_worse_than_none(make: ModuleType, tmp_path: Path) -> None:
    group = group_of(make, "slots")
    trained = train(make, tmp_path / "checkpoint", steps=40)
    latents = fit_latents(trained.generator, group, 25, Silent())
    again = fit_latents(trained.generator, group, 25, Silent())
    assert all(np.array_equal(x, y) for x, y in zip(latents, again, strict=True))
    blocks = blocks_of(group, "slots")
    objective = objective_of(group, "slots", blocks)
    parameters = {name: torch.from_numpy(t.real.astype(np.float32)) for name, t in trained.generator.tensors.items()}
    from lorareg.compress.generators.slots_model import draw

    def loss(z: Any) -> float:
        return float(objective(draw(group.layout, parameters, z, stacked(group.conditions)), blocks, slice(None)).sum())

    fitted = torch.from_numpy(np.stack(latents).astype(np.float32)) / 32
    assert loss(fitted) <= loss(torch.zeros_like(fitted)) + 1e-5


# -- the objective -------------------------------------------------------------------------------


def test_the_mean_alone_costs_one(make: ModuleType) -> None:
    group = group_of(make, "slots")
    blocks = blocks_of(group, "slots")
    objective = objective_of(group, "slots", blocks)
    nothing = [torch.zeros_like(block) for block in blocks]
    torch.testing.assert_close(objective(nothing, blocks, slice(None)), torch.ones(5))
    torch.testing.assert_close(objective(blocks, blocks, slice(None)), torch.zeros(5))


def test_the_water_level_allows_what_it_should() -> None:
    errors, widths = torch.tensor([[4.0, 1.0, 0.01]]), torch.tensor([2.0, 2.0, 2.0])
    level = water_level(errors, widths, torch.tensor([0.41]))
    torch.testing.assert_close(torch.minimum(errors, widths * level).sum(), torch.tensor(0.41), atol=1e-4, rtol=0)


def test_row_costs_are_the_energy_of_the_partner(make: ModuleType) -> None:
    layout = make.layout(((3, 1, 4),), scale=2.0)
    (factors,) = make.factors(layout)
    a_cost, b_cost = row_costs(layout, [factors], (0, 0))
    total = 4 * float(np.sum(factors.delta**2))
    assert a_cost.item() == pytest.approx(4 * float(np.sum(factors.b**2)) / total)
    assert b_cost.item() == pytest.approx(4 * float(np.sum(factors.a**2)) / total)


def test_residual_bits_grow_with_what_is_left() -> None:
    blocks = [torch.ones(1, 2, 4)]
    bits = ResidualBits.of(blocks, [torch.ones(1, 2, 1)], 0.1)
    losses = [float(bits([scale * blocks[0]], blocks, slice(None))) for scale in (1.0, 0.9, 0.5, 0.0)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(1)


# -- masked latents ------------------------------------------------------------------------------


def conditioned_group(make: ModuleType, count: int = 12) -> Group:
    """Adapters whose distance from the mean is a linear function of their condition."""
    layout = make.layout()
    template = make.generator("mean", layout)
    random = np.random.default_rng(3)
    directions = [
        [Factors(b=0.5 * random.normal(size=b.shape), a=0.2 * random.normal(size=a.shape)) for _ in range(2)]
        for a, b in zip(layout.slots[0::2], layout.slots[1::2], strict=True)
    ]
    adapters, conditions = [], []
    for _ in range(count):
        task = random.integers(-60, 61, 2).astype(np.int8)
        modules = []
        for index, both in enumerate(directions):
            a, b = (template.means[2 * index + i].real for i in (0, 1))
            for entry, direction in zip(task / 32, both, strict=True):
                a, b = a + entry * direction.a, b + entry * direction.b.T
            modules.append(Factors(b=b.T, a=a))
        adapters.append(modules)
        conditions.append(np.concatenate([task, np.zeros(CONDITION - 2, np.int8)]))
    return Group(layout, "raw", "text:test", adapters, conditions, template.means, template.slot_exponents, 0.2)


def loss_from_conditions(trained: Trained, group: Group) -> float:
    """What is left to code of a group's adapters when they are drawn from their conditions alone."""
    latents = prior_means(trained.generator, group.conditions)
    return float(losses_of(trained.generator, group.layout, Examples.of(group, "slots"), latents, 64).mean())


def test_masked_training_draws_better_from_the_condition_alone(make: ModuleType, tmp_path: Path) -> None:
    group, losses = conditioned_group(make), {}
    for share in (0.0, 0.5):
        config = config_of("slots", steps=120, batch_size=12, mask_share=share)
        trained = train_generator(group, config, Checkpoint(tmp_path / str(share)), Silent())
        losses[share] = loss_from_conditions(trained, group)
        assert ("prior" in trained.generator.tensors) == bool(share)
    assert trained.metrics["prior_loss"] == pytest.approx(losses[0.5])
    assert losses[0.5] < 0.8 * losses[0.0], losses


def test_a_prior_is_trained_to_the_same_bytes_after_an_interruption(make: ModuleType, tmp_path: Path) -> None:
    whole = train(make, tmp_path / "whole", mask_share=0.4)
    with pytest.raises(KeyboardInterrupt):
        train(make, tmp_path / "stopped", reporter=Stop(10), mask_share=0.4)
    assert same(whole, train(make, tmp_path / "stopped", mask_share=0.4), make)
    layout = make.layout()
    assert unpack_generator(pack_generator(whole.generator, layout), layout).config["prior"] == 1


def test_what_is_trained_without_masks_stays_the_same(make: ModuleType, tmp_path: Path) -> None:
    trained = train(make, tmp_path / "checkpoint", mask_share=0.0)
    assert same(trained, train(make, tmp_path / "default"), make)
    assert trained.generator.config == {"hidden": 16, "inner": 16}
    assert "prior_loss" not in trained.metrics


def test_new_latents_start_at_the_mean_of_the_prior(make: ModuleType, tmp_path: Path) -> None:
    group = conditioned_group(make)
    config = config_of("slots", steps=40, batch_size=12, mask_share=0.5)
    trained = train_generator(group, config, Checkpoint(tmp_path / "checkpoint"), Silent())
    means = [prior_latent(trained.generator, condition) for condition in group.conditions]
    assert any(mean is not None and mean.any() for mean in means)
    fitted = fit_latents(trained.generator, group, 1, Silent())  # the one step there is measures where it starts
    for latent, mean in zip(fitted, means, strict=True):
        np.testing.assert_array_equal(latent, mean)


def test_the_divergence_is_that_from_the_prior(make: ModuleType, tmp_path: Path) -> None:
    from torch.distributions import Normal, kl_divergence

    from lorareg.compress.generators.train import _standardised

    random = torch.Generator().manual_seed(0)
    mean, log_variance, prior_mean = (torch.randn(3, 4, generator=random) for _ in range(3))
    prior_log_variance = torch.randn(4, generator=random)
    moved, log_ratio = _standardised(mean, log_variance, prior_mean, prior_log_variance)
    found = kl_divergence(Normal(moved, (0.5 * log_ratio).exp()), Normal(0.0, 1.0))
    wanted = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(prior_mean, (0.5 * prior_log_variance).exp())
    )
    torch.testing.assert_close(found, wanted)
