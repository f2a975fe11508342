"""PEFT folders: finding them, and deciding from headers and config alone whether to take one in.

`read_folder` reads no weights. `verify_copy` runs on the staged copy, so that what was checked is
what is kept even if the folder is being written to: the same header again, and finite weights.

Taken from a folder are the files named in `types` and no others; links and FIFOs are refused, hard
links are ordinary files (their content is copied), pickles are refused unread.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorareg.registry.card import card_description
from lorareg.registry.errors import InvalidAdapterError, UnsupportedAdapterError
from lorareg.registry.files import read_capped
from lorareg.registry.names import natural_key
from lorareg.registry.peft_config import LoraConfig, parse_config
from lorareg.registry.safetensors_header import Header, TensorInfo, read_header
from lorareg.registry.strict_json import parse_json
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EVAL_FILE,
    EVAL_SUMMARY_FILE,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    Layout,
    Slot,
    sha256_hex,
)

PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
KEY_PREFIX = "base_model.model."
MAX_FILE_BYTES = {
    CONFIG_FILE: 1 << 20,
    CARD_FILE: 1 << 20,
    SAMPLES_FILE: 16 << 20,
    EVAL_SUMMARY_FILE: 1 << 20,
    EVAL_FILE: 64 << 20,
}

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_EXPONENT_MASK = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_CHECK_BYTES = 1 << 20
_SAVE_REMEDY = "Save the adapter again with PEFT."


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file to take in. `sha256` is of the bytes that were validated, None where only the header was read."""

    path: str
    max_bytes: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """A folder that may be ingested, as its headers and config describe it."""

    path: Path
    config: dict[str, Any]
    base_model: str
    layout: Layout
    rank: int  # the largest, where patterns give modules different ranks
    description: str
    header: Header
    files: tuple[FolderFile, ...]


def find_adapters(path: Path) -> list[Path]:
    """Folders at or under `path` that hold adapter files, in natural order; broken ones are among them.

    Hidden folders and links to folders are not entered; a folder that cannot be listed counts as
    found, so that reading it reports why.

    Raises:
        InvalidAdapterError: `path` is not a folder.
    """
    if not path.is_dir():
        reason = "it is not a folder" if path.exists() else "there is no such folder"
        raise InvalidAdapterError(path=path, reason=reason, remedy="Name a PEFT folder, or a folder that holds some.")
    return sorted(_walk(path), key=lambda found: natural_key(found.as_posix()))


def read_folder(path: Path) -> PeftFolder:
    """Validate a PEFT folder from its config and headers, without reading weights.

    Raises:
        InvalidAdapterError: something in it is malformed, missing or unsafe.
        UnsupportedAdapterError: it is something other than a plain LoRA in safetensors format.
    """
    present = _present_files(path)
    config_data = read_capped(path / CONFIG_FILE, MAX_FILE_BYTES[CONFIG_FILE])
    config, lora = parse_config(path / CONFIG_FILE, config_data)
    header = read_header(path / WEIGHTS_FILE)
    layout = _layout(header, lora)
    files = [FolderFile(WEIGHTS_FILE, None, None), _validated(CONFIG_FILE, config_data)]
    description = ""
    for name in (CARD_FILE, SAMPLES_FILE, EVAL_SUMMARY_FILE):
        if name in present:
            data = read_capped(path / name, MAX_FILE_BYTES[name])
            text = _check_sidecar(path / name, data)
            description = card_description(text) if name == CARD_FILE else description
            files.append(_validated(name, data))
    if EVAL_FILE in present:
        read_header(path / EVAL_FILE, MAX_FILE_BYTES[EVAL_FILE])
        files.append(FolderFile(EVAL_FILE, MAX_FILE_BYTES[EVAL_FILE], None))
    rank = max(slot.shape[0] for slot in layout.slots if slot.factor == "A")
    return PeftFolder(path, config, lora.base_model, layout, rank, description, header, tuple(files))


def verify_copy(folder: PeftFolder, file: FolderFile, copy: Path, sha256: str) -> None:
    """Check the staged copy of one of the folder's files: same as validated, and weights finite.

    Raises:
        InvalidAdapterError: the file changed since `read_folder`, or a weight is NaN or infinite.
    """
    is_weights = file.path == WEIGHTS_FILE
    changed = not _has_header(copy, folder.header) if is_weights else file.sha256 not in (None, sha256)
    if changed:
        raise InvalidAdapterError(
            path=folder.path / file.path, reason="it changed while it was read", remedy="Ingest it when it is finished."
        )
    if file.path == EVAL_FILE:
        read_header(copy)
    if is_weights:
        broken = _first_not_finite(copy, folder.header)
        if broken:
            raise InvalidAdapterError(
                path=folder.path / file.path,
                reason=f"tensor {broken} has weights that are NaN or infinite",
                remedy="The training run diverged; ingest an earlier checkpoint.",
            )


def _walk(top: Path) -> Iterator[Path]:
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError:
            yield folder
            continue
        if {entry.name for entry in listed} & {CONFIG_FILE, WEIGHTS_FILE, *PICKLE_FILES}:
            yield folder
        folders = (entry for entry in listed if entry.is_dir(follow_symlinks=False))
        waiting += [Path(entry.path) for entry in folders if not entry.name.startswith(".")]


