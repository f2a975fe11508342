"""The first lossless format, codec 1: decoded for ever, written no more (see `lossless`).

The body of the weights file is split into as many planes as its items have bytes. Payload:

    offset  bytes  field
    0       1      bytes an item (2 or 4; 1 when the body is mixed)
    1       8      size of the file's head, which is kept in one piece (length field and JSON)
    9       8      size of the body
    17      ...    for the head and each plane: 8 bytes of length, then a zstd frame
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

_PREFIX = struct.Struct("<BQQ")
_LENGTH = struct.Struct("<Q")


def decode_lossless(payload: bytes, layout: Layout, what: str) -> bytes:
    """The weights file.

    Raises:
        InvalidContainerError: the payload does not hold a weights file of this layout's size.
    """
    expected = layout.body_bytes
    try:
        width, head_size, body_size = _PREFIX.unpack_from(payload)
        if width not in (1, 2, 4) or body_size != expected or body_size % width or head_size > 1 << 27:
            raise InvalidContainerError(what=what, reason=f"it announces {body_size} bytes where {expected} belong")
        sizes = [head_size, *([body_size // width] * width)]
        head, *planes = _frames(payload, sizes, what)
    except struct.error as error:
        raise InvalidContainerError(what=what, reason=f"its payload is cut short ({error})") from error
    body = np.empty(body_size, np.uint8)
    for i, plane in enumerate(planes):
        body[i::width] = np.frombuffer(plane, np.uint8)
    return head + body.tobytes()


def _frames(payload: bytes, sizes: list[int], what: str) -> list[bytes]:
    parts, offset = [], _PREFIX.size
    for size in sizes:
        (length,) = _LENGTH.unpack_from(payload, offset)
        frame = payload[offset + _LENGTH.size : offset + _LENGTH.size + length]
        offset += _LENGTH.size + length
        parts.append(_inflate(frame, size, what))
    if offset != len(payload):
        raise InvalidContainerError(what=what, reason=f"{len(payload) - offset} bytes are left over or missing")
    return parts


def _inflate(frame: bytes, size: int, what: str) -> bytes:
    """Inflate one frame of a known size; a frame that declares another is refused before it is opened."""
    try:
        if zstandard.frame_content_size(frame) != size:
            raise InvalidContainerError(what=what, reason=f"a zstd frame does not declare the {size} bytes it should")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise InvalidContainerError(what=what, reason=f"a zstd frame is damaged ({error})") from error
