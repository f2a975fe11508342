"""The nouns of lorareg as immutable records: what rows say once they have left the database.

Records carry names, digests and sizes, never tensors. A record whose class has a table (see
`schema`) has the same field names as that table's columns, so one function turns a verified row
into its record whichever way it was read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

Factor = Literal["A", "B"]
Severity = Literal["error", "information"]
Tier = Literal["lossless", "residual", "generated"]
RetiredState = Literal["quarantined", "deleting", "deleted"]
Whereabouts = Literal["kept", "pruned", "missing"]
Scope = Literal["read", "write"]
RetiredKind = Literal["original", "older code", "older generator"]

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
LONE_SUFFIX = ".safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
CARD_FILE = "README.md"
SAMPLES_FILE = "samples.json"
EVAL_FILE = "eval.safetensors"
EVAL_SUMMARY_FILE = "eval.json"
EXTRAS_FOLDER = "extras/"
"""Files whose paths start so hold what a code leaves out of a weights file; see `compress.codec.extras`."""

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an item of every safetensors dtype that is read."""

TEXT_ENCODER_PREFIX = "text:"
"""Task vectors whose encoder starts so were made from the description alone, with no base model."""

SENTENCE_MODEL = "sentence_model"
"""What a registry remembers the path of its sentence model under."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: object) -> str:
    """The one JSON form that is stored and hashed: sorted keys, no spaces, ASCII, no NaN."""
    return _CANONICAL.encode(value)


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Slot:
    """One weight matrix of an adapter: factor A (rank, d_in) or B (d_out, rank) of a module.

    A convolution's factors are matrices too, their last axes taken together: `file_shape` is what the file says.
    """

    module: str
    factor: Factor
    shape: tuple[int, int]
    dtype: str  # safetensors name: F32, F16, BF16, F8_E4M3, F8_E5M2
    key: str  # the tensor's name in the file
    file_shape: tuple[int, ...] = ()  # where it is not `shape`

    @property
    def weight_count(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class ExtraTensor:
    """A tensor of an adapter that is no factor of a weight update: it is kept as it is, whatever it is."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The ordered slots of an adapter, A before B within a module, modules in natural order.

    `scales` holds one factor a module, in order of first appearance: what PEFT multiplies B @ A by
    (alpha / r, or alpha / sqrt(r)). `extras` are all other tensors of its file, by key; an adapter that is
    no LoRA has nothing else. The digest, over all three, decides who can share a cohort.
    """

    slots: tuple[Slot, ...]
    scales: tuple[float, ...]
    extras: tuple[ExtraTensor, ...] = ()

    @property
    def weight_count(self) -> int:
        return sum(slot.weight_count for slot in self.slots)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(slot.module for slot in self.slots if slot.factor == "A")

    @property
    def is_linear(self) -> bool:
        """Whether the factors of linear layers are all there is, so that they alone say what the model does with it."""
        linear = all(not slot.file_shape and "lora_embedding_" not in slot.key for slot in self.slots)
        return bool(self.slots) and not self.extras and linear

    @property
    def body_bytes(self) -> int:
        """Of the tensors of a weights file."""
        factors = sum(slot.weight_count * DTYPE_BYTES[slot.dtype] for slot in self.slots)
        return factors + sum(extra.size_bytes for extra in self.extras)

    @property
    def dtypes(self) -> set[str]:
        """Of all tensors of a weights file."""
        return {slot.dtype for slot in self.slots} | {extra.dtype for extra in self.extras}

    def to_json(self) -> str:
        """What is empty is left out, so that a plain LoRA's digest says nothing of what it does not have."""
        rows = [
            [s.module, s.factor, list(s.shape), s.dtype, s.key, *([list(s.file_shape)] if s.file_shape else [])]
            for s in self.slots
        ]
        extras = {"extras": [[e.key, e.dtype, list(e.shape)] for e in self.extras]} if self.extras else {}
        return canonical_json({"slots": rows, "scales": list(self.scales), **extras})

    @staticmethod
    @lru_cache(maxsize=64)
    def from_json(text: str) -> Layout:
        fields = json.loads(text)
        slots = tuple(
            Slot(module, factor, (shape[0], shape[1]), dtype, key, tuple(file_shape[0]) if file_shape else ())
            for module, factor, shape, dtype, key, *file_shape in fields["slots"]
        )
        extras = tuple(ExtraTensor(key, dtype, tuple(shape)) for key, dtype, shape in fields.get("extras", ()))
        return Layout(slots, tuple(fields["scales"]), extras)

    @property
    def digest(self) -> str:
        return _layout_digest(self)


