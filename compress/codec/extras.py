"""What a code leaves out of a weights file: tensors that are no factors, and the header's own text.

A code stands for the factors alone. Everything else of the file is kept exactly, in files of the adapter
beside it, so that equal tensors of many adapters (a head that none of them trained, say) are one blob:

    extras/metadata          `__metadata__` of the header, where it says more than the format's name
    extras/small             all tensors below 64 KiB
    extras/tensor-00007      a larger one, by its place in the layout

Each is a byte, 1, for the format, and then packed as in `planes`: one frame of canonical JSON, or tensors in the
order of the layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorareg.compress.codec.planes import pack_frame, pack_tensors, unpack_frame, unpack_tensors
from lorareg.compress.factors.weights import pack_header, read_entries
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import EXTRAS_FOLDER, Layout, canonical_json

SMALL_BYTES = 64 << 10
METADATA_FILE = f"{EXTRAS_FOLDER}metadata"
SMALL_FILE = f"{EXTRAS_FOLDER}small"
PLAIN_METADATA = {"format": "pt"}

_FORMAT = b"\x01"
_MOST_METADATA_BYTES = 16 << 20  # no header is longer


@dataclass(frozen=True, slots=True)
class Extras:
    """Tensors by key, and the header's metadata."""

    tensors: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: PLAIN_METADATA)


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


def pack_extras(extras: Extras, layout: Layout) -> dict[str, bytes]:
    """The files that keep extras, by path."""
    files = {}
    if extras.metadata != PLAIN_METADATA:
        files[METADATA_FILE] = _FORMAT + pack_frame(canonical_json(dict(extras.metadata)).encode())
    for path, indices in _files(layout).items():
        members = [layout.extras[index] for index in indices]
        files[path] = _FORMAT + pack_tensors([(extra.dtype, extras.tensors[extra.key]) for extra in members])
    return files


def unpack_extras(files: Mapping[str, bytes], layout: Layout, what: str) -> Extras:
    """Read what `pack_extras` wrote.

    Raises:
        InvalidContainerError: a file is missing, damaged, or not of this layout.
    """
    metadata: Mapping[str, str] = PLAIN_METADATA
    if METADATA_FILE in files:
        content, rest = unpack_frame(_body(files, METADATA_FILE, what), None, what, _MOST_METADATA_BYTES)
        metadata = _metadata(content, what)
        if len(rest):
            raise InvalidContainerError(what=what, reason=f"{len(rest)} bytes follow its metadata")
    tensors: dict[str, bytes] = {}
    for path, indices in _files(layout).items():
        members = [layout.extras[index] for index in indices]
        found = unpack_tensors(_body(files, path, what), [(extra.dtype, extra.size_bytes) for extra in members], what)
        tensors |= {extra.key: data for extra, data in zip(members, found, strict=True)}
    return Extras(tensors, metadata)


def _files(layout: Layout) -> dict[str, list[int]]:
    """Which of the layout's extras each file holds."""
    files: dict[str, list[int]] = {}
    for index, extra in enumerate(layout.extras):
        path = SMALL_FILE if extra.size_bytes < SMALL_BYTES else f"{EXTRAS_FOLDER}tensor-{index:05}"
        files.setdefault(path, []).append(index)
    return files


def _body(files: Mapping[str, bytes], path: str, what: str) -> memoryview:
    data = files.get(path)
    if data is None:
        raise InvalidContainerError(what=what, reason=f"{path}, which keeps what is no factor, is missing")
    if data[:1] != _FORMAT:
        raise InvalidContainerError(what=what, reason=f"{path} has format {data[:1]!r}, not {_FORMAT!r}")
    return memoryview(data)[1:]


def _metadata(content: bytes, what: str) -> dict[str, str]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidContainerError(what=what, reason=f"its metadata is not valid JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidContainerError(what=what, reason="its metadata does not map text to text")
    return found
