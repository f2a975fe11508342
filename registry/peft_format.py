"""Adapters on disk: finding them, and deciding from headers and config alone whether to take one in.

`read_adapter` reads no weights but single numbers. `verify_copy` runs on the staged copy, so that what was checked is
what is kept even if the folder is being written to: the same header again, and finite weights.

Taken from a folder are the files named in `types` and no others; links and FIFOs are refused, hard
links are ordinary files (their content is copied), pickles are refused unread.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorareg.registry.card import card_description
from lorareg.registry.errors import InvalidAdapterError, UnsupportedAdapterError
from lorareg.registry.files import read_capped
from lorareg.registry.names import natural_key
from lorareg.registry.peft_config import parse_config
from lorareg.registry.peft_layout import peft_layout
from lorareg.registry.safetensors_header import Header, read_header
from lorareg.registry.single_file import (
    alpha_names,
    base_model_of,
    dump_record,
    format_of,
    format_record,
    is_file_name,
    read_scalars,
    single_file_layout,
)
from lorareg.registry.strict_json import parse_json
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    EVAL_FILE,
    EVAL_SUMMARY_FILE,
    LONE_SUFFIX,
    PICKLE_FILES,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    Layout,
    sha256_hex,
)

NO_ALPHAS: Mapping[str, float] = MappingProxyType({})
MAX_FILE_BYTES = {
    CONFIG_FILE: 1 << 20,
    CARD_FILE: 1 << 20,
    SAMPLES_FILE: 16 << 20,
    EVAL_SUMMARY_FILE: 1 << 20,
    EVAL_FILE: 64 << 20,
}

_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),  # this one has no infinity, and one NaN
}
"""The bits that a NaN or infinity has set, all of them."""

_CHECK_BYTES = 1 << 20
_SAVE_REMEDY = "Save the adapter again with PEFT."


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file to take in. `sha256` is of the bytes that were validated, None where only the header was read."""

    path: str  # what the adapter's file is called in the registry
    source: Path
    max_bytes: int | None
    sha256: str | None
    data: bytes | None = None  # of a file that is made up for the adapter


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """A folder that may be ingested, as its headers and config describe it."""

    path: Path
    config: dict[str, Any]
    base_model: str
    layout: Layout
    rank: int  # the largest, where patterns give modules different ranks; 0 without factors
    description: str
    header: Header
    files: tuple[FolderFile, ...]
    opaque: str  # why it has no factors that can be coded; empty where it has
    alphas: Mapping[str, float]  # what scales were worked out from, where that is in the weights file


def find_adapters(path: Path) -> list[Path]:
    """Folders and lone files at or under `path` that are adapters, in natural order; broken ones are among them.

    Hidden folders and links to folders are not entered; a folder that cannot be listed counts as
    found, so that reading it reports why.

    Raises:
        InvalidAdapterError: `path` is neither a folder nor a safetensors file.
    """
    if path.is_file() and path.suffix == LONE_SUFFIX:
        return [path]
    if not path.is_dir():
        reason = "it is neither a folder nor a safetensors file" if path.exists() else "there is no such folder"
        raise InvalidAdapterError(path=path, reason=reason, remedy="Name a PEFT folder, or a folder that holds some.")
    return sorted(_walk(path), key=lambda found: natural_key(found.as_posix()))


def read_adapter(path: Path, base_model: str | None = None) -> PeftFolder:
    """Validate an adapter, a PEFT folder or a lone file. Raises what `read_folder` and `read_lone_file` raise."""
    return read_lone_file(path, base_model) if path.suffix == LONE_SUFFIX and not path.is_dir() else read_folder(path)


def read_lone_file(path: Path, base_model: str | None = None) -> PeftFolder:
    """Validate a lone file: of diffusers or kohya-ss, or of PEFT with its config beside it.

    A config is looked for as NAME.json, NAME.config.json and adapter_config.json, in that order. A card beside the
    file counts where the file has the name that diffusers gives.

    Args:
        path: the file.
        base_model: what a file of diffusers or kohya-ss was trained on, where neither header nor card says it.

    Raises:
        InvalidAdapterError: something in it is malformed or missing, or its names are in no known format.
        UnsupportedAdapterError: it holds tensors that the config does not announce.
    """
    header = read_header(path)
    form = format_of(header)
    if form is None:
        return _read_with_sidecar(path, header)
    if not is_file_name(path.name):
        reason = f"{path.name!r} is not a name that every system can give back"
        remedy = "Rename it: letters, digits, spaces, dots and -_()+=@."
        raise InvalidAdapterError(path=path, reason=reason, remedy=remedy)
    alphas = read_scalars(path, header, alpha_names(header))
    layout = single_file_layout(path, header, form, alphas)
    files, description, card = [FolderFile(WEIGHTS_FILE, path, None, None)], "", ""
    beside = path.with_name(CARD_FILE)
    if path.name == DIFFUSERS_FILE and beside.is_file():
        data = read_capped(beside, MAX_FILE_BYTES[CARD_FILE])
        card = _check_sidecar(beside, data)
        description = card_description(card)
        files.append(_validated(beside, data))
    config = format_record(form, path.name, base_model_of(path, header, card, base_model))
    files.append(FolderFile(CONFIG_FILE, path, None, None, dump_record(config)))
    opaque = "" if layout.slots else f"no tensor of it is a factor of LoRA as {form} writes them"
    name = config["base_model_name_or_path"]
    return PeftFolder(
        path, config, name, layout, _rank(layout), description, header, tuple(files), opaque, MappingProxyType(alphas)
    )


