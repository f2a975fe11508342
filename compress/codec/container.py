"""The code file: what is stored per adapter.

    offset  bytes  field
    0       4      magic "LORC"
    4       1      format, 1
    5       1      codec number (see `codecs`)
    6       2      zero
    8       8      first 8 bytes of the layout's SHA-256
    16      8      first 8 bytes of the generator file's SHA-256, or zeros for none
    24      n      payload, as the codec defines it
    24 + n  8      first 8 bytes of the SHA-256 of everything before

Integers are little-endian. A codec number never changes its meaning, and every payload that was
ever written stays readable. The trailing digest makes damage a typed error before any symbol is
decoded, also where the file is read without its registry.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from lorareg.registry.errors import InvalidContainerError, LayoutMismatchError, NewerFormatError

MAGIC = b"LORC"
FORMAT = 1
_HEADER = struct.Struct("<4sBBH8s8s")
_SEAL_BYTES = 8
NO_GENERATOR = "0" * 64


@dataclass(frozen=True, slots=True)
class Code:
    """An unpacked code file. Digests are 64 hex digits when packed, their first 16 once unpacked."""

    codec: int
    layout_digest: str
    generator_digest: str
    payload: bytes


def pack_code(code: Code) -> bytes:
    """The bytes of a code file."""
    layout, generator = bytes.fromhex(code.layout_digest)[:8], bytes.fromhex(code.generator_digest)[:8]
    sealed = _HEADER.pack(MAGIC, FORMAT, code.codec, 0, layout, generator) + code.payload
    return sealed + _seal(sealed)


def unpack_code(data: bytes, what: str = "Code file") -> Code:
    """The parts of a code file, its seal verified.

    Raises:
        InvalidContainerError: too short, not a code file, or damaged.
        NewerFormatError: written by a later lorareg.
    """
    if len(data) < _HEADER.size + _SEAL_BYTES:
        raise InvalidContainerError(what=what, reason=f"it has {len(data)} bytes, fewer than an empty code file")
    magic, form, codec, zero, layout, generator = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise InvalidContainerError(what=what, reason=f"it starts with {magic!r}, not {MAGIC!r}")
    if form > FORMAT:
        raise NewerFormatError(what=what, found=form, expected=FORMAT)
    if _seal(data[:-_SEAL_BYTES]) != data[-_SEAL_BYTES:] or zero or form != FORMAT:
        raise InvalidContainerError(what=what, reason="its seal does not match its bytes")
    return Code(codec, layout.hex(), generator.hex(), data[_HEADER.size : -_SEAL_BYTES])


def expect_bindings(code: Code, layout_digest: str, generator_digest: str, what: str) -> None:
    """Refuse to decode a code with a layout or generator other than its own.

    Raises:
        LayoutMismatchError: either differs.
    """
    for kind, found, given in (
        ("layout", code.layout_digest, layout_digest),
        ("generator", code.generator_digest, generator_digest),
    ):
        if found[:16] != given[:16]:
            raise LayoutMismatchError(
                what=what,
                found=f"{kind} {found[:16]}",
                expected=f"{kind} {given[:16]}",
                remedy="The database and the blob store do not belong together; run `lorareg check`.",
            )


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_SEAL_BYTES]
