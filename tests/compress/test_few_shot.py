"""Tuning a mixture on samples, and what samples are refused, on the tiny Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.registry.errors import SamplesError
from lorareg.registry.types import Layout

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def adapters(make: Any, tiny_layout: Layout) -> list[Any]:
    return [make.factors(tiny_layout, seed, 0.1) for seed in range(3)]


def written(model: Any, layout: Layout, factors: Any, rows: int = 8) -> np.ndarray:
    """Text that the model writes with an adapter."""
    from lorareg.compress.contracts.distill import self_written

    return self_written(model, model.weights_of(layout, factors), rows, 48, seed=1)


def test_a_mixture_on_the_model_is_the_merged_adapter(tiny_model: Any, tiny_layout: Layout, adapters: Any) -> None:
    from lorareg.compress.tasks.few_shot import Mixer
    from lorareg.compress.tasks.merge import merged

    tokens = np.arange(2 * 24).reshape(2, 24) % 64
    weights = [0.7, -0.2, 0.4]
    mixed = tiny_model.loss(tokens, Mixer(tiny_layout, adapters).mixed(torch.tensor(weights)))
    whole = merged(adapters, weights, [12] * len(tiny_layout.scales))
    assert mixed == pytest.approx(tiny_model.loss(tokens, tiny_model.weights_of(tiny_layout, whole)), abs=1e-4)


def test_tuning_finds_the_adapter_that_wrote_the_text(tiny_model: Any, tiny_layout: Layout, adapters: Any) -> None:
    from lorareg.compress.progress import Silent
    from lorareg.compress.tasks.few_shot import FewShotConfig, Mixer, tune

    text = written(tiny_model, tiny_layout, adapters[1])
    mixer, start = Mixer(tiny_layout, adapters), np.full(3, 1 / 3)
    config = FewShotConfig(learning_rate=0.1)
    tuned = tune(tiny_model, mixer, start, (text[:6], text[6:]), 24, Silent(), config)
    assert tuned.loss_after < tuned.loss_before
    assert tuned.weights.argmax() == 1
    assert tuned.weights[1] > 0.6
    assert 0 < tuned.steps <= 24
    held = tiny_model.loss(text[6:], mixer.mixed(torch.tensor(tuned.weights, dtype=torch.float32)))
    assert held == pytest.approx(tuned.loss_after, abs=1e-4)


def test_weights_that_only_fit_the_tuning_rows_are_not_kept(
    tiny_model: Any, tiny_layout: Layout, adapters: Any
) -> None:
    from lorareg.compress.progress import Silent
    from lorareg.compress.tasks.few_shot import FewShotConfig, Mixer, tune

    train, held = written(tiny_model, tiny_layout, adapters[0]), written(tiny_model, tiny_layout, adapters[2])
    start, config = np.array([0.0, 0.0, 1.0]), FewShotConfig(learning_rate=0.3, look_every=2, patience=1)
    tuned = tune(tiny_model, Mixer(tiny_layout, adapters), start, (train, held), 24, Silent(), config)
    assert tuned.steps == 0
    assert tuned.weights.tolist() == [0, 0, 1]
    assert tuned.loss_after == tuned.loss_before


# -- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", b"one\ntwo", ["one\ntwo"]),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "two", "id": 2}\n', ["one", "two"]),
        ("a.json", b'["one", " ", "two"]', ["one", "two"]),
    ],
)
def test_every_kind_of_samples_is_read(tmp_path: Path, name: str, data: bytes, texts: list[str]) -> None:
    from lorareg.compress.tasks.samples import read_samples

    (tmp_path / name).write_bytes(data)
    assert read_samples(tmp_path / name) == texts


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.txt", None, "cannot be read"),
        ("a.txt", b" \n", "there is no text in it"),
        ("a.txt", b"\xff\xfe\x00", "it is not valid"),
        ("a.jsonl", b'{"text": "one"}\n{"txt": "two"}', "it is not valid"),
        ("a.jsonl", b"[1]", "it is not valid"),
        ("a.json", b'{"a": 1}', "something else than texts"),
        ("a.json", b"[1, 2]", "something else than texts"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    from lorareg.compress.tasks.samples import read_samples

    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SamplesError, match=words):
        read_samples(tmp_path / name)


def test_rows_are_spread_over_all_of_the_text(tiny_model: Any) -> None:
    from lorareg.compress.tasks.samples import sample_rows, split_rows

    words = " ".join(f"w{1 + i // 128 % 63}" for i in range(128 * 50))
    rows = sample_rows(tiny_model, [words], Path("s.txt"))
    assert rows.shape == (32, 128)
    assert (rows[0, 0], rows[-1, 0]) == (1, 50)
    train, held = split_rows(rows)
    assert (len(train), len(held)) == (24, 8)
    with pytest.raises(SamplesError, match="it has 200 tokens, and at least 512 are needed"):
        sample_rows(tiny_model, ["w1 " * 200], Path("s.txt"))


class Reader:
    """A model that reads words of a list at one nat, and any other character at three."""

    def __init__(self, words: set[str]) -> None:
        self.words = words

    def tokens(self, text: str) -> list[int]:
        pieces: list[int] = []
        for word in text.split(" "):
            pieces += [1] if word in self.words else [3] * len(word)
        return [0, *pieces]

    def loss(self, tokens: np.ndarray) -> float:
        return float(tokens[:, 1:].mean())


def test_text_has_an_order_and_noise_has_none() -> None:
    from lorareg.compress.tasks.samples import expect_text

    model: Any = Reader({"manual", "pages", "printed"})
    expect_text(model, ["manual pages printed " * 30], Path("s.txt"))
    with pytest.raises(SamplesError, match=r"it looks random: the base model needs 2\.\d\d nats a character"):
        expect_text(model, ["xqzv jjkw pplm " * 40], Path("s.txt"))
