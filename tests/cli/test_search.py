"""Finding tasks, and describing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry.store import Registry

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT as a sentence-transformers folder."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    raw, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("sentences")
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "Spanish": 4, "Dutch": 5, "German": 6, "Rust": 7}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(raw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=64)).save_pretrained(raw)
    body = Transformer(str(raw))
    SentenceTransformer(modules=[body, Pooling(16)], device="cpu").save(str(folder))
    return folder


def test_search_by_words(run: Run, home: Path) -> None:
    found = run("search", "manual pages in dutch", "--home", home, "--json").data
    assert found["encoder"] == "text"
    assert found["adapters"][0]["ref"] == "man-nl@1"
    assert len(found["adapters"]) == 3
    assert run("search", "rusty", "-n", "1", "-q", "--home", home).out == "src-rust@1\n"
    assert "Rust standard library" in run("search", "rust", "--home", home).out


def test_search_by_sentences(run: Run, home: Path, sentence_model: Path) -> None:
    described = run("describe", "--sentences", sentence_model, "--home", home, "--json").data
    assert described["encoder"].startswith("sentence:16-")
    assert {one["vector"] for one in described["adapters"]} == {"new"}
    again = run("describe", "--sentences", sentence_model, "--home", home, "--json").data
    assert {one["vector"] for one in again["adapters"]} == {"same"}
    found = run("search", "Continue Unix manual pages written in Dutch.", "--home", home, "--json").data
    assert found["encoder"] == described["encoder"]
    assert run("search", "Dutch", "--by", "text", "--home", home, "--json").data["encoder"] == "text"
    vectors = run("show", "man-nl", "--home", home, "--json").data["task_vectors"]
    assert [(one["encoder"], one["size"]) for one in vectors] == [(described["encoder"], 16)]


def test_a_new_description_drops_vectors_of_the_old_one(run: Run, home: Path, sentence_model: Path) -> None:
    run("describe", "--home", home)
    run("describe", "--sentences", sentence_model, "--home", home)
    assert run("describe", "man-nl", "--text", " Dutch \n poems ", "--home", home).exit_code == 0
    shown = run("show", "man-nl", "--home", home, "--json").data
    assert shown["description"] == "Dutch poems"
    assert [one["encoder"] for one in shown["task_vectors"]] == ["text:hashed-128-1"]
    run("search", "Dutch", "--home", home)  # makes the one that is missing
    with Registry.open(home, create=False) as registry:
        assert len(registry.task_vectors(registry.adapter("man-nl").id)) == 2


def test_describing_by_words(run: Run, home: Path) -> None:
    data = run("describe", "man-de", "--home", home, "--json").data
    assert data["encoder"] == "text:hashed-128-1"
    assert data["adapters"] == [
        {"ref": "man-de@1", "vector": "new", "description": "Continue Unix manual pages written in German."}
    ]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("search", " "), 6, "There is nothing to look for"),
        (("search", "x", "--by", "sentences"), 13, "no sentence model was given yet"),
        (("describe", "--text", "x"), 6, "--text describes one task: name it"),
        (("describe", "--sentences", "no-such-package"), 13, "Base model no-such-package: there is no sentence"),
        (("describe", "nobody"), 4, "No adapter 'nobody'"),
        (("describe", "--sentences", "x", "--base-model", "y"), 2, "takes a run of its own"),
    ],
)
def test_what_is_refused(run: Run, home: Path, arguments: tuple[str, ...], exit_code: int, words: str) -> None:
    result = run(*arguments, "--home", home)
    assert (result.exit_code, words in result.err) == (exit_code, True), result.err


def test_no_adapters_and_no_model_any_more(run: Run, home: Path, tmp_path: Path) -> None:
    Registry.open(tmp_path / "empty", create=True).close()
    assert "There are no adapters in" in run("search", "x", "--home", tmp_path / "empty").err
    with Registry.open(home, create=False) as registry:
        registry.remember("sentence_model", str(tmp_path / "gone"))
    assert "gone: it is not there any more" in run("search", "x", "--home", home).err


def test_sentences_are_an_extra(run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    result = run("describe", "--sentences", tmp_path, "--home", home)
    assert result.exit_code == 7
    assert "lorareg[sentences]" in result.err


def test_a_folder_that_is_no_model(run: Run, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("[")
    result = run("describe", "--sentences", tmp_path, "--home", home)
    assert (result.exit_code, "it does not load" in result.err) == (13, True)


def test_a_model_that_brings_code_of_its_own(run: Run, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]')
    result = run("describe", "--sentences", tmp_path, "--home", home)
    assert (result.exit_code, "names 'os.system', which is code from elsewhere" in result.err) == (13, True)
