"""Adapters in the form that engines take, what engines refuse, and what lint tells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.serving.adapt import Adapted, adapt
from lorareg.compress.serving.engines import ENGINES
from lorareg.compress.serving.lint import RULES, LintFinding, lint_path
from lorareg.registry.errors import ProfileError
from lorareg.registry.peft_format import read_folder

MakeAdapter = Callable[..., Path]
DOCUMENT = Path(__file__).parents[2] / "docs" / "profiles.md"
KEY = "base_model.model.model.layers.0.self_attn.q_proj"
RNG = np.random.default_rng(0)


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


@pytest.fixture
def make(make_adapter: MakeAdapter) -> MakeAdapter:
    """An adapter with trained factors in two layers, of the ranks that are given for q_proj."""

    def build(rank: int = 2, layers: tuple[int, ...] = (0, 1), config: Any = None, tensors: Any = None) -> Path:
        made = {}
        for layer in layers:
            for module, r in (("q_proj", rank), ("v_proj", 2)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                made |= {f"{name}.lora_A.weight": random(r, 6), f"{name}.lora_B.weight": random(8, r)}
        given = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": True, **(config or {})}
        path = make_adapter("task", config=given)
        save_file({**made, **(tensors or {})}, path / "adapter_model.safetensors", {"format": "pt"})
        return path

    return build


def adapted(path: Path, profile: str) -> Adapted:
    folder = read_folder(path)
    weights = (path / "adapter_model.safetensors").read_bytes()
    return adapt(profile, folder.config, folder.layout, weights, "adapter 'task@1'")


def update_as_served(made: Adapted, path: Path, *, rslora: bool) -> dict[str, np.ndarray]:
    """What an engine adds to each weight, by the rule that all three have: one scale from r and lora_alpha."""
    target = path.parent / "served"
    target.mkdir()
    (target / "adapter_model.safetensors").write_bytes(made.weights)
    config = made.config
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if rslora and config.get("use_rslora") else config["r"])
    tensors = load_file(target / "adapter_model.safetensors")
    modules = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    return {m: scale * (tensors[f"{m}.lora_B.weight"] @ tensors[f"{m}.lora_A.weight"]) for m in modules}


def update_of(path: Path) -> dict[str, np.ndarray]:
    folder = read_folder(path)
    factors: tuple[Factors, ...] = read_weights((path / "adapter_model.safetensors").read_bytes(), folder.layout)
    names = [slot.key.removesuffix(".lora_A.weight") for slot in folder.layout.slots[0::2]]
    return {n: s * f.delta for n, s, f in zip(names, folder.layout.scales, factors, strict=True)}


CHANGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": ({}, []),
    "rslora": ({"config": {"use_rslora": True}}, ["rslora"]),
    "alpha_pattern": ({"config": {"alpha_pattern": {"v_proj": 7}}}, ["patterns"]),
    "ranks": ({"rank": 3, "config": {"rank_pattern": {"q_proj": 3}}}, ["patterns", "ranks"]),
    "named-init": ({"config": {"init_lora_weights": "gaussian"}}, ["named-init"]),
    "regex": ({"config": {"target_modules": ".*_proj"}}, ["target-modules"]),
}


@pytest.mark.parametrize("profile", ENGINES)
@pytest.mark.parametrize("name", CHANGED)
def test_an_engine_computes_the_same(name: str, profile: str, make: MakeAdapter) -> None:
    given, changes = CHANGED[name]
    path = make(**given)
    made, engine = adapted(path, profile), ENGINES[profile]
    expected = [change for change in changes if change != "rslora" or not engine.rslora]
    assert list(made.changes) == expected
    served, wanted = update_as_served(made, path, rslora=engine.rslora), update_of(path)
    assert served.keys() == wanted.keys()
    for module, update in wanted.items():
        assert np.allclose(served[module], update, rtol=1e-5, atol=1e-6), module
    assert made.relative_error < 1e-6
    assert isinstance(made.config["target_modules"], list)
    assert made.config["base_model_name_or_path"] == "tiny/base-model"
    if not changes:
        assert made.weights == (path / "adapter_model.safetensors").read_bytes()
        assert made.relative_error == 0


def test_powers_of_two_are_exact(make: MakeAdapter) -> None:
    made = adapted(make(config={"lora_alpha": 8, "alpha_pattern": {"v_proj": 2}}), "sglang")
    assert made.changes == ("patterns",)
    assert made.relative_error == 0
    assert made.config["r"] == made.config["lora_alpha"] == 2


def test_layers_that_lorax_would_drop_are_filled_with_zeros(make: MakeAdapter) -> None:
    path = make(layers=(0, 2))
    made = adapted(path, "lorax")
    assert made.changes == ("some-layers",)
    served = update_as_served(made, path, rslora=True)
    assert {name for name, update in served.items() if not update.any()} == {
        f"base_model.model.model.layers.1.self_attn.{module}" for module in ("q_proj", "v_proj")
    }
    assert adapted(path, "vllm").changes == ()


def test_vllm_is_told_what_it_must_be_started_with(make: MakeAdapter) -> None:
    assert adapted(make(), "vllm").needs == "--max-lora-rank 8"
    assert adapted(make(rank=9, config={"rank_pattern": {"q_proj": 9}}), "vllm").needs == "--max-lora-rank 16"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "opaque": ({"config": {"peft_type": "IA3"}}, "peft_type 'IA3'"),
    "dora": ({"config": {"use_dora": True}}, "use_dora in its config"),
    "saved-modules": ({"config": {"modules_to_save": ["head"]}}, "modules_to_save in its config"),
    "biases": ({"config": {"bias": "lora_only"}}, "bias='lora_only' in its config"),
    "tokens": ({"config": {"trainable_token_indices": [1]}}, "trainable_token_indices in its config"),
    "parameters": ({"config": {"target_parameters": ["w"]}}, "target_parameters in its config"),
    "activated": ({"config": {"alora_invocation_tokens": [1]}}, "alora_invocation_tokens in its config"),
    "replicated": ({"config": {"layer_replication": [[0, 1]]}}, "layer_replication in its config"),
    "changed-base": ({"config": {"init_lora_weights": "pissa_niter_16"}}, "init_lora_weights='pissa_niter_16'"),
    "convolutions": (
        {"tensors": {f"{KEY}.lora_A.weight": random(2, 6, 3, 3), f"{KEY}.lora_B.weight": random(8, 2, 1, 1)}},
        r"lora_A.weight of shape \[2, 6, 3, 3\]",
    ),
    "embeddings": (
        {
            "tensors": {
                "base_model.model.emb.lora_embedding_A": random(2, 9),
                "base_model.model.emb.lora_embedding_B": random(4, 2),
            }
        },
        "emb.lora_embedding_A",
    ),
}


@pytest.mark.parametrize("profile", ENGINES)
@pytest.mark.parametrize("rule", REFUSED)
def test_what_an_engine_cannot_compute_is_refused(rule: str, profile: str, make: MakeAdapter) -> None:
    given, found = REFUSED[rule]
    path, engine = make(**given), ENGINES[profile]
    if rule == "embeddings" and engine.embeddings:
        assert adapted(path, profile).changes == ()
        return
    reason = f"{engine.name} cannot serve adapter 'task@1': it does not support {re.escape(engine.rules[rule].what)}"
    with pytest.raises(ProfileError, match=f"{reason}, and there is .*{found}"):
        adapted(path, profile)


def test_float8_is_refused(make: MakeAdapter) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = make()
    loaded = load_file(path / "adapter_model.safetensors")
    tensors = {key: torch.tensor(value).to(torch.float8_e4m3fn) for key, value in loaded.items()}
    save_torch(tensors, path / "adapter_model.safetensors")
    with pytest.raises(ProfileError, match="of dtype F8_E4M3"):
        adapted(path, "vllm")


def test_a_rank_that_vllm_has_no_room_for_is_refused(make: MakeAdapter) -> None:
    path = make(rank=513, config={"rank_pattern": {"q_proj": 513}})
    with pytest.raises(ProfileError, match="a rank above 512, the largest max_lora_rank, and there is rank 513"):
        adapted(path, "vllm")
    assert adapted(path, "sglang").config["r"] == 513


def test_every_rule_is_tested() -> None:
    rewritten = {change for _, changes in CHANGED.values() for change in changes} | {"some-layers"}
    tested = rewritten | set(REFUSED) | {"rank", "float8"}
    assert {rule for engine in ENGINES.values() for rule in engine.rules} == tested


def test_the_document_lists_the_rules() -> None:
    text = DOCUMENT.read_text()
    for name, engine in ENGINES.items():
        section = text.partition(f"(`--profile {name}`)")[2].partition("\n## ")[0]
        listed = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \| (\w+) \| `(.+?)` \|$", section, re.MULTILINE)
        assert listed == [(rule, found.what, found.action, found.source) for rule, found in engine.rules.items()]
    listed = re.findall(r"^\| ([a-z0-9-]+) \| (error|warning|note) \| (.+?) \|$", text, re.MULTILINE)
    assert listed == [(rule, level, meaning) for rule, (level, meaning) in RULES.items()]


# -- lint ----------------------------------------------------------------------------------------


def rules_of(findings: list[LintFinding]) -> list[str]:
    return [finding.rule for finding in findings]


def zeroed(path: Path, ending: str, *, only: str = "") -> Path:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors = {k: np.zeros_like(v) if k.endswith(ending) and only in k else v for k, v in tensors.items()}
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def changed(path: Path, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({**tensors, key: change(tensors[key])}, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def test_a_good_adapter_has_no_findings(make: MakeAdapter) -> None:
    assert lint_path(make()) == []


B = f"{KEY}.lora_B.weight"
LINTED: dict[str, tuple[Callable[[MakeAdapter], Path], str]] = {
    "cannot-be-read": (lambda make: make(config={"r": 5}), "has rank 2, but adapter_config.json says 5"),
    "not-finite": (lambda make: changed(make(), B, lambda b: b * np.nan), "layers.0.self_attn.q_proj"),
    "has-no-effect": (lambda make: zeroed(make(), "lora_B.weight"), "4 modules of update zero"),
    "dead-modules": (lambda make: zeroed(make(), "lora_A.weight", only="v_proj"), "v_proj"),
    "changes-the-base": (lambda make: make(config={"init_lora_weights": "olora"}), "init_lora_weights='olora'"),
    "target-modules-missing": (lambda make: make(config={"target_modules": None}), "target_modules is None"),
    "target-without-tensors": (lambda make: make(config={"target_modules": ["q_proj", "v_proj", "k_proj"]}), "k_proj"),
    "tensors-without-target": (lambda make: make(config={"target_modules": ["q_proj"]}), "v_proj"),
    "scale-stands-out": (lambda make: changed(make(), B, lambda b: b * 1000), r"q_proj \(\d+ times\)"),
    "overflows-float16": (lambda make: changed(make(), B, lambda b: b * 1e5), "q_proj"),
    "kept-exactly": (lambda make: make(config={"peft_type": "IA3"}), "peft_type is IA3"),
    "not-for-vllm": (lambda make: make(config={"use_dora": True}), "vLLM cannot serve"),
    "not-for-sglang": (lambda make: make(config={"use_dora": True}), "SGLang cannot serve"),
    "not-for-lorax": (lambda make: make(config={"use_dora": True}), "LoRAX cannot serve"),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_finding_is_found(rule: str, make: MakeAdapter) -> None:
    build, words = LINTED[rule]
    found = {finding.rule: finding for finding in lint_path(build(make))}
    assert found[rule].level == RULES[rule][0]
    assert re.search(words, found[rule].found)


def test_engines_are_not_told_of_where_nobody_would_ask_them(make: MakeAdapter) -> None:
    path = make(config={"peft_type": "IA3"})
    assert rules_of(lint_path(path)) == ["kept-exactly"]
    assert rules_of(lint_path(path, "vllm")) == ["not-for-vllm", "kept-exactly"]


def test_shards_are_told_from_other_damage(make: MakeAdapter) -> None:
    path = changed(make(), f"{KEY}.lora_A.weight", lambda a: a[:0])
    (finding,) = lint_path(path)
    assert "its tensors are empty, as ZeRO's shards are" in finding.found


def test_the_engine_that_is_asked_for_is_what_counts(make: MakeAdapter) -> None:
    path = make(config={"use_dora": True})
    assert rules_of(lint_path(path, "vllm")) == ["not-for-vllm"]
    assert lint_path(path, "vllm")[0].level == "error"


def test_findings_do_not_change_the_adapter(make: MakeAdapter) -> None:
    path = make(config={"use_rslora": True})
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    lint_path(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert json.loads(before["adapter_config.json"])["use_rslora"]
