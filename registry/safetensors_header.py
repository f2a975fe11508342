"""The safetensors header, read more strictly than the reference reader.

    offset          size    what
    0               8       n, the header's length, unsigned little-endian
    8               n       JSON object: tensor name -> {dtype, shape, data_offsets}, and __metadata__
    8 + n           ...     the tensors, back to back in the order of their offsets

safetensors 0.8 accepts duplicate names, empty names, and names such as `../../x`; here a file
means one thing or is refused. Nothing is allocated before its size was checked against the file's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.files import open_regular
from lorareg.registry.strict_json import parse_json
from lorareg.registry.types import DTYPE_BYTES, sha256_hex

MAX_HEADER_BYTES = 16 << 20
"""Room for 100,000 tensors: ten times the largest adapters known, a sixth of the format's own cap."""

MAX_NDIM = 8
MAX_NAME_CHARS = 512

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:+=@ -]*[A-Za-z0-9_])?")
_REMEDY = "Save it again with safetensors, from the program that made it."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its bytes are [start, stop) of the file's body."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header: tensors in offset order, and where the file's body starts.

    `sha256` is over the first `body_offset` bytes of the file, so that a copy can be recognised.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: tuple[tuple[str, str], ...]
    body_offset: int
    body_bytes: int
    sha256: str


def read_header(path: Path, max_bytes: int | None = None) -> Header:
    """Read and validate the header of a safetensors file, leaving its body alone.

    Raises:
        InvalidAdapterError: the file is not one that every reader would understand alike.
    """
    with open_regular(path, max_bytes) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            return parse_header(_header_bytes(file, size_bytes), size_bytes)
        except ValueError as error:
            raise InvalidAdapterError(path=path, reason=str(error), remedy=_REMEDY) from error


@lru_cache(maxsize=8)  # the adapters of a cohort mostly have the same header, byte for byte
def parse_header(header: bytes, size_bytes: int) -> Header:
    """Validate a header's JSON against the size of the whole file.

    Raises:
        ValueError: it is malformed, or does not describe a file of that size.
    """
    try:
        fields = parse_json(header)
    except ValueError as error:
        raise ValueError(f"the header is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"the header is a {type(fields).__name__}, not an object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the header's __metadata__ does not map text to text")
    tensors = tuple(sorted((_tensor(name, entry) for name, entry in fields.items()), key=lambda t: (t.start, t.stop)))
    if not tensors:
        raise ValueError("it holds no tensors")
    body_offset = 8 + len(header)
    _check_cover(tensors, size_bytes - body_offset)
    digest = sha256_hex(len(header).to_bytes(8, "little") + header)
    return Header(tensors, tuple(sorted(metadata.items())), body_offset, size_bytes - body_offset, digest)


def _header_bytes(file: BinaryIO, size_bytes: int) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ValueError(f"it has {size_bytes} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > size_bytes - 8:
        if prefix.startswith(_PICKLE_STARTS):
            raise ValueError("it is a pickle (PyTorch) file with a safetensors name, and pickles can run code")
        raise ValueError(f"the header should have {length} bytes, but the file has only {size_bytes}")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    header = file.read(length)
    if len(header) < length:
        raise ValueError("it was cut short while it was read")
    return header


def _tensor(name: str, entry: Any) -> TensorInfo:
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"the tensor name {name[:80]!r} is not valid")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} should have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"tensor {name} has dtype {str(dtype)[:40]!r}, which is not supported")
    if not isinstance(shape, list) or len(shape) > MAX_NDIM or not all(_is_size(size) for size in shape):
        raise ValueError(f"tensor {name} has shape {str(shape)[:80]}, not at most {MAX_NDIM} sizes from 0 to 2^48")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise ValueError(f"tensor {name} has data_offsets {str(offsets)[:80]}, not two positions in the file")
    size_bytes = DTYPE_BYTES[dtype]
    for size in shape:
        size_bytes *= size
    if offsets[1] - offsets[0] != size_bytes:
        raise ValueError(f"tensor {name} needs {size_bytes} bytes for {dtype} {shape}, but has offsets {offsets}")
    return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])


def _check_cover(tensors: tuple[TensorInfo, ...], body_bytes: int) -> None:
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise ValueError(f"tensor {tensor.name} {kind}: it starts at {tensor.start}, not at {position}")
        position = tensor.stop
    if position != body_bytes:
        kind = "is truncated" if position > body_bytes else "has trailing bytes"
        raise ValueError(f"it {kind}: its tensors end at {position} of {body_bytes} bytes")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 48
