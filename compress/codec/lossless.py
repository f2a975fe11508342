"""The lossless codec: the weights file itself, its head in one piece and its tensors packed by dtype (see `planes`).

    bytes  field
    ...    a frame: the file's head (length field and JSON)
    ...    its tensors, packed in the order of their offsets

The head says which tensors follow, so it is read as strictly as that of an adapter to ingest.
"""

from __future__ import annotations

import struct

from lorareg.compress.codec.planes import pack_frame, pack_tensors, unpack_frame, unpack_tensors
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.safetensors_header import MAX_HEADER_BYTES, Header, parse_header
from lorareg.registry.types import Layout

_LENGTH = struct.Struct("<Q")


def encode_lossless(data: bytes, layout: Layout) -> bytes:
    """The payload that gives `data`, a weights file of `layout`, back to the byte."""
    head_bytes = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    header, body = parse_header(data[_LENGTH.size : head_bytes], len(data)), memoryview(data)[head_bytes:]
    return pack_frame(data[:head_bytes]) + pack_tensors([(t.dtype, body[t.start : t.stop]) for t in header.tensors])


def decode_lossless(payload: bytes, layout: Layout, what: str) -> bytes:
    """The weights file.

    Raises:
        InvalidContainerError: the payload does not hold a weights file of this layout.
    """
    head, rest = unpack_frame(payload, None, what, _LENGTH.size + MAX_HEADER_BYTES)
    header = _header(head, layout, what)
    tensors = unpack_tensors(memoryview(rest), [(t.dtype, t.stop - t.start) for t in header.tensors], what)
    return b"".join([head, *tensors])


def _header(head: bytes, layout: Layout, what: str) -> Header:
    """The head as a header of the layout's tensors."""
    try:
        header = parse_header(head[_LENGTH.size :], len(head) + layout.body_bytes)
    except ValueError as error:
        raise InvalidContainerError(what=what, reason=str(error)) from error
    if head[: _LENGTH.size] != _LENGTH.pack(len(head) - _LENGTH.size):
        raise InvalidContainerError(what=what, reason="its head says another length than it has")
    found = {(tensor.name, tensor.dtype, tensor.shape) for tensor in header.tensors}
    factors = {(slot.key, slot.dtype, slot.file_shape or slot.shape) for slot in layout.slots}
    if found != factors | {(extra.key, extra.dtype, extra.shape) for extra in layout.extras}:
        raise InvalidContainerError(what=what, reason="its head names other tensors than its layout")
    return header