def _read_with_sidecar(path: Path, header: Header) -> PeftFolder:
    """A file of PEFT under a name of its own."""
    names = (f"{path.stem}.json", f"{path.stem}.config.json", CONFIG_FILE)
    beside = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if beside is None:
        reason = f"its tensors have names of neither diffusers nor kohya-ss, and no config is beside it ({names[0]})"
        remedy = f"Put PEFT's {CONFIG_FILE} beside it."
        raise InvalidAdapterError(path=path, reason=reason, remedy=remedy)
    data = read_capped(beside, MAX_FILE_BYTES[CONFIG_FILE])
    config, lora = parse_config(beside, data)
    layout = peft_layout(header, lora)
    files = (FolderFile(WEIGHTS_FILE, path, None, None), FolderFile(CONFIG_FILE, beside, None, sha256_hex(data)))
    return PeftFolder(path, config, lora.base_model, layout, _rank(layout), "", header, files, lora.opaque, NO_ALPHAS)


def read_folder(path: Path) -> PeftFolder:
    """Validate a PEFT folder from its config and headers, without reading weights.

    Raises:
        InvalidAdapterError: something in it is malformed, missing or unsafe.
        UnsupportedAdapterError: it is a pickle, or holds tensors that its config does not announce.
    """
    present = _present_files(path)
    config_data = read_capped(path / CONFIG_FILE, MAX_FILE_BYTES[CONFIG_FILE])
    config, lora = parse_config(path / CONFIG_FILE, config_data)
    header = read_header(path / WEIGHTS_FILE)
    layout = peft_layout(header, lora)
    files = [FolderFile(WEIGHTS_FILE, path / WEIGHTS_FILE, None, None), _validated(path / CONFIG_FILE, config_data)]
    description = ""
    for name in (CARD_FILE, SAMPLES_FILE, EVAL_SUMMARY_FILE):
        if name in present:
            data = read_capped(path / name, MAX_FILE_BYTES[name])
            text = _check_sidecar(path / name, data)
            description = card_description(text) if name == CARD_FILE else description
            files.append(_validated(path / name, data))
    if EVAL_FILE in present:
        read_header(path / EVAL_FILE, MAX_FILE_BYTES[EVAL_FILE])
        files.append(FolderFile(EVAL_FILE, path / EVAL_FILE, MAX_FILE_BYTES[EVAL_FILE], None))
    return PeftFolder(
        path, config, lora.base_model, layout, _rank(layout), description, header, tuple(files), lora.opaque, NO_ALPHAS
    )


def verify_copy(folder: PeftFolder, file: FolderFile, copy: Path, sha256: str) -> None:
    """Check the staged copy of one of the folder's files: same as validated, and weights finite.

    Raises:
        InvalidAdapterError: the file changed since `read_folder`, or a weight is NaN or infinite.
    """
    is_weights = file.path == WEIGHTS_FILE
    if is_weights:
        scalars = tuple(tensor for tensor in folder.header.tensors if tensor.name in folder.alphas)
        changed = not _has_header(copy, folder.header) or read_scalars(copy, folder.header, scalars) != folder.alphas
    else:
        changed = file.sha256 not in (None, sha256)
    if changed:
        raise InvalidAdapterError(
            path=file.source, reason="it changed while it was read", remedy="Ingest it when it is finished."
        )
    if file.path == EVAL_FILE:
        read_header(copy)
    if is_weights:
        broken = _first_not_finite(copy, folder.header)
        if broken:
            raise InvalidAdapterError(
                path=file.source,
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
        names = {entry.name for entry in listed}
        if names & {CONFIG_FILE, WEIGHTS_FILE, *PICKLE_FILES}:
            yield folder
        elif DIFFUSERS_FILE in names:
            yield folder / DIFFUSERS_FILE
        else:
            files = (Path(entry.path) for entry in listed if entry.is_file(follow_symlinks=False))
            yield from (path for path in files if path.suffix == LONE_SUFFIX and _is_lone_adapter(path))
        folders = (entry for entry in listed if entry.is_dir(follow_symlinks=False))
        waiting += [Path(entry.path) for entry in folders if not entry.name.startswith(".")]


def _is_lone_adapter(path: Path) -> bool:
    """Whether a file found on the way is worth a word: not a base model, say, but a broken one of a LoRA's name."""
    try:
        return format_of(read_header(path)) is not None
    except InvalidAdapterError:
        return "lora" in path.name.lower()


def _rank(layout: Layout) -> int:
    return max((slot.shape[0] for slot in layout.slots if slot.factor == "A"), default=0)


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


def _validated(path: Path, data: bytes) -> FolderFile:
    return FolderFile(path.name, path, MAX_FILE_BYTES[path.name], sha256_hex(data))


def _check_sidecar(path: Path, data: bytes) -> str:
    """The sidecar's text; samples must be a list of texts and the summary an object."""
    try:
        if path.name == CARD_FILE:  # its text alone is of use
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
        unsigned, mask = _NOT_FINITE[dtype]
        for begin in range(start, stop, _CHECK_BYTES):
            piece = body[begin : min(stop, begin + _CHECK_BYTES)]
            if ((np.frombuffer(piece, unsigned) & mask) == mask).any():
                return False
        return True

    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[header.body_offset :] as body,
    ):
        dtypes = {tensor.dtype for tensor in header.tensors}
        if (
            len(dtypes) == 1
            and dtypes <= _NOT_FINITE.keys()
            and is_finite(header.tensors[0].dtype, 0, header.body_bytes)
        ):
            return None
        floats = (tensor for tensor in header.tensors if tensor.dtype in _NOT_FINITE)
        return next((t.name for t in floats if not is_finite(t.dtype, t.start, t.stop)), None)
