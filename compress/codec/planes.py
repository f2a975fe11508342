"""Tensors packed without loss: items of one dtype together, their byte planes apart, each under zstd.

Bytes of one significance resemble each other, exponents far more than mantissas. In float32 and bfloat16 the
sign stands before the exponent, which therefore straddles two bytes; turned round by one bit, the exponent is a
byte of its own. Packed tensors, for each dtype in the order of its first tensor and each plane from the least
significant byte on:

    offset  bytes  field
    0       8      n, the frame's length
    8       n      a zstd frame that declares its content's size

Dtypes and sizes stand elsewhere (a file's header, a layout).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import DTYPE_BYTES

LEVEL = 19
LARGE_LEVEL, LARGE_BYTES = 9, 16 << 20
"""Planes beyond this size get a level that takes seconds where the other takes minutes."""

_LENGTH = struct.Struct("<Q")
_TURNED = {"F32": ("<u4", 31), "BF16": ("<u2", 15)}

Bytes = bytes | memoryview


def pack_tensors(tensors: Sequence[tuple[str, Bytes]]) -> bytes:
    """Pack (dtype, bytes) pairs."""
    frames = []
    for dtype, indices in _by_dtype([dtype for dtype, _ in tensors]).items():
        body = _turn(np.frombuffer(b"".join(tensors[i][1] for i in indices), np.uint8), dtype, back=False)
        width = DTYPE_BYTES[dtype]
        frames += [pack_frame(body[plane::width].tobytes()) for plane in range(width)]
    return b"".join(frames)


def unpack_tensors(data: Bytes, wanted: Sequence[tuple[str, int]], what: str) -> list[bytes]:
    """The bytes of tensors of these dtypes and sizes in bytes.

    Raises:
        InvalidContainerError: `data` does not hold exactly those.
    """
    found: list[bytes] = [b""] * len(wanted)
    for dtype, indices in _by_dtype([dtype for dtype, _ in wanted]).items():
        width, sizes = DTYPE_BYTES[dtype], [wanted[i][1] for i in indices]
        body = np.empty(sum(sizes), np.uint8)
        for plane in range(width):
            content, data = unpack_frame(data, len(body) // width, what)
            body[plane::width] = np.frombuffer(content, np.uint8)
        body, end = _turn(body, dtype, back=True), 0
        for index, size in zip(indices, sizes, strict=True):
            found[index] = body[end : end + size].tobytes()
            end += size
    if len(data):
        raise InvalidContainerError(what=what, reason=f"{len(data)} bytes are left over")
    return found


def pack_frame(content: Bytes) -> bytes:
    """Length and zstd frame of some bytes."""
    level = LARGE_LEVEL if len(content) > LARGE_BYTES else LEVEL
    frame = zstandard.ZstdCompressor(level=level).compress(content)
    return _LENGTH.pack(len(frame)) + frame


def unpack_frame(data: Bytes, size_bytes: int | None, what: str, most_bytes: int = 0) -> tuple[bytes, Bytes]:
    """The content of the frame that `data` starts with, and what follows it.

    Nothing is allocated before the frame was found to declare `size_bytes`, or, where that is None, at most
    `most_bytes`.

    Raises:
        InvalidContainerError: it is cut short, damaged, or declares another size.
    """
    if len(data) < _LENGTH.size:
        raise InvalidContainerError(what=what, reason="its payload is cut short")
    (length,) = _LENGTH.unpack_from(data)
    frame, rest = data[_LENGTH.size : _LENGTH.size + length], data[_LENGTH.size + length :]
    if len(frame) < length:
        raise InvalidContainerError(what=what, reason=f"a frame of {length} bytes is cut short")
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != size_bytes and not (size_bytes is None and 0 <= declared <= most_bytes):
            expected = f"the {size_bytes} bytes" if size_bytes is not None else f"at most the {most_bytes} bytes"
            raise InvalidContainerError(what=what, reason=f"a zstd frame does not declare {expected} it should")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=declared), rest
    except zstandard.ZstdError as error:
        raise InvalidContainerError(what=what, reason=f"a zstd frame is damaged ({error})") from error


def _by_dtype(dtypes: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, dtype in enumerate(dtypes):
        groups.setdefault(dtype, []).append(index)
    return groups


def _turn(body: NDArray[np.uint8], dtype: str, *, back: bool) -> NDArray[np.uint8]:
    """Bring the sign behind the other bits of each item, or back."""
    if dtype not in _TURNED:
        return body
    unsigned, shift = _TURNED[dtype]
    items: NDArray[Any] = body.view(unsigned)
    one, rest = items.dtype.type(1), items.dtype.type(shift)
    turned: NDArray[Any] = (items >> one) | (items << rest) if back else (items << one) | (items >> rest)
    return np.ascontiguousarray(turned).view(np.uint8)
