"""Certificates: what was proven of an encoding, as one JSON statement that stands on its own.

A statement is composed, whenever it is asked for, from rows that never change once written (adapter,
weights and config file, encoding, generator) and from the few facts that stand nowhere else. Its digest
was recorded when it was measured, so a row that says something else today makes the certificate *stale*.

    {"format": "lorareg-certificate-1",
     "adapter", "base_model", "layout_sha256",
     "original": {"weights_sha256", "weights_bytes", "config_sha256"},
     "stored": {"code": {"sha256", "size_bytes"}, "generator": the same or null},
     "decoder": {"codec", "lorareg"},
     "output": {"sha256", "size_bytes"},
     "tier", "tolerance", "fidelity", "modules": {module: relative error of ΔW},
     "projections": {"count", "seed", "scale", "norm", "original": integers} or null where output = original,
     "measured_at"}
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lorareg.registry.lookup import Lookup
from lorareg.registry.types import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterFile,
    Certificate,
    Cohort,
    Encoding,
    Generator,
    Layout,
    canonical_json,
    sha256_hex,
)

FORMAT = "lorareg-certificate-1"
SEED_PREFIX = b"lorareg-projections-1\n"


@dataclass(frozen=True, slots=True)
class Proof:
    """What measuring an encoding adds to its row: `facts` are canonical JSON values, the rest as `Certificate`."""

    facts: Mapping[str, Any]
    module_errors: bytes
    projections: bytes


@dataclass(frozen=True, slots=True)
class Subject:
    """The rows that a certificate is about."""

    adapter: Adapter
    cohort: Cohort
    files: Mapping[str, AdapterFile]  # by path
    encoding: Encoding
    generator: Generator | None

    @staticmethod
    def of(lookup: Lookup, adapter: Adapter, encoding: Encoding) -> Subject:
        """Raises UnknownCohortError or UnknownGeneratorError where a row is gone."""
        return Subject(
            adapter,
            lookup.cohort(adapter.cohort_id),
            {file.path: file for file in lookup.files(adapter)},
            encoding,
            None if encoding.generator_id is None else lookup.generator(encoding.generator_id),
        )

    @property
    def is_exact(self) -> bool:
        """Whether decoding gives the original file, byte for byte."""
        return self.encoding.output_digest == self.files[WEIGHTS_FILE].sha256

    @property
    def seed(self) -> bytes:
        """What projections are drawn from; a code made from an earlier one, its original gone, keeps that one's."""
        return projection_seed(self.files[WEIGHTS_FILE].sha256, self.encoding.sha256, self.encoding.output_digest)


def projection_seed(original_sha256: str, code_sha256: str, output_sha256: str) -> bytes:
    """What projections are drawn from: 32 bytes that nobody knew before the code was finished."""
    digests = (original_sha256, code_sha256, output_sha256)
    return hashlib.sha256(SEED_PREFIX + "\n".join(digests).encode()).digest()


def compose(subject: Subject, proof: Proof | Certificate) -> dict[str, Any]:
    """The statement, as JSON values."""
    adapter, encoding, generator = subject.adapter, subject.encoding, subject.generator
    facts = json.loads(proof.facts) if isinstance(proof, Certificate) else dict(proof.facts)
    weights, config = subject.files[WEIGHTS_FILE], subject.files[CONFIG_FILE]
    modules = _modules(subject.cohort.layout)
    errors = struct.unpack(f"<{len(proof.module_errors) // 4}f", proof.module_errors)
    projections = None
    if proof.projections:
        count = len(proof.projections) // 2
        projections = {
            "count": count,
            "seed": facts.pop("projection_seed", subject.seed.hex()),
            "scale": facts.pop("projection_scale"),
            "norm": facts.pop("original_norm"),
            "original": list(struct.unpack(f"<{count}h", proof.projections)),
        }
    return {
        "format": FORMAT,
        "adapter": {"name": adapter.name, "version": adapter.version, "digest": adapter.digest},
        "base_model": adapter.base_model,
        "layout_sha256": subject.cohort.layout_digest,
        "original": {
            "weights_sha256": weights.sha256,
            "weights_bytes": weights.size_bytes,
            "config_sha256": config.sha256,
        },
        "stored": {
            "code": {"sha256": encoding.sha256, "size_bytes": encoding.size_bytes},
            "generator": generator and {"sha256": generator.sha256, "size_bytes": generator.size_bytes},
        },
        "decoder": {"codec": encoding.codec, "lorareg": facts.pop("lorareg")},
        "output": {"sha256": encoding.output_digest, "size_bytes": encoding.output_bytes},
        "tier": encoding.tier,
        "tolerance": json.loads(encoding.tolerance),
        "fidelity": {**json.loads(encoding.fidelity), **facts.pop("fidelity")},
        "modules": dict(zip(modules, errors, strict=True)),
        "projections": projections,
        **facts,
    }


def digest_of(statement: Mapping[str, Any]) -> str:
    """SHA-256 of a statement's canonical JSON (sorted keys, no spaces, ASCII)."""
    return sha256_hex(canonical_json(statement).encode())


def is_stale(subject: Subject, certificate: Certificate) -> bool:
    """Whether the rows say something else now than what was certified."""
    try:
        return digest_of(compose(subject, certificate)) != certificate.digest
    except (KeyError, ValueError, struct.error):
        return True


@lru_cache(maxsize=64)
def _modules(layout: str) -> tuple[str, ...]:
    return Layout.from_json(layout).modules
