"""What is taken in, what is refused, and why."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lorareg.registry import files as files_module
from lorareg.registry import peft_config
from lorareg.registry.errors import InvalidAdapterError, LoraregError, UnsupportedAdapterError
from lorareg.registry.files import read_capped
from lorareg.registry.peft_config import parse_config
from lorareg.registry.peft_format import find_adapters, read_folder
from lorareg.registry.types import Layout

MakeAdapter = Callable[..., Path]
KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_a_real_adapter(sample_adapters: Path) -> None:
    folder = read_folder(sample_adapters / "man-nl")
    assert folder.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert folder.rank == 2
    assert folder.description == "Continue Unix manual pages written in Dutch."
    assert [slot.factor for slot in folder.layout.slots[:4]] == ["A", "B", "A", "B"]
    assert folder.layout.modules[:3] == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.q_proj",
    )
    assert folder.layout.modules[-1] == "model.layers.29.self_attn.v_proj"
    assert set(folder.layout.scales) == {2.0}
    assert {file.path for file in folder.files} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md",
        "samples.json", "eval.safetensors", "eval.json",
    }  # fmt: skip


@pytest.mark.shared
def test_every_shared_adapter_reads(shared_adapters: Path) -> None:
    found = find_adapters(shared_adapters)
    assert len(found) > 30
    assert {slot.dtype for path in found for slot in read_folder(path).layout.slots} == {"F32", "BF16"}


def test_find_adapters(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    for name in ("t10", "t2", "nested/run/step-5", ".hidden/x"):
        make_adapter(name)
    broken = tmp_path / "adapters" / "broken"
    broken.mkdir()
    (broken / "adapter_model.bin").write_bytes(b"")
    (tmp_path / "adapters" / "loop").symlink_to(tmp_path / "adapters")
    found = [path.relative_to(tmp_path / "adapters").as_posix() for path in find_adapters(tmp_path / "adapters")]
    assert found == ["broken", "nested/run/step-5", "t2", "t10"]
    assert find_adapters(broken) == [broken]


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "no such folder"), ("file", "neither a folder nor")])
def test_find_adapters_needs_a_folder(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidAdapterError, match=reason):
        find_adapters(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    assert find_adapters(tmp_path) == [tmp_path]
    with pytest.raises(InvalidAdapterError, match=r"cannot be listed .Permission denied"):
        read_folder(tmp_path)


def test_scales_follow_patterns_as_in_peft(make_adapter: MakeAdapter) -> None:
    path = make_adapter(
        config={"rank_pattern": {"^nothing": 7, "self_attn.q_proj": 2}, "alpha_pattern": {r".*v_proj": 10}, "r": 2}
    )
    assert read_folder(path).layout.scales == (2.0, 5.0)
    path = make_adapter("rs", config={"use_rslora": True})
    assert read_folder(path).layout.scales == (4 / math.sqrt(2),) * 2


@pytest.mark.slow  # importing peft imports torch
def test_patterns_match_what_peft_matches() -> None:
    other = pytest.importorskip("peft.utils.other")
    for pattern in ("q_proj", "attn.q_proj", "tn.q_proj", "^model.q_proj", r"layers\.[01].*proj", ".*q_proj", "proj"):
        compiled = peft_config._compile(Path("x"), "rank_pattern", pattern)
        for module in ("model.q_proj", "model.attn.q_proj", "layers.1.q_proj", "xq_proj", "q_proj.x"):
            assert bool(compiled.match(module)) == (other.get_pattern_key([pattern], module) == pattern)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": 7}, "not the name of a model"),
        ({"base_model_name_or_path": "a\nb"}, "not the name of a model"),
        ({"base_model_name_or_path": "x" * 600}, "not the name of a model"),
        ({"r": 0}, "r is '0'"),
        ({"r": True}, "r is 'True'"),
        ({"r": None}, "r is 'None'"),
        ({"r": 3}, "has rank 2, but adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank 2, but adapter_config.json says 4"),
        ({"lora_alpha": 0}, "lora_alpha is '0'"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 10**400}, "lora_alpha is '1000"),
        ({"use_rslora": 1}, "use_rslora is '1'"),
        ({"rank_pattern": []}, "rank_pattern is a list"),
        ({"rank_pattern": {"q": "x"}}, r"rank_pattern\[.*is 'x'"),
        ({"alpha_pattern": {"q": None}}, r"alpha_pattern\[.*is 'None'"),
        ({"rank_pattern": {"(": 2}}, "not a regular expression"),
        ({"rank_pattern": {"(a+)+$": 2}}, "could take for ever"),
        ({"rank_pattern": {".*.*.*x": 2}}, "could take for ever"),
        ({"alpha_pattern": {"x" * 300: 2}}, "could take for ever"),
    ],
)
def test_bad_configs_are_refused(make_adapter: MakeAdapter, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidAdapterError, match=reason) as caught:
        read_folder(make_adapter(config=config))
    assert caught.type is InvalidAdapterError


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"peft_type": "A_TYPE_OF_TOMORROW"}, "peft_type is A_TYPE_OF_TOMORROW"),
        ({"use_qalora": True}, "it is QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "it is block-diagonal LoRA"),
        ({"kasa_config": {}, "monteclora_config": {"a": 1}}, "it is MonteCLoRA"),
    ],
)
def test_what_is_no_plain_lora_has_nothing_to_code(
    make_adapter: MakeAdapter, config: dict[str, Any], reason: str
) -> None:
    plain, folder = read_folder(make_adapter("plain")), read_folder(make_adapter("other", config=config))
    assert folder.opaque == reason
    assert folder.layout.slots == ()
    assert [extra.key for extra in folder.layout.extras] == sorted(slot.key for slot in plain.layout.slots)
    assert folder.layout.body_bytes == plain.layout.body_bytes
    assert Layout.from_json(folder.layout.to_json()) == folder.layout


@pytest.mark.parametrize("value", [None, 7, "ia3", "", "X" * 50])
def test_a_config_without_a_type_is_refused(make_adapter: MakeAdapter, value: object) -> None:
    with pytest.raises(UnsupportedAdapterError, match=re.escape(f"peft_type is {str(value)[:40]!r}, not one of")):
        read_folder(make_adapter(config={"peft_type": value}))


@pytest.mark.parametrize(
    ("config", "tensor", "kind"),
    [
        ({"use_dora": True}, f"{KEY}.lora_magnitude_vector", "magnitudes"),
        ({"bias": "lora_only"}, f"{KEY}.bias", "biases of layers"),
        ({"lora_bias": True}, f"{KEY}.lora_B.bias", "biases of factors"),
        ({"trainable_token_indices": [1]}, "base_model.model.emb.trainable_tokens_delta", "token embeddings"),
    ],
)
def test_what_the_config_announces_is_kept_beside_the_factors(
    make_adapter: MakeAdapter, config: dict[str, Any], tensor: str, kind: str
) -> None:
    folder = read_folder(make_adapter(config=config, tensors={tensor: zeros(8)}))
    assert [extra.key for extra in folder.layout.extras] == [tensor]
    assert len(folder.layout.slots) == 4
    assert not folder.layout.is_linear
    with pytest.raises(UnsupportedAdapterError, match=f"{re.escape(tensor)} is one of the {kind}, which adapter"):
        read_folder(make_adapter("unannounced", tensors={tensor: zeros(8)}))


def test_modules_to_save_and_embedding_layers_are_kept(make_adapter: MakeAdapter) -> None:
    saved, heads = "base_model.model.score.out.weight", "base_model.model.lm_head.base_layer.weight"
    config = {"modules_to_save": ["score"]}
    folder = read_folder(make_adapter(config=config, tensors={saved: zeros(2, 2), heads: zeros(3, 2)}))
    assert [extra.key for extra in folder.layout.extras] == [heads, saved]
    with pytest.raises(InvalidAdapterError, match="modules_to_save is 'score', not a list of names"):
        read_folder(make_adapter("text", config={"modules_to_save": "score"}))


def test_bare_parameters_have_ranks_of_their_own(make_adapter: MakeAdapter) -> None:
    tensors = {f"{KEY}.lora_A.weight": zeros(6, 6), f"{KEY}.lora_B.weight": zeros(8, 6)}
    folder = read_folder(make_adapter(config={"target_parameters": ["experts.w"]}, tensors=tensors))
    assert sorted(extra.key for extra in folder.layout.extras) == sorted(tensors)
    assert len(folder.layout.slots) == 2


def test_convolutions_and_embeddings_are_matrices(make_adapter: MakeAdapter) -> None:
    tensors = {
        f"{KEY}.lora_A.weight": zeros(2, 3, 5, 5),
        f"{KEY}.lora_B.weight": zeros(8, 2, 1, 1),
        "base_model.model.emb.lora_embedding_A": zeros(2, 9),
        "base_model.model.emb.lora_embedding_B": zeros(4, 2),
    }
    layout = read_folder(make_adapter(tensors=tensors)).layout
    slots = {slot.key: slot for slot in layout.slots}
    assert slots[f"{KEY}.lora_A.weight"].shape == (2, 75)
    assert slots[f"{KEY}.lora_A.weight"].file_shape == (2, 3, 5, 5)
    assert slots["base_model.model.emb.lora_embedding_A"].shape == (2, 9)
    assert not layout.extras
    assert not layout.is_linear
    assert Layout.from_json(layout.to_json()) == layout


def test_a_bias_that_peft_does_not_know_is_refused(make_adapter: MakeAdapter) -> None:
    with pytest.raises(InvalidAdapterError, match="bias is 'some', not 'none', 'all' or 'lora_only'"):
        read_folder(make_adapter(config={"bias": "some"}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", "holds a list"),
        (b"{", "not valid JSON"),
        (b'{"r": NaN}', "NaN is not a JSON number"),
        (b'{"r": 1, "r": 2}', "'r' comes twice"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested deeper"),
        (b" " * ((1 << 20) + 1), "more than the 1048576 allowed"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\ud800": 1}', "lone surrogate"),
    ],
)
def test_hostile_config_files_are_refused(make_adapter: MakeAdapter, data: bytes, reason: str) -> None:
    path = make_adapter()
    (path / "adapter_config.json").write_bytes(data)
    with pytest.raises(InvalidAdapterError, match=reason):
        read_folder(path)


def test_too_many_patterns_are_refused(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_config, "MAX_PATTERN_MATCHES", 3)
    with pytest.raises(InvalidAdapterError, match="2 patterns for 2 modules are too many"):
        read_folder(make_adapter(width=9, config={"rank_pattern": {"a": 2, "b": 2}}))


@pytest.mark.parametrize(
    ("tensors", "error", "reason"),
    [
        ({f"{KEY}.lora_A.weight": zeros(3, 6)}, InvalidAdapterError, "rank 3 in lora_A but 2 in lora_B"),
        ({f"{KEY}.lora_A.weight": zeros(0, 6)}, InvalidAdapterError, "has no weights"),
        ({"base_model.model.x.lora_A.weight": zeros(2, 6)}, InvalidAdapterError, "x has lora_A but no lora_B"),
        ({"base_model.model.x.lora_B.weight": zeros(6, 2)}, InvalidAdapterError, "x has lora_B but no lora_A"),
        ({"base_model.model.score.weight": zeros(2, 2)}, UnsupportedAdapterError, "score.weight is not a LoRA factor"),
        ({"base_model.model.e.lora_embedding_A": zeros(2, 9)}, InvalidAdapterError, "e has lora_A but no lora_B"),
        ({"q.lora_A.weight": zeros(2, 6)}, UnsupportedAdapterError, "q.lora_A.weight is not a LoRA"),
        ({f"{KEY}.lora_A.weight": zeros()}, InvalidAdapterError, r"factors of shape \[\] and \[8, 2\], which are no"),
    ],
)
def test_bad_tensors_are_refused(
    make_adapter: MakeAdapter, tensors: dict[str, np.ndarray], error: type[LoraregError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        read_folder(make_adapter(tensors=tensors))


def test_missing_files(make_adapter: MakeAdapter) -> None:
    path = make_adapter()
    (path / "adapter_config.json").unlink()
    with pytest.raises(InvalidAdapterError, match=r"adapter_config.json is missing"):
        read_folder(path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidAdapterError, match=r"adapter_model.safetensors is missing"):
        read_folder(path)


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_refused_unread(make_adapter: MakeAdapter) -> None:
    path = make_adapter()
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(UnsupportedAdapterError, match=r"adapter_model.bin: it is a pickle.*save_pretrained"):
        read_folder(path)
    (path / "adapter_model.bin").rename(path / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapterError, match=r"pickle .PyTorch. file with a safetensors name"):
        read_folder(path)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "README.md", "samples.json", "eval.safetensors"]
)
def test_links_and_fifos_are_refused(make_adapter: MakeAdapter, tmp_path: Path, name: str) -> None:
    path = make_adapter()
    target = tmp_path / "target"
    target.write_bytes(b"{}")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(target)
    with pytest.raises(InvalidAdapterError, match="symbolic link"):
        read_folder(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(InvalidAdapterError, match="not a regular file"):
        read_folder(path)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("README.md", b"\xff\xfe", "README.md: it is not valid"),
        ("README.md", b"x" * ((1 << 20) + 1), "more than the 1048576 allowed"),
        ("samples.json", b"{}", "not a list of texts"),
        ("samples.json", b"[1]", "not a list of texts"),
        ("samples.json", b"[", "samples.json: it is not valid"),
        ("eval.json", b"[]", "not an object"),
        ("eval.safetensors", b"nonsense", "should have"),
    ],
)
def test_bad_sidecars_are_refused(make_adapter: MakeAdapter, name: str, data: bytes, reason: str) -> None:
    path = make_adapter()
    (path / name).write_bytes(data)
    with pytest.raises(InvalidAdapterError, match=reason):
        read_folder(path)


def test_other_files_are_left_alone(make_adapter: MakeAdapter) -> None:
    path = make_adapter(card=None)
    (path / "optimizer.pt").write_bytes(pickle.dumps(Canary()))
    folder = read_folder(path)
    assert [file.path for file in folder.files] == ["adapter_model.safetensors", "adapter_config.json"]
    assert folder.description == ""


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    monkeypatch.setattr(files_module, "open_regular", lambda path, max_bytes: path.open("rb"))
    with pytest.raises(InvalidAdapterError, match="it grew while it was read"):
        read_capped(tmp_path / "x", 4)


def test_layers_come_in_natural_order_whatever_the_file_says(make_adapter: MakeAdapter) -> None:
    modules = ("model.layers.10.q", "model.layers.9.q", "model.layers.1.q")
    assert read_folder(make_adapter(modules=modules)).layout.modules == modules[::-1]


def test_mixed_dtypes_are_kept(make_adapter: MakeAdapter) -> None:
    path = make_adapter(tensors={f"{KEY}.lora_A.weight": zeros(2, 6, dtype=np.float16)})
    assert [slot.dtype for slot in read_folder(path).layout.slots] == ["F16", "F32", "F32", "F32"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_flipped_byte_reads_or_is_refused(tmp_path: Path, position: int, value: int) -> None:
    path = tmp_path / "fuzzed"
    path.mkdir(exist_ok=True)
    weights = {f"{KEY}.lora_A.weight": zeros(2, 6), f"{KEY}.lora_B.weight": zeros(8, 2)}
    save_file(weights, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "b", "r": 2, "lora_alpha": 4, "rank_pattern": {"v.*": 2}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        data = bytearray((path / name).read_bytes())
        data[position % len(data)] = value
        (path / name).write_bytes(data)
    with suppress(InvalidAdapterError):
        read_folder(path)


@given(st.binary(max_size=100))
def test_any_config_bytes_parse_or_are_refused(data: bytes) -> None:
    with suppress(InvalidAdapterError):
        parse_config(Path("adapter_config.json"), data)