def _present_files(path: Path) -> set[str]:
    try:
        present = set(os.listdir(path))
    except OSError as error:
        raise InvalidAdapterError(
            path=path, reason=f"it cannot be listed ({error.strerror})", remedy="Check that it is there and permitted."
        ) from error
    if WEIGHTS_FILE not in present:
        pickled = next((name for name in PICKLE_FILES if name in present), None)
        if pickled:
            raise UnsupportedAdapterError(
                path=path / pickled,
                reason="it is a pickle, which can run code when it is read",
                remedy=f"Load it with PEFT where you trust it and save_pretrained() it, which writes {WEIGHTS_FILE}.",
            )
        raise InvalidAdapterError(path=path, reason=f"{WEIGHTS_FILE} is missing", remedy=_SAVE_REMEDY)
    if CONFIG_FILE not in present:
        raise InvalidAdapterError(path=path, reason=f"{CONFIG_FILE} is missing", remedy=_SAVE_REMEDY)
    return present


def _validated(name: str, data: bytes) -> FolderFile:
    return FolderFile(name, MAX_FILE_BYTES[name], sha256_hex(data))


def _check_sidecar(path: Path, data: bytes) -> str:
    """The sidecar's text; samples must be a list of texts and the summary an object."""
    try:
        if path.name == CARD_FILE:
            return data.decode("utf-8")
        value = parse_json(data)
    except ValueError as error:
        raise InvalidAdapterError(
            path=path, reason=f"it is not valid: {error}", remedy="Correct it or take it out."
        ) from error
    if path.name == SAMPLES_FILE:
        expected, right = "a list of texts", isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        expected, right = "an object", isinstance(value, dict)
    if not right:
        raise InvalidAdapterError(path=path, reason=f"it is not {expected}", remedy="Correct it or take it out.")
    return ""


@lru_cache(maxsize=8)  # two milliseconds, and the adapters of a cohort share it
def _layout(header: Header, lora: LoraConfig) -> Layout:
    """Pair up the tensors and check each pair against the config."""
    path = lora.path.with_name(WEIGHTS_FILE)
    modules: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        module, factor = _module_and_factor(path, tensor)
        modules.setdefault(module, {})[factor] = tensor
    lora.check_matches(len(modules))
    slots, scales = [], []
    for module in sorted(modules, key=natural_key):
        _check_pair(path, module, modules[module], lora)
        for factor, tensor in sorted(modules[module].items()):
            shape = (tensor.shape[0], tensor.shape[1])
            slots.append(Slot(module, "A" if factor == "A" else "B", shape, tensor.dtype, tensor.name))
        scales.append(lora.scale(module))
    return Layout(tuple(slots), tuple(scales))


def _module_and_factor(path: Path, tensor: TensorInfo) -> tuple[str, str]:
    match = _KEY.fullmatch(tensor.name)
    if not match:
        raise UnsupportedAdapterError(
            path=path,
            reason=f"tensor {tensor.name} is not a LoRA factor of a linear layer ({KEY_PREFIX}….lora_A.weight)",
            remedy="Only plain LoRA is supported yet: merge or retrain without it.",
        )
    if tensor.dtype not in _EXPONENT_MASK:
        raise UnsupportedAdapterError(
            path=path,
            reason=f"tensor {tensor.name} has dtype {tensor.dtype}, not one of {', '.join(_EXPONENT_MASK)}",
            remedy="Convert the adapter to one of them and save it again.",
        )
    if len(tensor.shape) != 2:
        raise UnsupportedAdapterError(
            path=path,
            reason=f"tensor {tensor.name} has shape {list(tensor.shape)}; only LoRA on linear layers is supported yet",
            remedy="Merge it, or retrain without that layer.",
        )
    return match["module"], match["factor"]


def _check_pair(path: Path, module: str, factors: dict[str, TensorInfo], lora: LoraConfig) -> None:
    if len(factors) == 1:
        (present,) = factors
        reason = f"module {module} has lora_{present} but no lora_{'B' if present == 'A' else 'A'}"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    a, b = factors["A"], factors["B"]
    if 0 in (*a.shape, *b.shape):
        raise InvalidAdapterError(path=path, reason=f"module {module} has no weights", remedy=_SAVE_REMEDY)
    if a.shape[0] != b.shape[1]:
        reason = f"module {module} has rank {a.shape[0]} in lora_A but {b.shape[1]} in lora_B"
        raise InvalidAdapterError(path=path, reason=reason, remedy=_SAVE_REMEDY)
    if a.shape[0] != lora.module_rank(module):
        reason = f"module {module} has rank {a.shape[0]}, but {CONFIG_FILE} says {lora.module_rank(module)}"
        raise InvalidAdapterError(path=path, reason=reason, remedy=f"Correct {CONFIG_FILE}, or save the adapter again.")


def _has_header(path: Path, header: Header) -> bool:
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        return size_bytes == header.body_offset + header.body_bytes and (
            sha256_hex(file.read(header.body_offset)) == header.sha256
        )


def _first_not_finite(path: Path, header: Header) -> str | None:
    """The first tensor with a NaN or infinity, found by an exponent of all ones."""
    import numpy as np

    def is_finite(dtype: str, start: int, stop: int) -> bool:
        unsigned, mask = _EXPONENT_MASK[dtype]
        for begin in range(start, stop, _CHECK_BYTES):
            piece = body[begin : min(stop, begin + _CHECK_BYTES)]
            if int((np.frombuffer(piece, unsigned) & mask).max()) == mask:
                return False
        return True

    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[header.body_offset :] as body,
    ):
        dtypes = {tensor.dtype for tensor in header.tensors}
        if len(dtypes) == 1 and is_finite(dtypes.pop(), 0, header.body_bytes):
            return None
        return next((t.name for t in header.tensors if not is_finite(t.dtype, t.start, t.stop)), None)
