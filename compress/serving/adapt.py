"""Bringing an adapter into the form that an engine takes, so that it computes the same.

Where an engine has one scale and one rank for all modules, scales go into B and ranks are filled up with zeros:
alpha becomes the rank, so that the engine's alpha / r is 1. A product of a weight and a scale is rounded once, to
the weights' own dtype, and what that changed is measured; a power of two changes nothing. What cannot be computed
by the engine is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lorareg.compress.factors.fidelity import measure
from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.compress.serving.engines import CHANGE_THE_BASE, ENGINES, VLLM_RANKS, Engine
from lorareg.registry.errors import ProfileError
from lorareg.registry.types import Layout, Slot

_REMEDIES = {
    "opaque": "Merge it into the base model, or serve it with PEFT.",
    "changed-base": "Convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...).",
    "rank": "Cut it to a smaller rank, or merge it.",
}
_USUAL_REMEDY = "Merge it into the base model, or use --profile peft with a program that runs PEFT."
_EXTRAS = (
    ("dora", r".*\.lora_magnitude_vector(\.weight)?"),
    ("biases", r".*\.(lora_B\.)?bias"),
    ("tokens", r".*\.trainable_tokens_delta"),
    ("embeddings", r"(.*\.)?(embed_tokens|lm_head)(\.base_layer)?\.(weight|bias)"),
    ("parameters", r".*\.lora_[AB]\.weight"),
)
_FIELDS = (
    ("dora", "use_dora"),
    ("saved-modules", "modules_to_save"),
    ("biases", "lora_bias"),
    ("tokens", "trainable_token_indices"),
    ("parameters", "target_parameters"),
    ("activated", "alora_invocation_tokens"),
    ("replicated", "layer_replication"),
)


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter as an engine takes it."""

    config: dict[str, Any]
    weights: bytes
    changes: tuple[str, ...]  # what was rewritten, as rules of the engine
    relative_error: float  # of ΔW, from rounding; 0 where it is the same
    needs: str  # what the server must be started with; empty for nothing


