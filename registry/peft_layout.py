"""PEFT's names for tensors: factors of linear layers, embeddings and convolutions, and what is saved beside them.

PEFT loads with strict=False, so a tensor it does not know passes silently there. Here each must be a
factor, or one of the kinds that adapter_config.json announces:

| kind | tensors | announced by |
|---|---|---|
| magnitudes (DoRA) | `….lora_magnitude_vector` | use_dora |
| biases of layers | `….bias` | bias |
| biases of factors | `….lora_B.bias` | lora_bias |
| whole modules | all below the module | modules_to_save |
| token embeddings | `….trainable_tokens_delta` | trainable_token_indices |
| bare parameters | factors of other ranks than the config's | target_parameters |
| embedding layers | `embed_tokens`, `lm_head`: saved when they are targeted or the vocabulary was resized | always |

What is no plain LoRA (another peft_type, or a variant whose update is not the product of two factors) has
no factors for us: all its tensors are kept as they are, whatever their names.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lorareg.registry.errors import InvalidAdapterError, UnsupportedAdapterError
from lorareg.registry.layouts import expect_pair, is_product, make_layout, split_tensors
from lorareg.registry.peft_config import LoraConfig
from lorareg.registry.safetensors_header import Header, TensorInfo
from lorareg.registry.types import CONFIG_FILE, WEIGHTS_FILE, Factor, Layout

KEY_PREFIX = "base_model.model."

_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?P<weight>\.weight)?")
_EMBEDDING_LAYER = re.compile(r"(?:.+\.)?(?:embed_tokens|lm_head)(?:\.base_layer)?\.(?:weight|bias)")


@lru_cache(maxsize=8)  # two milliseconds, and the adapters of a cohort share it
def peft_layout(header: Header, lora: LoraConfig) -> Layout:
    """Pair up the tensors and check each against the config.

    Raises:
        InvalidAdapterError: factors are missing, empty, or of another rank than the config says.
        UnsupportedAdapterError: the config does not announce a tensor.
    """
    path = lora.path.with_name(WEIGHTS_FILE)
    if lora.opaque:
        return make_layout({}, {}, header.tensors)
    modules, others = split_tensors(path, header.tensors, _factor)
    lora.check_matches(len(modules))
    scales = {}
    for module, factors in list(modules.items()):
        rank = expect_pair(path, module, factors)
        if rank != lora.module_rank(module) and "bare parameters" not in lora.beside:
            reason = f"module {module} has rank {rank}, but {CONFIG_FILE} says {lora.module_rank(module)}"
            remedy = f"Correct {CONFIG_FILE}, or save the adapter again."
            raise InvalidAdapterError(path=path, reason=reason, remedy=remedy)
        if rank != lora.module_rank(module) or not is_product(factors):
            others += modules.pop(module).values()
        else:
            scales[module] = lora.scale(module)
    for tensor in others:
        _expect_announced(tensor, lora, path)
    return make_layout(modules, scales, others)


def _factor(name: str) -> tuple[str, Factor] | None:
    match = _FACTOR.fullmatch(name)
    if not match or bool(match["weight"]) == ("lora_embedding_" in name):
        return None
    return match["module"], "A" if match["factor"] == "A" else "B"


def _expect_announced(tensor: TensorInfo, lora: LoraConfig, path: object) -> None:
    kind = _kind(tensor.name, lora)
    if kind == "a factor" or kind in lora.beside:
        return
    if kind is None:
        reason = (
            f"tensor {tensor.name} is not a LoRA factor ({KEY_PREFIX}….lora_A.weight), nor what PEFT saves beside them"
        )
        remedy = "PEFT would skip it without a word; take it out, or save the adapter again."
    else:
        reason = f"tensor {tensor.name} is one of the {kind}, which {CONFIG_FILE} does not announce"
        remedy = f"Correct {CONFIG_FILE}, or save the adapter again with PEFT."
    raise UnsupportedAdapterError(path=path, reason=reason, remedy=remedy)


def _kind(name: str, lora: LoraConfig) -> str | None:
    """What a tensor that is not coded is; None for nothing that PEFT knows."""
    if _factor(name) is not None:
        return "a factor"
    if not name.startswith(KEY_PREFIX):
        return None
    rest = name.removeprefix(KEY_PREFIX)
    if any(f".{module}." in f".{rest}" for module in lora.modules_to_save):
        return "whole modules"
    if _EMBEDDING_LAYER.fullmatch(rest):
        return "embedding layers"
    for ending, kind in (
        (".lora_magnitude_vector", "magnitudes"),
        (".lora_magnitude_vector.weight", "magnitudes"),
        (".lora_B.bias", "biases of factors"),
        (".bias", "biases of layers"),
        (".trainable_tokens_delta", "token embeddings"),
    ):
        if rest.endswith(ending):
            return kind
    return None
