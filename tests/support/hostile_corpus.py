"""Hostile adapters, each with a builder and what becomes of it: a typed error, or a stated acceptance.

`docs/hostile.md` has this table; a test compares the two.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "base_model.model.q_proj"
A, B = f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "tiny/base-model",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}
INVALID, UNSUPPORTED, ACCEPTED = 10, 11, 0


@dataclass(frozen=True)
class Sample:
    """One hostile adapter. `canary` is a file that reading it must not make."""

    name: str
    build: Callable[[Path, Path], None]  # (folder to fill, canary)
    exit_code: int
    words: str  # in the error, or in the output where it is accepted


def entry(dtype: str, shape: Any, start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def good_header() -> dict[str, Any]:
    return {A: entry("F32", [2, 3], 0, 24), B: entry("F32", [4, 2], 24, 56)}


def good_body() -> bytes:
    return struct.pack("<14f", *(0.1 * i for i in range(1, 15)))


def weights(header: Mapping[str, Any] | bytes, body: bytes | None = None, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = good_body() if body is None else body
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def folder_of(
    data: bytes | None = None, config: Mapping[str, Any] | bytes | None = None, **files: bytes
) -> Callable[[Path, Path], None]:
    """A PEFT folder with these weights and this config."""

    def build(folder: Path, canary: Path) -> None:
        text = config if isinstance(config, bytes) else json.dumps({**CONFIG, **(config or {})}).encode()
        (folder / "adapter_config.json").write_bytes(text)
        (folder / "adapter_model.safetensors").write_bytes(weights(good_header()) if data is None else data)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return build


def with_header(change: Callable[[dict[str, Any]], Any], body: bytes | None = None) -> Callable[[Path, Path], None]:
    header = good_header()
    changed = change(header)
    return folder_of(weights(changed if isinstance(changed, dict) else header, body))


def renamed(name: str) -> Callable[[Path, Path], None]:
    return with_header(lambda header: {name if key == A else key: value for key, value in header.items()})


def changed(key: str, **fields: Any) -> Callable[[Path, Path], None]:
    return with_header(lambda header: {**header, key: {**header[key], **fields}})


def valued(value: float) -> Callable[[Path, Path], None]:
    return folder_of(weights(good_header(), struct.pack("<f", value) + good_body()[4:]))


def retyped(dtype: str, size: int) -> Callable[[Path, Path], None]:
    header = {A: entry(dtype, [2, 3], 0, 6 * size), B: entry(dtype, [4, 2], 6 * size, 14 * size)}
    return folder_of(weights(header, bytes(range(1, 1 + 14 * size))))


def many_empty(count: int) -> bytes:
    entries = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    return weights(f"{{{entries}}}".encode(), b"")


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(name: str) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        folder_of()(folder, canary)
        (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Canary(canary), protocol=2) + bytes(64))

    return build


def replaced_by(kind: str, name: str) -> Callable[[Path, Path], None]:
    """A link or FIFO in place of one of the folder's files."""

    def build(folder: Path, canary: Path) -> None:
        folder_of()(folder, canary)
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/etc/hostname")

    return build


def hard_linked(folder: Path, canary: Path) -> None:
    folder_of()(folder, canary)
    other = folder.parent / "linked"
    os.link(folder / "adapter_model.safetensors", other)


def without(name: str) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        folder_of()(folder, canary)
        (folder / name).unlink()

    return build


def pair(a: Any, b: Any) -> Callable[[Path, Path], None]:
    """Factors of these shapes."""
    sizes = [4 * _product(shape) for shape in (a, b)]
    header = {A: entry("F32", a, 0, sizes[0]), B: entry("F32", b, sizes[0], sum(sizes))}
    return folder_of(weights(header, bytes(sum(sizes))))