def adapt(profile: str, config: Mapping[str, Any], layout: Layout, weights: bytes, what: str) -> Adapted:
    """An adapter in the form that an engine takes.

    Args:
        profile: a name in `engines.ENGINES`.
        config: its adapter_config.json.
        layout: of its cohort.
        weights: its weights file.
        what: how errors name it.

    Raises:
        ProfileError: the engine cannot compute what the adapter does.
    """
    engine = ENGINES[profile]
    _expect_servable(engine, config, layout, what)
    modules, ranks = read_weights(weights, layout), [slot.shape[0] for slot in layout.slots[0::2]]
    rank, changes = max(ranks), []
    if engine.most_rank is not None and rank > engine.most_rank:
        _refuse(engine, "rank", what, f"rank {rank}")
    written = dict(config)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in ("true", "false"):
        changes.append("named-init")
        written["init_lora_weights"] = True
    for rule, is_there in (
        ("patterns", config.get("rank_pattern") or config.get("alpha_pattern")),
        ("rslora", config.get("use_rslora") and not engine.rslora),
        ("ranks", len(set(ranks)) > 1),
    ):
        if is_there:
            changes.append(rule)
    scales = layout.scales
    if {"patterns", "rslora", "ranks"} & set(changes) or len(set(scales)) > 1:
        written |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
        modules = tuple(_filled(_scaled(factors, scale), rank) for factors, scale in zip(modules, scales, strict=True))
        scales = (1.0,) * len(scales)
    named = sorted({module.rsplit(".", 1)[-1] for module in layout.modules})
    if not _is_list_of_names(config.get("target_modules")):
        changes.append("target-modules")
        written["target_modules"] = named
    slots = [_resized(slot, rank) for slot in layout.slots] if len(set(ranks)) > 1 else list(layout.slots)
    if engine.every_layer:
        added = _missing(slots)
        if added:
            changes.append("some-layers")
            slots += added
            modules = (*modules, *_zeros(added))
            scales = (*scales, *[scales[0]] * (len(added) // 2))
    form = Layout(tuple(slots), tuple(scales))
    output = write_weights(form, modules) if _is_rewritten(changes, layout, scales) else weights
    return Adapted(written, output, tuple(changes), _rounding(layout, weights, form, output), _needs(engine, rank))


def _expect_servable(engine: Engine, config: Mapping[str, Any], layout: Layout, what: str) -> None:
    """Refuse what the engine cannot compute.

    Raises:
        ProfileError: with the field or tensor that stands against it.
    """
    if config.get("peft_type") != "LORA" or not layout.slots:
        _refuse(engine, "opaque", what, f"peft_type {config.get('peft_type')!r}")
    for rule, name in _FIELDS:
        if config.get(name):
            _refuse(engine, rule, what, f"{name} in its config")
    if config.get("bias") not in (None, "none"):
        _refuse(engine, "biases", what, f"bias={config['bias']!r} in its config")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGE_THE_BASE):
        _refuse(engine, "changed-base", what, f"init_lora_weights={init!r} in its config")
    for extra in layout.extras:
        rule = next((rule for rule, pattern in _EXTRAS if re.fullmatch(pattern, extra.key)), "saved-modules")
        if rule != "embeddings" or not engine.embeddings:
            _refuse(engine, rule, what, f"tensor {extra.key}")
    for slot in layout.slots:
        if slot.file_shape:
            _refuse(engine, "convolutions", what, f"tensor {slot.key} of shape {list(slot.file_shape)}")
        if slot.dtype.startswith("F8"):
            _refuse(engine, "float8", what, f"tensor {slot.key} of dtype {slot.dtype}")
        if "lora_embedding_" in slot.key and not engine.embeddings:
            _refuse(engine, "embeddings", what, f"tensor {slot.key}")


def _refuse(engine: Engine, rule: str, what: str, found: str) -> NoReturn:
    remedy = _REMEDIES.get(rule, _USUAL_REMEDY)
    raise ProfileError(what=what, engine=engine.name, reason=engine.rules[rule].what, found=found, remedy=remedy)


def _scaled(factors: Factors, scale: float) -> Factors:
    return Factors(b=factors.b * scale, a=factors.a)


def _filled(factors: Factors, rank: int) -> Factors:
    """The same product with factors of a larger rank."""
    missing = rank - factors.rank
    return Factors(b=np.pad(factors.b, ((0, 0), (0, missing))), a=np.pad(factors.a, ((0, missing), (0, 0))))


def _resized(slot: Slot, rank: int) -> Slot:
    shape = (rank, slot.shape[1]) if slot.factor == "A" else (slot.shape[0], rank)
    return Slot(slot.module, slot.factor, shape, slot.dtype, slot.key)


def _missing(slots: Sequence[Slot]) -> list[Slot]:
    """Slots of zeros for each module in the layers where it is not adapted, up to the last layer seen."""
    numbered = {slot.key: re.fullmatch(r"(.*?\blayers\.)(\d+)(\..+)", slot.key) for slot in slots}
    layers = {int(match[2]) for match in numbered.values() if match}
    present, added = {slot.key for slot in slots}, []
    for slot in slots:
        match = numbered[slot.key]
        for layer in range(max(layers, default=-1) + 1) if match else ():
            assert match is not None
            key = f"{match[1]}{layer}{match[3]}"
            if key not in present:
                present.add(key)
                module = re.sub(r"(\blayers\.)\d+", rf"\g<1>{layer}", slot.module, count=1)
                added.append(Slot(module, slot.factor, slot.shape, slot.dtype, key))
    return sorted(added, key=lambda slot: (slot.module, slot.factor))


def _zeros(slots: Sequence[Slot]) -> list[Factors]:
    pairs = zip(slots[0::2], slots[1::2], strict=True)
    return [Factors(a=np.zeros(a.shape), b=np.zeros(b.shape)) for a, b in pairs]


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_rewritten(changes: Sequence[str], layout: Layout, scales: Sequence[float]) -> bool:
    return tuple(scales) != layout.scales or bool({"ranks", "some-layers"} & set(changes))


def _rounding(layout: Layout, before: bytes, form: Layout, after: bytes) -> float:
    """The relative error of ΔW that rewriting made."""
    if before is after:
        return 0.0
    known = {module: index for index, module in enumerate(form.modules)}
    restored = read_weights(after, form)
    scaled = [_scaled(f, s) for f, s in zip(read_weights(before, layout), layout.scales, strict=True)]
    kept = [_scaled(restored[known[m]], form.scales[known[m]]) for m in layout.modules]
    rank = max(factors.rank for factors in kept)
    plain = Layout(layout.slots, (1.0,) * len(layout.scales))
    found = measure(plain, [_filled(factors, rank) for factors in scaled], kept)
    return found.relative_error


def _needs(engine: Engine, rank: int) -> str:
    if engine.name != "vLLM":
        return ""
    return f"--max-lora-rank {next(allowed for allowed in VLLM_RANKS if allowed >= rank)}"
