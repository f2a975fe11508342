"""What `adapter_config.json` promises, checked.

The factor by which PEFT multiplies B @ A is found as PEFT finds it (`get_pattern_key` in
`peft/utils/other.py`, `update_layer` in `peft/tuners/lora/layer.py`): `alpha / r`, or
`alpha / sqrt(r)` with rslora, where r and alpha may be set per module by patterns. Unknown fields
are left alone, since the file itself is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from lorareg.registry.errors import InvalidAdapterError, UnsupportedAdapterError
from lorareg.registry.strict_json import parse_json

MAX_RANK = 65536
MAX_BASE_MODEL_CHARS = 512
MAX_PATTERN_CHARS = 256
MAX_PATTERN_QUANTIFIERS = 2
"""A pattern of k quantifiers may take n^(k+1) steps on a name of n characters; it comes from a stranger."""
MAX_PATTERN_MATCHES = 4_000_000

_OPAQUE_FIELDS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
"""Variants of LoRA whose update is not, or not only, the product of two factors."""

_BESIDE_FIELDS = {
    "use_dora": "magnitudes",
    "lora_bias": "biases of factors",
    "modules_to_save": "whole modules",
    "trainable_token_indices": "token embeddings",
    "target_parameters": "bare parameters",
}
"""Fields that announce tensors beside the factors; see `peft_layout`."""

_EDIT_REMEDY = "Correct adapter_config.json, or save the adapter again with PEFT."


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The checked part of an adapter's config. Patterns are in the order in which PEFT tries them."""

    path: Path = field(compare=False)
    base_model: str
    rank: int
    alpha: float
    rslora: bool
    opaque: str  # why it has no factors that can be coded; empty where it has
    beside: frozenset[str]  # kinds of tensors that it may have beside factors
    modules_to_save: tuple[str, ...]
    rank_patterns: tuple[tuple[re.Pattern[str], int], ...]
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...]

    def module_rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return next((rank for pattern, rank in self.rank_patterns if pattern.match(module)), self.rank)

    def scale(self, module: str) -> float:
        """What PEFT multiplies B @ A of a module by."""
        alpha = next((alpha for pattern, alpha in self.alpha_patterns if pattern.match(module)), self.alpha)
        rank = self.module_rank(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def check_matches(self, module_count: int) -> None:
        """Refuse a config that would take minutes to match against the adapter's modules.

        Raises:
            InvalidAdapterError: patterns times modules are too many.
        """
        patterns = len(self.rank_patterns) + len(self.alpha_patterns)
        if patterns * module_count > MAX_PATTERN_MATCHES:
            _refuse(self.path, f"{patterns} patterns for {module_count} modules are too many to match", _EDIT_REMEDY)


def parse_config(path: Path, data: bytes) -> tuple[dict[str, Any], LoraConfig]:
    """Check an adapter_config.json; return all of it, and the part that matters here.

    Raises:
        InvalidAdapterError: it is malformed or incomplete.
        UnsupportedAdapterError: it names no peft_type.
    """
    try:
        config = parse_json(data)
    except ValueError as error:
        raise InvalidAdapterError(path=path, reason=f"it is not valid JSON: {error}", remedy=_EDIT_REMEDY) from error
    if not isinstance(config, dict):
        _refuse(path, f"it holds a {type(config).__name__}, not an object", _EDIT_REMEDY)
    base_model, opaque = _base_model(path, config.get("base_model_name_or_path")), _opaque(path, config)
    if opaque:
        return config, LoraConfig(path, base_model, 0, 0.0, False, opaque, frozenset(), (), (), ())
    return config, _lora_config(path, base_model, config)


def scaling_config(path: Path, fields: Mapping[str, Any]) -> LoraConfig:
    """The config of a LoRA that is kept elsewhere than in a file of its own, for its ranks and scales.

    Raises:
        InvalidAdapterError: it is malformed or incomplete.
    """
    return _lora_config(path, "", fields)


def _lora_config(path: Path, base_model: str, config: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(
        path=path,
        base_model=base_model,
        rank=_rank(path, "r", config.get("r")),
        alpha=_alpha(path, "lora_alpha", config.get("lora_alpha")),
        rslora=_flag(path, "use_rslora", config.get("use_rslora")),
        opaque="",
        beside=_beside(path, config),
        modules_to_save=_names(path, "modules_to_save", config.get("modules_to_save")),
        rank_patterns=tuple(
            (pattern, _rank(path, f"rank_pattern[{pattern.pattern!r}]", value))
            for pattern, value in _patterns(path, "rank_pattern", config.get("rank_pattern"))
        ),
        alpha_patterns=tuple(
            (pattern, _alpha(path, f"alpha_pattern[{pattern.pattern!r}]", value))
            for pattern, value in _patterns(path, "alpha_pattern", config.get("alpha_pattern"))
        ),
    )


def _opaque(path: Path, config: Mapping[str, Any]) -> str:
    """Why nothing in the adapter can be coded; empty for a LoRA."""
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or not re.fullmatch(r"[A-Z0-9_]{1,40}", peft_type):
        raise UnsupportedAdapterError(
            path=path,
            reason=f"peft_type is {str(peft_type)[:40]!r}, not one of PEFT's, such as 'LORA'",
            remedy=_EDIT_REMEDY,
        )
    if peft_type != "LORA":
        return f"peft_type is {peft_type}"
    return next((f"it is {what}" for name, what in _OPAQUE_FIELDS.items() if config.get(name)), "")


def _beside(path: Path, config: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of tensors that the config announces beside the factors."""
    bias = config.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        _refuse(path, f"bias is {str(bias)[:40]!r}, not 'none', 'all' or 'lora_only'", _EDIT_REMEDY)
    announced = {kind for name, kind in _BESIDE_FIELDS.items() if config.get(name)}
    return frozenset({"embedding layers", *announced, *(["biases of layers"] if bias != "none" else [])})


def _names(path: Path, name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        _refuse(path, f"{name} is {str(value)[:40]!r}, not a list of names", _EDIT_REMEDY)
    return tuple(value)


def _base_model(path: Path, value: object) -> str:
    if value is None or value == "":
        _refuse(
            path,
            "base_model_name_or_path is missing, so nothing says which model the adapter is for",
            "Write the base model's name into adapter_config.json.",
        )
    if not isinstance(value, str) or len(value) > MAX_BASE_MODEL_CHARS or not value.isprintable() or not value.strip():
        _refuse(path, f"base_model_name_or_path is {str(value)[:80]!r}, not the name of a model", _EDIT_REMEDY)
    return value


def _rank(path: Path, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        _refuse(path, f"{name} is {str(value)[:40]!r}, not a rank from 1 to {MAX_RANK}", _EDIT_REMEDY)
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 1e-12 <= abs(value) <= 1e12:  # type: ignore[arg-type]
        _refuse(path, f"{name} is {str(value)[:40]!r}, not a number other than zero", _EDIT_REMEDY)
    return float(value)  # type: ignore[arg-type]


def _flag(path: Path, name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        _refuse(path, f"{name} is {str(value)[:40]!r}, not true or false", _EDIT_REMEDY)
    return bool(value)


def _patterns(path: Path, name: str, value: object) -> list[tuple[re.Pattern[str], object]]:
    if value is None:
        return []
    if not isinstance(value, dict):
        _refuse(path, f"{name} is a {type(value).__name__}, not an object", _EDIT_REMEDY)
    return [(_compile(path, name, pattern), item) for pattern, item in value.items()]


def _compile(path: Path, name: str, text: str) -> re.Pattern[str]:
    quantifiers = len(re.findall(r"[*+?{]", text))
    if len(text) > MAX_PATTERN_CHARS or quantifiers > MAX_PATTERN_QUANTIFIERS or re.search(r"[)][*+?{]", text):
        _refuse(path, f"{name} has the pattern {text[:80]!r}, which could take for ever to match", _EDIT_REMEDY)
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError) as error:
        raise InvalidAdapterError(
            path=path,
            reason=f"{name} has the pattern {text[:80]!r}, which is not a regular expression: {error}",
            remedy=_EDIT_REMEDY,
        ) from error


def _refuse(path: Path, reason: str, remedy: str) -> NoReturn:
    raise InvalidAdapterError(path=path, reason=reason, remedy=remedy)
