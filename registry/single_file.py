"""LoRA files that stand alone, as diffusers and kohya-ss write them: one safetensors file, no config beside it.

    diffusers  unet.….lora_A.weight, .lora_B.weight; older .lora.down.weight, .lora.up.weight
               alpha from `lora_adapter_metadata` in the header, as in a config of PEFT, else from tensors ….alpha
    kohya      lora_unet_….lora_down.weight, .lora_up.weight; alpha from tensors ….alpha

Where nothing gives alpha, it is the rank, so the scale is 1. All other tensors (alphas, `dora_scale`, the
factors of LoHa and LoKr, `lora_mid`) are extras. The base model is what the header, else a card beside the file, names.
What takes the place of a config in the registry is a record of the format and of the file's name.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lorareg.registry.card import card_base_model
from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.layouts import expect_pair, is_product, make_layout, split_tensors
from lorareg.registry.peft_config import MAX_BASE_MODEL_CHARS, LoraConfig, scaling_config
from lorareg.registry.safetensors_header import Header, TensorInfo
from lorareg.registry.strict_json import parse_json
from lorareg.registry.types import DIFFUSERS_FILE, Factor, Layout

Format = Literal["diffusers", "kohya"]

DIFFUSERS_METADATA = "lora_adapter_metadata"

_COMPONENT = r"(?:unet|transformer(?:_\d)?|text_encoder(?:_\d)?|prior|controlnet|text_model|diffusion_model|model)"
_DIFFUSERS = re.compile(
    rf"(?P<module>{_COMPONENT}\..+?)(?:\.lora_(?P<ab>[AB])|[._]lora\.(?P<way>down|up)|\.lora_linear_layer\.(?P<old>down|up))\.weight"
)
_KOHYA = re.compile(r"(?P<module>lora_[A-Za-z0-9]+_.+)\.(?:lora_(?P<way>down|up)|lora_(?P<ab>[AB]))\.weight")
_KOHYA_NAME = re.compile(r"lora_(?:unet|te\d?|transformer|prior)_.+")
_FACTOR_OF: dict[str, Factor] = {"down": "A", "up": "B", "A": "A", "B": "B"}
_BASE_MODEL_FIELDS = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture")
_SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}
_REMEDY = "Save it again, from the program that trained it."


def format_of(header: Header) -> Format | None:
    """The format of a lone LoRA file; None where its names are nobody's."""
    names = [tensor.name for tensor in header.tensors]
    if any(_KOHYA_NAME.fullmatch(name) for name in names):
        return "kohya"
    if any(_DIFFUSERS.fullmatch(name) for name in names):
        return "diffusers"
    return None


def alpha_names(header: Header) -> tuple[TensorInfo, ...]:
    """The tensors that say an alpha."""
    return tuple(tensor for tensor in header.tensors if tensor.name.endswith(".alpha") and math.prod(tensor.shape) == 1)


def read_scalars(path: Path, header: Header, tensors: tuple[TensorInfo, ...]) -> dict[str, float]:
    """The values of tensors of one item.

    Raises:
        InvalidAdapterError: one has a dtype that no alpha has, or is zero or not finite.
    """
    values = {}
    with open(path, "rb") as file:
        for tensor in tensors:
            file.seek(header.body_offset + tensor.start)
            data = file.read(tensor.stop - tensor.start)
            value = math.nan
            if tensor.dtype == "BF16" and len(data) == 2:
                (value,) = struct.unpack("<f", b"\0\0" + data)
            elif tensor.dtype in _SCALARS and len(data) == struct.calcsize(_SCALARS[tensor.dtype]):
                (value,) = struct.unpack(_SCALARS[tensor.dtype], data)
            if not math.isfinite(value) or value == 0:
                reason = f"tensor {tensor.name} is an alpha of {value} ({tensor.dtype}), not a number other than zero"
                raise InvalidAdapterError(path=path, reason=reason, remedy=_REMEDY)
            values[tensor.name] = float(value)
    return values


