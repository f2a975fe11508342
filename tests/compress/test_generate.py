"""`generate` with samples, and by a generator's prior, on the tiny Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.factors.weights import read_weights
from lorareg.compress.generators.generator import pack_generator, predict
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.progress import Silent
from lorareg.compress.tasks.generate import Request, folder_name, generate
from lorareg.compress.tasks.task_vectors import TextEncoder
from lorareg.registry.errors import ContractError, SamplesError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import Layout, NewGenerator, sha256_hex

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tasks(registry: Registry, add_tiny: Callable[..., Any], tiny_path: Path) -> Registry:
    """Three tasks with the same description, and a base model that is remembered."""
    from lorareg.compress.contracts.judge import remember_base_model

    for name in ("a", "b", "c"):
        add_tiny(registry, name)
    remember_base_model(registry, registry.cohorts()[0].base_model, tiny_path)
    return registry


@pytest.fixture
def spoken(tiny_model: Any, tiny_layout: Layout, tasks: Registry, tmp_path: Path) -> Path:
    """Text that the tiny model writes with the adapter of b."""
    from lorareg.compress.contracts.distill import self_written

    data = tasks.read_file(tasks.adapter("b"), "adapter_model.safetensors")
    written = self_written(
        tiny_model, tiny_model.weights_of(tiny_layout, read_weights(data, tiny_layout)), 12, 120, seed=1
    )
    path = tmp_path / "spoken.txt"
    path.write_text(" ".join(f"w{token}" for token in written.ravel() if token))
    return path


class Notes(Silent):
    """Remembers what the user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def test_samples_tune_the_mixture(tasks: Registry, spoken: Path, tmp_path: Path, any_text: None) -> None:
    asked = Request(samples=spoken, tune_steps=16)
    done = generate(tasks.home, asked, tmp_path / "out", Silent())
    shot = done.made.few_shot
    assert shot is not None
    assert shot.loss < shot.loss_untuned < shot.loss_base
    assert shot.helps
    assert shot.held_rows == (shot.rows + shot.held_rows) // 4 == 2
    weights = {one.adapter.name: one.weight for one in done.made.neighbours}
    assert max(weights, key=lambda name: weights[name]) == "b"
    assert done.made.novelty is None
    assert f"Loss on 2 others, in nats a token: {shot.loss_base:.3f}" in (tmp_path / "out" / "README.md").read_text()
    untuned = generate(tasks.home, Request(samples=spoken, tune_steps=0), tmp_path / "untuned", Silent())
    assert [one.weight for one in untuned.made.neighbours] == pytest.approx([1 / 3] * 3)
    assert untuned.made.few_shot is not None
    assert (untuned.made.few_shot.steps, untuned.made.few_shot.helps) == (0, True)


def test_samples_stand_in_for_a_description_that_tells_nothing(
    tasks: Registry, spoken: Path, tmp_path: Path, any_text: None
) -> None:
    notes = Notes()
    asked = Request("xqzv jjkw pplm", samples=spoken, tune_steps=1)
    done = generate(tasks.home, asked, tmp_path / "out", notes)
    assert done.made.novelty is not None
    assert done.made.novelty.kinship == "unrelated"
    assert "shuffled letters" in notes.said[0]


def test_samples_that_do_not_gain_are_said_not_to(
    tasks: Registry, tmp_path: Path, tiny_model: Any, any_text: None
) -> None:
    from lorareg.compress.contracts.distill import self_written

    own = self_written(tiny_model, {}, 12, 120, seed=3)
    (tmp_path / "own.txt").write_text(" ".join(f"w{token}" for token in own.ravel() if token))
    notes = Notes()
    done = generate(tasks.home, Request(samples=tmp_path / "own.txt", tune_steps=0), tmp_path / "out", notes)
    assert done.made.few_shot is not None
    assert not done.made.few_shot.helps
    assert "no worse without this adapter" in notes.said[0]


@pytest.fixture
def any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's words are no letters, so that shuffling them tells nothing: take any text."""
    from lorareg.compress.tasks import samples

    monkeypatch.setattr(samples, "expect_text", lambda *_: None)


def test_random_samples_are_refused(tasks: Registry, tmp_path: Path) -> None:
    """To the tiny model any letters are its unknown word; what is left after shuffling is as unknown."""
    words = np.random.default_rng(0).integers(1, 64, 800)
    (tmp_path / "s.txt").write_text(" ".join(f"w{word}" for word in words))
    with pytest.raises(SamplesError, match="it looks random"):
        generate(tasks.home, Request(samples=tmp_path / "s.txt"), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_a_prior_draws_the_adapter(
    tasks: Registry, make: Any, tiny_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    description = "Continue the text."
    condition = TextEncoder().encode(description, ())
    made = make.generator("slots", tiny_layout, condition=condition.size, prior=True)
    data = pack_generator(replace(made, encoder=TextEncoder.name), tiny_layout)
    file = tasks.blobs.put_bytes(data)
    cohort = tasks.cohorts()[0].id
    tasks.record_generator(NewGenerator(cohort, file, len(data), "slots", TextEncoder.name, {}, {}))
    asked = Request(description, by="network")
    done = generate(tasks.home, asked, tmp_path / "out", Silent())
    loaded = LoadedGenerator.from_bytes(data, sha256_hex(data), tiny_layout)
    latent = prior_latent(loaded.generator, condition)
    assert latent is not None
    drawn = predict(loaded.generator, tiny_layout, latent, condition).factors
    written = read_weights((tmp_path / "out" / "adapter_model.safetensors").read_bytes(), tiny_layout)
    for one, other in zip(drawn, written, strict=True):
        np.testing.assert_allclose(one.a, other.a, rtol=1e-6)
        np.testing.assert_allclose(one.b, other.b, rtol=1e-6)
    assert read_folder(tmp_path / "out").layout == tiny_layout
    assert "Drawn by the generator" in (tmp_path / "out" / "README.md").read_text()
    other = pack_generator(replace(made, encoder="hidden:other-1"), tiny_layout)
    tasks.record_generator(
        NewGenerator(cohort, tasks.blobs.put_bytes(other), len(other), "slots", "hidden:other-1", {}, {})
    )
    with pytest.raises(ContractError, match=r"task vectors by 'hidden:other-1'; train one on descriptions"):
        generate(tasks.home, asked, tmp_path / "out2", Silent())
    assert done.output_digest == sha256_hex((tmp_path / "out" / "adapter_model.safetensors").read_bytes())
    tasks.blobs.path(sha256_hex(other)).unlink()  # as `prune` does
    assert generate(tasks.home, asked, tmp_path / "out3", Silent()).output_digest == done.output_digest


def test_mixtures_are_of_what_is_stored(tasks: Registry, run: Any, tmp_path: Path) -> None:
    """Members come from their codes: with the originals there or not, the same bytes."""
    run(tasks, tolerance=0.3, arch="none")
    first = generate(tasks.home, Request("Continue the text."), tmp_path / "out", Silent())
    for adapter in tasks.adapters():
        weights = next(file for file in tasks.files(adapter) if file.path == "adapter_model.safetensors")
        tasks.blobs.path(weights.sha256).unlink()
    again = generate(tasks.home, Request("Continue the text."), tmp_path / "again", Silent())
    assert again.output_digest == first.output_digest


def test_folders_are_named_by_the_task() -> None:
    assert folder_name("Übersetze: aus dem Dänischen!", None) == "novel-bersetze-aus-dem-d-nischen"
    assert folder_name("", Path("my samples.txt")) == "novel-my-samples"
    assert folder_name("日本語", None) == "novel"