def _product(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def extra(name: str) -> Callable[[Path, Path], None]:
    return with_header(lambda header: {**header, name: entry("F32", [1], 56, 60)}, good_body() + bytes(4))


SAMPLES = [
    # -- headers
    Sample("header length 2^63", folder_of(weights(good_header(), length=1 << 63)), INVALID, "the header should have"),
    Sample("header longer than the file", folder_of(weights(b"{}", b"", 100)), INVALID, "the file has only 10"),
    Sample("file of fewer than 8 bytes", folder_of(b"abc"), INVALID, "too few for a safetensors file"),
    Sample("truncated body", folder_of(weights(good_header(), good_body()[:-1])), INVALID, "it is truncated"),
    Sample("trailing bytes", folder_of(weights(good_header(), good_body() + b"x")), INVALID, "it has trailing bytes"),
    Sample("overlapping offsets", changed(B, data_offsets=[20, 52]), INVALID, "overlaps the tensor before it"),
    Sample("a hole", changed(B, data_offsets=[28, 60]), INVALID, "leaves a hole before it"),
    Sample("negative offsets", changed(A, data_offsets=[-24, 0]), INVALID, "not two positions in the file"),
    Sample("inverted offsets", changed(A, data_offsets=[24, 0]), INVALID, "needs 24 bytes"),
    Sample("size that is not the dtype's", changed(A, dtype="F64"), INVALID, "needs 48 bytes"),
    Sample("shape whose product overflows", changed(A, shape=[1 << 40, 1 << 40]), INVALID, "bytes for F32"),
    Sample("shape 2^62 x 0", changed(A, shape=[1 << 62, 0], data_offsets=[0, 0]), INVALID, "sizes from 0 to 2^48"),
    Sample("1000 dimensions", changed(A, shape=[1] * 1000), INVALID, "at most 8 sizes"),
    Sample("dtype that nobody has", changed(A, dtype="F4"), INVALID, "dtype 'F4', which is not supported"),
    Sample("hidden extra fields", changed(A, secret=1), INVALID, "should have exactly dtype, shape and data_offsets"),
    Sample(
        "duplicate names",
        folder_of(weights(json.dumps(good_header()).replace(json.dumps(B)[1:-1], A).encode())),
        INVALID,
        "comes twice",
    ),
    Sample("no tensors", folder_of(weights({}, b"")), INVALID, "it holds no tensors"),
    Sample("300,000 empty tensors", folder_of(many_empty(300_000)), INVALID, "more than the 16777216 allowed"),
    Sample("header that is a list", folder_of(weights(b"[]", b"")), INVALID, "the header is a list, not an object"),
    Sample("header that is not UTF-8", folder_of(weights(b'{"\xff":1}', b"")), INVALID, "is not UTF-8"),
    Sample(
        "header nested 100,000 deep",
        folder_of(weights(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")),
        INVALID,
        "nested deeper than",
    ),
    Sample("metadata that is no text", folder_of(weights({"__metadata__": {"a": 1}}, b"")), INVALID, "__metadata__"),
    # -- names
    Sample("name ../../x", renamed("../../x"), INVALID, "the tensor name '../../x' is not valid"),
    Sample("name with NUL", renamed("q\0.lora_A.weight"), INVALID, "is not valid"),
    Sample("empty name", renamed(""), INVALID, "the tensor name '' is not valid"),
    Sample("names that are NFC and NFD twins", renamed("e\u0301.lora_A.weight"), INVALID, "is not valid"),
    Sample(
        "name with a lone surrogate",
        folder_of(weights(json.dumps(good_header()).replace("q_proj", "\\ud800", 1).encode())),
        INVALID,
        "lone surrogate",
    ),
    Sample("name of a megabyte", renamed("x" * (1 << 20)), INVALID, "is not valid"),
    Sample("control characters in a name", renamed("q\x1b[2J.lora_A.weight"), INVALID, "is not valid"),
    # -- tensors
    Sample("NaN", valued(float("nan")), INVALID, "weights that are NaN or infinite"),
    Sample("infinity", valued(float("inf")), INVALID, "weights that are NaN or infinite"),
    Sample("factors without dimensions", pair([], []), INVALID, "which are no matrices"),
    Sample("rank 0", pair([0, 3], [4, 0]), INVALID, "has no weights"),
    Sample("ranks that differ", pair([3, 3], [4, 2]), INVALID, "rank 3 in lora_A but 2 in lora_B"),
    Sample("rank that is not the config's", pair([3, 3], [4, 3]), INVALID, "adapter_config.json says 2"),
    Sample("A without B", with_header(lambda h: {A: h[A]}, good_body()[:24]), INVALID, "has lora_A but no lora_B"),
    Sample("foreign key", extra("model.embed.weight"), UNSUPPORTED, "is not a LoRA factor"),
    Sample("magnitude without use_dora", extra(f"{KEY}.lora_magnitude_vector"), UNSUPPORTED, "does not announce"),
    Sample("integer factors", retyped("I32", 4), ACCEPTED, "1 new"),
    Sample("complex factors", retyped("C64", 8), ACCEPTED, "1 new"),
    Sample("BOOL with a byte 7", retyped("BOOL", 1), ACCEPTED, "1 new"),
    Sample("float8", retyped("F8_E5M2", 1), ACCEPTED, "1 new"),
    Sample("bfloat16", retyped("BF16", 2), ACCEPTED, "1 new"),
    # -- configs
    Sample("no config", without("adapter_config.json"), INVALID, "adapter_config.json is missing"),
    Sample("no weights", without("adapter_model.safetensors"), INVALID, "adapter_model.safetensors is missing"),
    Sample("config of 2 MB", folder_of(config=b" " * (2 << 20)), INVALID, "more than the 1048576 allowed"),
    Sample(
        "config nested 5,000 deep", folder_of(config=b'{"a":' * 5000 + b"1" + b"}" * 5000), INVALID, "nested deeper"
    ),
    Sample("config with NaN", folder_of(config=b'{"r": NaN}'), INVALID, "NaN is not a JSON number"),
    Sample(
        "config with a number of 5,000 digits", folder_of(config=b'{"r": 1' + b"0" * 5000 + b"}"), INVALID, "valid JSON"
    ),
    Sample("config with a key twice", folder_of(config=b'{"r": 1, "r": 2}'), INVALID, "'r' comes twice"),
    Sample("config that is a list", folder_of(config=b"[]"), INVALID, "holds a list, not an object"),
    Sample("rank true", folder_of(config={"r": True}), INVALID, "r is 'True'"),
    Sample("rank 10^9", folder_of(config={"r": 10**9}), INVALID, "not a rank from 1 to 65536"),
    Sample("alpha 0", folder_of(config={"lora_alpha": 0}), INVALID, "lora_alpha is '0'"),
    Sample(
        "pattern that matches for ever", folder_of(config={"rank_pattern": {"(a+)+$": 2}}), INVALID, "take for ever"
    ),
    Sample("base model null", folder_of(config={"base_model_name_or_path": None}), INVALID, "base_model_name_or_path"),
    Sample(
        "base model with control characters",
        folder_of(config={"base_model_name_or_path": "a\x1b[2J"}),
        INVALID,
        "not the name",
    ),
    Sample("peft_type of a megabyte", folder_of(config={"peft_type": "X" * 900_000}), UNSUPPORTED, "not one of PEFT's"),
    Sample("fields of tomorrow", folder_of(config={"a_field": {"of": ["tomorrow"]}}), ACCEPTED, "1 new"),
    # -- files
    Sample("adapter_model.bin, a pickle", pickled("adapter_model.bin"), UNSUPPORTED, "it is a pickle"),
    Sample("a pickle named .safetensors", pickled("adapter_model.safetensors"), INVALID, "it is a pickle"),
    *(
        Sample(f"{kind} for {name}", replaced_by(kind, name), INVALID, words)
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md")
        for kind, words in (("link", "symbolic link"), ("fifo", "not a regular file"))
    ),
    Sample("hard link", hard_linked, ACCEPTED, "1 new"),
    Sample("card that is not UTF-8", folder_of(README__md=b"\xff\xfe"), INVALID, "README.md: it is not valid"),
    Sample("card of 2 MB", folder_of(README__md=b"x" * (2 << 20)), INVALID, "more than the 1048576 allowed"),
    Sample("samples that are no list", folder_of(samples__json=b"{}"), INVALID, "not a list of texts"),
    Sample("tokens that are no file", folder_of(eval__safetensors=b"x"), INVALID, "too few for a safetensors file"),
]
