"""What a code leaves out of a weights file: tensors that are no factors, and the header's own text.

A code stands for the factors alone. Everything else of the file is kept exactly, in files of the adapter
beside it, so that equal tensors of many adapters (a head that none of them trained, say) are one blob:

    extras/metadata          `__metadata__` of the header, where it says more than the format's name
    extras/small             all tensors below 64 KiB
    extras/tensor-00007      a larger one, by its place in the layout
    extras/reference-00007   the same tensor of another adapter, where this one's is stored as a difference to it

Each begins with a byte for its format. 1: then packed as in `planes`, one frame of canonical JSON, or tensors in
the order of the layout. 2: likewise, of the tensor's bytes XOR those of its reference, which is of format 1. Modules
that adapters trained from one base model differ in few bits. A reference is another adapter's own blob and costs
nothing, and since it is a file of each adapter that needs it, it stays as long as they do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lorareg.compress.codec.planes import pack_frame, pack_tensors, unpack_frame, unpack_tensors
from lorareg.compress.factors.weights import pack_header, read_entries
from lorareg.registry.errors import InvalidContainerError, NewerFormatError
from lorareg.registry.types import EXTRAS_FOLDER, ExtraTensor, Layout, canonical_json

SMALL_BYTES = 64 << 10
METADATA_FILE = f"{EXTRAS_FOLDER}metadata"
SMALL_FILE = f"{EXTRAS_FOLDER}small"
PLAIN_METADATA = {"format": "pt"}

_PLAIN, _DIFFERENCE = b"\x01", b"\x02"
_TENSOR, _REFERENCE = f"{EXTRAS_FOLDER}tensor-", f"{EXTRAS_FOLDER}reference-"
WORTH_A_REFERENCE = 0.9
"""A difference that takes more than this share of the tensor itself is not worth being tied to another blob."""
_MOST_METADATA_BYTES = 16 << 20  # no header is longer


@dataclass(frozen=True, slots=True)
class Extras:
    """Tensors by key, and the header's metadata."""

    tensors: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: PLAIN_METADATA)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to keep."""
        return not self.tensors and self.metadata == PLAIN_METADATA


def read_extras(data: bytes, layout: Layout) -> Extras:
    """The extras of a weights file."""
    entries, body_offset = read_entries(data)
    spans = {extra.key: entries[extra.key]["data_offsets"] for extra in layout.extras}
    tensors = {key: data[body_offset + start : body_offset + stop] for key, (start, stop) in spans.items()}
    return Extras(tensors, entries.get("__metadata__") or PLAIN_METADATA)


def attach_extras(factors: bytes, layout: Layout, extras: Extras) -> bytes:
    """The whole weights file, from the one that a code decodes to: factors first, then extras in layout order."""
    if not layout.extras and extras.metadata == PLAIN_METADATA:
        return factors
    entries, body_offset = read_entries(factors)
    entries["__metadata__"] = dict(extras.metadata)
    offset = len(factors) - body_offset
    for extra in layout.extras:
        end = offset + extra.size_bytes
        entries[extra.key] = {"dtype": extra.dtype, "shape": extra.shape, "data_offsets": [offset, end]}
        offset = end
    tensors = (extras.tensors[extra.key] for extra in layout.extras)
    return b"".join([pack_header(entries), factors[body_offset:], *tensors])


def pack_extras(
    extras: Extras, layout: Layout, find_reference: Callable[[str], bytes | None] = lambda path: None
) -> dict[str, bytes]:
    """The files that keep extras, by path.

    Args:
        extras: of an adapter.
        layout: its layout.
        find_reference: the file of format 1 that another adapter of the layout has at a path, if one has.
    """
    files = {}
    if extras.metadata != PLAIN_METADATA:
        files[METADATA_FILE] = _PLAIN + pack_frame(canonical_json(dict(extras.metadata)).encode())
    for path, indices in _files(layout).items():
        members = [layout.extras[index] for index in indices]
        files[path] = _PLAIN + pack_tensors([(extra.dtype, extras.tensors[extra.key]) for extra in members])
        reference = find_reference(path) if path.startswith(_TENSOR) else None
        if reference is None or reference == files[path]:
            continue
        (member,) = members
        difference = _xor(extras.tensors[member.key], _tensor(reference, member, "A reference"))
        packed = _DIFFERENCE + pack_tensors([(member.dtype, difference)])
        if len(packed) < WORTH_A_REFERENCE * len(files[path]):
            files |= {path: packed, _reference_path(path): reference}
    return files


def is_reference(data: bytes) -> bool:
    """Whether a file of extras may be another's reference."""
    return data[:1] == _PLAIN