@lru_cache(maxsize=64)
def _layout_digest(layout: Layout) -> str:
    return sha256_hex(layout.to_json().encode())


@dataclass(frozen=True, slots=True)
class Cohort:
    """Adapters with the same base model and layout, which one generator can cover."""

    id: int
    name: str
    base_model: str
    layout_digest: str
    layout: str  # Layout.to_json()
    created_at: str  # ISO 8601, UTC, as everywhere


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA as ingested. `digest` is over the sorted (path, sha256) of its weights and config."""

    id: int
    name: str
    version: int
    digest: str
    cohort_id: int
    base_model: str
    rank: int
    weight_count: int
    original_bytes: int  # of the weights file
    description: str
    source: str  # the path it was ingested from
    created_at: str
    removed_at: str | None  # in quarantine since

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file of an adapter, kept as a blob."""

    adapter_id: int
    path: str  # relative, POSIX, validated by `names`
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tag:
    """A movable label on one version of a name: `task@label`."""

    adapter_name: str
    label: str
    adapter_id: int
    created_at: str


@dataclass(frozen=True, slots=True)
class TaskVector:
    """What an adapter's task is, as int8 in units of 2^-5, made by `encoder` from its description or samples."""

    adapter_id: int
    encoder: str
    vector: bytes
    created_at: str


@dataclass(frozen=True, slots=True)
class Generator:
    """A trained decoder and its shared tables, immutable; `version` counts within the cohort."""

    id: int
    cohort_id: int
    version: int
    sha256: str
    size_bytes: int
    arch: str
    encoder: str  # of the task vectors it expects
    config: str  # canonical JSON
    metrics: str  # canonical JSON
    created_at: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """How an adapter is stored, and what was measured when its stored bytes were decoded."""

    id: int
    adapter_id: int
    generator_id: int | None
    codec: str
    tier: Tier
    sha256: str  # of the stored code
    size_bytes: int
    output_digest: str  # sha256 of the weights file that decoding writes
    output_bytes: int
    tolerance: str  # canonical JSON
    fidelity: str  # canonical JSON
    created_at: str
    superseded_at: str | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proven of an encoding, beside what its own row says; see `certificate.statement`."""

    encoding_id: int
    digest: str  # sha256 of the statement's canonical JSON
    facts: str  # canonical JSON
    module_errors: bytes  # relative error of ΔW, little-endian float32 a module
    projections: bytes  # of the original's ΔW, little-endian int16; none where the output is the original


@dataclass(frozen=True, slots=True)
class Pin:
    """A promise that an adapter's original stays."""

    adapter_id: int
    reason: str
    created_at: str


@dataclass(frozen=True, slots=True)
class GeneratorCopy:
    """A second copy of a generator's file."""

    generator_id: int
    location: str  # a folder or a URL
    created_at: str


@dataclass(frozen=True, slots=True)
class RetiredBlob:
    """A blob on its way out: `quarantined`, then `deleting` while its file is unlinked, then `deleted`."""

    sha256: str
    size_bytes: int
    kind: RetiredKind
    proof: str  # digest of what was verified before it was retired
    state: RetiredState
    retired_at: str
    deleted_at: str | None


@dataclass(frozen=True, slots=True)
class Setting:
    """Something a registry remembers."""

    name: str
    value: str  # canonical JSON
    created_at: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the rows of all other tables add up to; see `ledger`."""

    id: int
    number: int
    sums: str  # canonical JSON


@dataclass(frozen=True, slots=True)
class Token:
    """What lets somebody ask a server for something. Its secret is not kept, only the secret's digest."""

    id: int
    name: str
    scope: Scope
    namespace: str  # the part of task names before the '/', or '*' for all
    secret_sha256: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


@dataclass(frozen=True, slots=True)
class NewGenerator:
    """What `Registry.record_generator` takes; the blob is stored already."""

    cohort_id: int
    sha256: str
    size_bytes: int
    arch: str
    encoder: str
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewEncoding:
    """What `Registry.record_encoding` takes; blobs are stored, decoded and measured already."""

    adapter_id: int
    generator_id: int | None
    codec: str
    tier: Tier
    sha256: str
    size_bytes: int
    output_digest: str
    output_bytes: int
    tolerance: dict[str, Any]
    fidelity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing `check` found: an error, or information that asks for nothing."""

    what: str
    problem: str
    remedy: str
    severity: Severity = "error"