def single_file_layout(path: Path, header: Header, form: Format, alphas: Mapping[str, float]) -> Layout:
    """The layout of a lone file.

    Raises:
        InvalidAdapterError: a factor is missing or empty, or ranks differ.
    """
    modules, others = split_tensors(path, header.tensors, _kohya_factor if form == "kohya" else _diffusers_factor)
    names = {tensor.name for tensor in others}
    configs = _component_configs(path, header) if form == "diffusers" else {}
    scales = {}
    for module, factors in list(modules.items()):
        rank = expect_pair(path, module, factors)
        if not is_product(factors) or f"{module}.lora_mid.weight" in names:
            others += modules.pop(module).values()
            continue
        component, _, rest = module.partition(".")
        if component in configs:
            scales[module] = configs[component].scale(rest)
        else:
            scales[module] = alphas.get(f"{module}.alpha", float(rank)) / rank
    return make_layout(modules, scales, others)


def base_model_of(path: Path, header: Header, card: str, given: str | None) -> str:
    """The base model of a lone file: as given, else as its header or its card says.

    Raises:
        InvalidAdapterError: nothing says it.
    """
    metadata = dict(header.metadata)
    fields = _adapter_metadata(path, metadata)
    named = [value for key, value in fields.items() if key.endswith(".base_model_name_or_path")]
    candidates = [given, *named, *(metadata.get(name) for name in _BASE_MODEL_FIELDS), card_base_model(card)]
    for value in candidates:
        if isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= MAX_BASE_MODEL_CHARS:
            return value
    raise InvalidAdapterError(
        path=path,
        reason="neither its header nor a card says which model it is for",
        remedy="Name the model: `lorareg ingest --base-model NAME`.",
    )


def format_record(form: Format, file_name: str, base_model: str) -> dict[str, Any]:
    """What stands where a PEFT folder has its config. It has no peft_type, which every PEFT config has."""
    return {"base_model_name_or_path": base_model, "lorareg_format": {"file": file_name, "name": form}}


def file_name_of(config: Mapping[str, Any]) -> str | None:
    """The name that a lone file goes by, from its format record; None for a PEFT config."""
    record = config.get("lorareg_format")
    if "peft_type" in config or not isinstance(record, dict):
        return None
    name = record.get("file")
    return name if isinstance(name, str) and is_file_name(name) else DIFFUSERS_FILE


def is_file_name(name: str) -> bool:
    """Whether a file may be given back under this name: nothing that a shell or another system would trip over."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. ()+=@-]{0,180}\.safetensors", name)) and ".." not in name


def _kohya_factor(name: str) -> tuple[str, Factor] | None:
    match = _KOHYA.fullmatch(name)
    return (match["module"], _FACTOR_OF[match["way"] or match["ab"]]) if match else None


def _diffusers_factor(name: str) -> tuple[str, Factor] | None:
    match = _DIFFUSERS.fullmatch(name)
    return (match["module"], _FACTOR_OF[match["ab"] or match["way"] or match["old"]]) if match else None


def _component_configs(path: Path, header: Header) -> dict[str, LoraConfig]:
    """The config of each component that the header has one of."""
    fields: dict[str, dict[str, Any]] = {}
    for key, value in _adapter_metadata(path, dict(header.metadata)).items():
        component, dot, name = key.partition(".")
        if dot:
            fields.setdefault(component, {})[name] = value
    return {component: scaling_config(path, config) for component, config in fields.items() if "r" in config}


def _adapter_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(DIFFUSERS_METADATA)
    if text is None:
        return {}
    try:
        found = parse_json(text.encode())
    except ValueError as error:
        reason = f"{DIFFUSERS_METADATA} in its header is not valid JSON: {error}"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_REMEDY) from error
    if not isinstance(found, dict):
        reason = f"{DIFFUSERS_METADATA} in its header is a {type(found).__name__}, not an object"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_REMEDY)
    return found


def dump_record(record: Mapping[str, Any]) -> bytes:
    """A format record as the bytes that are stored."""
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
