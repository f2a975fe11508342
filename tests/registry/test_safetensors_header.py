"""The hostile headers that the reference reader lets through, and those it does not."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.safetensors_header import MAX_HEADER_BYTES, parse_header, read_header


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path: Path, header: bytes | dict[str, Any], body: bytes = b"\0" * 4, length: int | None = None) -> Path:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + body)
    return path


def test_a_good_header(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry(offsets=(4, 8)), "a": entry("F16", (2, 1))}
    found = read_header(write(tmp_path / "x", header, b"\0" * 8))
    assert [(t.name, t.dtype, t.shape, t.start, t.stop) for t in found.tensors] == [
        ("a", "F16", (2, 1), 0, 4),
        ("b", "F32", (1,), 4, 8),
    ]
    assert dict(found.metadata) == {"format": "pt"}
    assert found.body_bytes == 8


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        ({"a": entry()}, b"\0" * 3, "is truncated"),
        ({"a": entry()}, b"\0" * 5, "has trailing bytes"),
        ({"a": entry(), "b": entry()}, b"\0" * 4, "overlaps"),
        ({"a": entry(), "b": entry(shape=(2,), offsets=(2, 10))}, b"\0" * 10, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(8, 12))}, b"\0" * 12, "leaves a hole"),
        ({"a": entry(offsets=(4, 8))}, b"\0" * 8, "leaves a hole"),
        ({"a": entry(offsets=(-4, 0))}, b"", "not two positions"),
        ({"a": entry(offsets=(4, 0))}, b"\0" * 4, "needs 4 bytes"),
        ({"a": entry(offsets=(0, 4.0))}, b"\0" * 4, "not two positions"),
        ({"a": entry(offsets=(False, 4))}, b"\0" * 4, "not two positions"),
        ({"a": entry(offsets=(0, 4, 8))}, b"\0" * 4, "not two positions"),
        ({"a": entry("F64")}, b"\0" * 4, "needs 8 bytes"),
        ({"a": entry(shape=(2**40, 2**40))}, b"\0" * 4, "bytes for F32"),
        ({"a": entry(shape=(2**62, 0), offsets=(0, 0))}, b"", "0 to 2"),
        ({"a": entry(shape=(1,) * 1000)}, b"\0" * 4, "at most 8 sizes"),
        ({"a": entry(shape=(-1, -1))}, b"\0" * 4, "0 to 2"),
        ({"a": entry(shape=(True,))}, b"\0" * 4, "0 to 2"),
        ({"a": entry("F4")}, b"\0" * 4, "'F4', which is not supported"),
        ({"a": {**entry(), "dtype": ["F32"]}}, b"\0" * 4, "not supported"),
        ({"a": {**entry(), "shape": 1}}, b"\0" * 4, "has shape 1"),
        ({"a": {**entry(), "hidden": 1}}, b"\0" * 4, "exactly dtype"),
        ({"a": {"dtype": "F32"}}, b"\0" * 4, "exactly dtype"),
        ({"a": 7}, b"\0" * 4, "exactly dtype"),
        ({}, b"", "no tensors"),
        ({"__metadata__": {"a": "b"}}, b"", "no tensors"),
        ({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 4, "__metadata__"),
        ({"../../x": entry()}, b"\0" * 4, "tensor name"),
        ({"": entry()}, b"\0" * 4, "tensor name"),
        ({"a..b": entry()}, b"\0" * 4, "tensor name"),
        ({"a\0": entry()}, b"\0" * 4, "tensor name"),
        ({"é": entry()}, b"\0" * 4, "tensor name"),
        ({"a" * 513: entry()}, b"\0" * 4, "tensor name"),
        ({"\ud800": entry()}, b"\0" * 4, "lone surrogate"),
        (b"[]", b"", "is a list"),
        (b"{", b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "'a' comes twice"),
        (b'{"a": NaN}', b"", "NaN is not a JSON number"),
        (b'{"a": 1e999}', b"", "too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "nested deeper"),
        (b"[" * 40 + b"]" * 40, b"", "nested deeper"),
        (b'{"\xff": 1}', b"", "is not UTF-8"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: Any, body: bytes, reason: str) -> None:
    with pytest.raises(InvalidAdapterError, match=reason):
        read_header(write(tmp_path / "x", header, body))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (struct.pack("<Q", 2**63) + b"{}", "should have 9223372036854775808 bytes"),
        (struct.pack("<Q", 3) + b"{}", "should have 3 bytes"),
        (b"\x80\x02}q\x00X\x01\x00", "pickle"),
        (b"PK\x03\x04\x00\x00\x08\x08rest", "pickle"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidAdapterError, match=reason):
        read_header(path)


def test_a_large_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(InvalidAdapterError, match=f"more than the {MAX_HEADER_BYTES} allowed"):
        read_header(path)


def test_a_header_as_long_as_a_pickle_starts_is_fine(tmp_path: Path) -> None:
    data = json.dumps({"a": entry()}).encode()
    assert read_header(write(tmp_path / "x", data.ljust(0x0280))).body_offset == 0x0288


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_header_parses_or_is_refused(header: bytes, size_bytes: int) -> None:
    with suppress(ValueError):
        parse_header(header, size_bytes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), st.fixed_dictionaries({k: json_values for k in entry()}), max_size=3))
def test_any_json_header_parses_or_is_refused(fields: dict[str, Any]) -> None:
    header = json.dumps(fields).encode()
    with suppress(ValueError):
        parse_header(header, len(header) + 12)
