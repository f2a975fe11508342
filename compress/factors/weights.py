"""Between the bytes of a weights file and the factors of its modules.

Reading trusts a file that `registry.peft_format` has validated and whose digest was verified.
Writing is deterministic to the byte: tensors in layout order, one header form, IEEE rounding only,
so the digest of a written file can stand for the adapter.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorareg.registry.types import DTYPE_BYTES, Layout, canonical_json

Float64 = NDArray[np.float64]

STORED_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "<u1", "F8_E5M2": "<u1"}
HEADER_ALIGNMENT = 8
_BF16_INFINITY = np.uint16(0x7F80)


@dataclass(frozen=True, slots=True)
class Factors:
    """The two factors of one module: `b` (d_out, r) and `a` (r, d_in), float64."""

    b: Float64
    a: Float64

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def delta(self) -> Float64:
        """ΔW without its scale, (d_out, d_in)."""
        return self.b @ self.a


def read_weights(data: bytes, layout: Layout) -> tuple[Factors, ...]:
    """The factors of each module of `layout`, from the bytes of a safetensors file."""
    entries, body_offset = read_entries(data)
    tensors = []
    for slot in layout.slots:
        start, end = entries[slot.key]["data_offsets"]
        body = memoryview(data)[body_offset + start : body_offset + end]
        tensors.append(_widen(body, slot.dtype).reshape(slot.shape))
    return tuple(Factors(b=b, a=a) for a, b in zip(tensors[0::2], tensors[1::2], strict=True))


def write_weights(layout: Layout, modules: Sequence[Factors]) -> bytes:
    """The bytes of a safetensors file holding `modules` in the layout's keys, shapes and dtypes, and no extras.

    Raises:
        OverflowError: a weight does not fit the slot's dtype (the encoder then picks another tier).
    """
    head, body_bytes = _header(layout)
    data = bytearray(len(head) + body_bytes)
    data[: len(head)] = head
    tensors = (tensor for factors in modules for tensor in (factors.a, factors.b))
    offset = len(head)
    for slot, tensor in zip(layout.slots, tensors, strict=True):
        bits = np.frombuffer(data, STORED_AS[slot.dtype], slot.weight_count, offset).reshape(slot.shape)
        _narrow(tensor, slot.dtype, bits)
        offset += bits.nbytes
    return bytes(data)


@lru_cache(maxsize=8)
def _header(layout: Layout) -> tuple[bytes, int]:
    """The start of a file of this layout, length field included, and how many bytes of tensors follow."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in layout.slots:
        end = offset + slot.weight_count * DTYPE_BYTES[slot.dtype]
        shape = slot.file_shape or slot.shape
        entries[slot.key] = {"dtype": slot.dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return pack_header(entries), offset


def pack_header(entries: Mapping[str, object]) -> bytes:
    """The start of a safetensors file, length field included: one form for what it says."""
    text = canonical_json(entries).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def read_entries(data: bytes) -> tuple[dict[str, Any], int]:
    """What the header of a weights file says, and where its tensors start."""
    (size_bytes,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size_bytes]), 8 + size_bytes


def _widen(body: memoryview, dtype: str) -> Float64:
    if dtype == "F32":
        return np.frombuffer(body, "<f4").astype(np.float64)
    if dtype == "F16":
        return np.frombuffer(body, "<f2").astype(np.float64)
    if dtype == "BF16":
        bits = np.frombuffer(body, "<u2").astype("<u4") << np.uint32(16)
        return bits.view("<f4").astype(np.float64)
    return np.frombuffer(body, _float8(dtype)).astype(np.float64)


def _float8(dtype: str) -> Any:
    """The 8-bit floats of ml_dtypes, which round as torch's do. Imported for adapters that have such weights."""
    import ml_dtypes

    return {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}[dtype]


def _narrow(tensor: Float64, dtype: str, out: NDArray[Any]) -> None:
    """Round `tensor` to nearest even into `out`.

    Raises:
        OverflowError: a value does not fit.
    """
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = tensor.astype("<f4").view("<u4")
            nearest_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            out[...] = (bits + nearest_even) >> np.uint32(16)
            finite = (out & _BF16_INFINITY) != _BF16_INFINITY
        elif dtype in ("F32", "F16"):
            out[...] = tensor
            finite = np.isfinite(out)
        else:
            narrow = tensor.astype(_float8(dtype))
            out[...] = narrow.view(np.uint8)
            finite = np.isfinite(narrow.astype(np.float32))
    if not finite.all():
        raise OverflowError(f"a weight does not fit {dtype}")
