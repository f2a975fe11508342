"""The serving engines, and what each refuses or would get wrong, from its own source.

A rule either has lorareg rewrite the adapter so that the engine computes the same, or refuse it. `docs/profiles.md`
lists the rules with where they stand; a test compares the two. Engines move: each rule names the file it was read in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Action = Literal["rewritten", "refused"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that an engine does not do."""

    what: str  # of an adapter
    action: Action
    source: str  # file in the engine's repository


@dataclass(frozen=True, slots=True)
class Engine:
    """A serving engine."""

    name: str
    repository: str
    rules: Mapping[str, Rule]
    embeddings: bool = False  # whether it takes lora_embedding_A and _B, and embedding layers saved beside them
    rslora: bool = False  # whether it knows use_rslora
    most_rank: int | None = None
    every_layer: bool = False  # whether a module must be adapted in every layer, or in none


def _common(config: str, weights: str) -> dict[str, Rule]:
    """What none of the engines does, with the files that read the config and the weights."""
    return {
        "opaque": Rule("a peft_type other than LORA, or a variant that is no product of factors", "refused", config),
        "dora": Rule("DoRA magnitudes (use_dora)", "refused", config),
        "saved-modules": Rule("whole modules (modules_to_save)", "refused", config),
        "biases": Rule("trained biases (bias, lora_bias)", "refused", weights),
        "tokens": Rule("trained token embeddings (trainable_token_indices)", "refused", weights),
        "parameters": Rule("LoRA on bare parameters (target_parameters)", "refused", weights),
        "convolutions": Rule("factors of convolutions", "refused", weights),
        "float8": Rule("factors in 8-bit floats", "refused", weights),
        "activated": Rule("aLoRA, on from its invocation tokens onwards (alora_invocation_tokens)", "refused", config),
        "replicated": Rule("layers that are there several times (layer_replication)", "refused", config),
        "changed-base": Rule("an initialisation that changes the base model (pissa, olora, ...)", "refused", config),
        "named-init": Rule("another initialisation with a name (gaussian, eva, orthogonal)", "rewritten", config),
        "patterns": Rule("ranks and alphas of single modules (rank_pattern, alpha_pattern)", "rewritten", config),
        "ranks": Rule("factors of several ranks", "rewritten", weights),
        "target-modules": Rule("no target_modules, or a regular expression in their place", "rewritten", config),
    }


_VLLM = ("vllm/lora/peft_helper.py", "vllm/lora/lora_model.py")
_SGLANG = ("python/sglang/srt/lora/lora_config.py", "python/sglang/srt/lora/lora.py")
_LORAX = ("server/lorax_server/adapters/lora.py", "server/lorax_server/adapters/lora.py")

ENGINES: dict[str, Engine] = {
    "vllm": Engine(
        "vLLM",
        "vllm-project/vllm",
        _common(*_VLLM)
        | {"rank": Rule("a rank above 512, the largest max_lora_rank", "refused", "vllm/config/lora.py")},
        embeddings=True,
        rslora=True,
        most_rank=512,
    ),
    "sglang": Engine(
        "SGLang",
        "sgl-project/sglang",
        _common(*_SGLANG)
        | {
            "embeddings": Rule("factors of embeddings", "refused", _SGLANG[1]),
            "rslora": Rule("a scale of alpha / sqrt(r) (use_rslora)", "rewritten", _SGLANG[1]),
        },
    ),
    "lorax": Engine(
        "LoRAX",
        "predibase/lorax",
        _common(*_LORAX)
        | {
            "embeddings": Rule("factors of embeddings", "refused", _LORAX[1]),
            "some-layers": Rule("a module adapted in some layers only, which it drops in all", "rewritten", _LORAX[1]),
        },
        rslora=True,
        every_layer=True,
    ),
}

PEFT = "peft"
PROFILES = (PEFT, *ENGINES)

CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "milora")
"""Starts of the values of init_lora_weights with which PEFT changes the base model too."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be."""


def model_name(name_or_path: str) -> str:
    """What a model is called, whether its name or its path is given: the last part, in lower case.

    Of a folder in Hugging Face's cache (models--OWNER--NAME/snapshots/REVISION) it is NAME.
    """
    parts = [part for part in re.split(r"[/\\]+", name_or_path.strip()) if part]
    cached = next((part for part in reversed(parts) if part.startswith("models--")), None)
    return (cached.rpartition("--")[2] if cached else parts[-1] if parts else "").lower()


def is_same_model(first: str, second: str) -> bool:
    """Whether two names or paths may be of one model; a name that is empty is of none."""
    return bool(model_name(first)) and model_name(first) == model_name(second)