def unpack_extras(files: Mapping[str, bytes], layout: Layout, what: str) -> Extras:
    """Read what `pack_extras` wrote.

    Raises:
        InvalidContainerError: a file is missing, damaged, or not of this layout.
        NewerFormatError: a later lorareg wrote one.
    """
    metadata: Mapping[str, str] = PLAIN_METADATA
    if METADATA_FILE in files:
        content, rest = unpack_frame(_body(files, METADATA_FILE, _PLAIN, what), None, what, _MOST_METADATA_BYTES)
        metadata = _metadata(content, what)
        if len(rest):
            raise InvalidContainerError(what=what, reason=f"{len(rest)} bytes follow its metadata")
    tensors: dict[str, bytes] = {}
    for path, indices in _files(layout).items():
        members = [layout.extras[index] for index in indices]
        if files.get(path, b"")[:1] == _DIFFERENCE and path.startswith(_TENSOR):
            tensors |= _restored(files, path, members[0], what)
            continue
        wanted = [(extra.dtype, extra.size_bytes) for extra in members]
        found = unpack_tensors(_body(files, path, _PLAIN, what), wanted, what)
        tensors |= {extra.key: data for extra, data in zip(members, found, strict=True)}
    return Extras(tensors, metadata)


def _files(layout: Layout) -> dict[str, list[int]]:
    """Which of the layout's extras each file holds."""
    files: dict[str, list[int]] = {}
    for index, extra in enumerate(layout.extras):
        path = SMALL_FILE if extra.size_bytes < SMALL_BYTES else f"{_TENSOR}{index:05}"
        files.setdefault(path, []).append(index)
    return files


def _restored(files: Mapping[str, bytes], path: str, extra: ExtraTensor, what: str) -> dict[str, bytes]:
    """A tensor that is stored as a difference."""
    wanted = [(extra.dtype, extra.size_bytes)]
    (difference,) = unpack_tensors(_body(files, path, _DIFFERENCE, what), wanted, what)
    reference = _body(files, _reference_path(path), _PLAIN, what)
    (other,) = unpack_tensors(reference, wanted, what)
    return {extra.key: _xor(difference, other)}


def _tensor(file: bytes, extra: ExtraTensor, what: str) -> bytes:
    (found,) = unpack_tensors(memoryview(file)[1:], [(extra.dtype, extra.size_bytes)], what)
    return found


def _xor(first: bytes, second: bytes) -> bytes:
    return (np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)).tobytes()


def _reference_path(path: str) -> str:
    return _REFERENCE + path.removeprefix(_TENSOR)


def _body(files: Mapping[str, bytes], path: str, form: bytes, what: str) -> memoryview:
    data = files.get(path)
    if data is None:
        raise InvalidContainerError(what=what, reason=f"{path}, which keeps what is no factor, is missing")
    if data[:1] > _DIFFERENCE:
        raise NewerFormatError(what=f"{path} of {what}", found=data[0], expected=_DIFFERENCE[0])
    if data[:1] != form:
        raise InvalidContainerError(what=what, reason=f"{path} has format {data[:1]!r}, not {form!r}")
    return memoryview(data)[1:]


def _metadata(content: bytes, what: str) -> dict[str, str]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidContainerError(what=what, reason=f"its metadata is not valid JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidContainerError(what=what, reason="its metadata does not map text to text")
    return found
