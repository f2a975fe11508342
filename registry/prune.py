"""Letting blobs go that nothing needs any more, in steps that can each be taken back until the last.

    plan        nothing changes: what could go, and why the rest stays
    retire      after their adapters were verified in a new process: blobs are `quarantined`, files untouched
    restore     takes them off the way out
    sweep       after the grace: rows become `deleting` (committed), then files are unlinked and rows `deleted`

What may go is decided by one function, `plan`, asked again under the write lock before every step. Each blob
on its way out carries a *proof*, a digest over the certificates it was verified by: where the plan has another
today, or none, the blob stays. Files are unlinked inside a write transaction, so that whoever records a row
that needs one either comes first, and keeps it, or finds it gone and stores it again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from lorareg.registry.certificate import Subject, is_stale
from lorareg.registry.rows import every_row, record_from_row
from lorareg.registry.types import (
    WEIGHTS_FILE,
    Adapter,
    AdapterFile,
    Certificate,
    Cohort,
    Encoding,
    Generator,
    GeneratorCopy,
    Pin,
    RetiredBlob,
    RetiredKind,
    canonical_json,
    sha256_hex,
)

Record = TypeVar("Record")
Fetch = Callable[[str], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Removable:
    """A blob that could go. `owners` are the adapters that must be verified first, by id, with their encodings."""

    sha256: str
    size_bytes: int
    kind: RetiredKind
    what: str  # whose it is, for people
    owners: Mapping[int, int]
    generators: tuple[int, ...]  # whose second copies must still be there
    proof: str


@dataclass(frozen=True, slots=True)
class Staying:
    """An original that stays, and why."""

    what: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What could go, what stays, and what is on its way out already."""

    removable: dict[str, Removable]
    staying: list[Staying]
    retired: dict[str, RetiredBlob]

    @property
    def fresh(self) -> list[Removable]:
        """What could go and is not on its way yet."""
        return [blob for blob in self.removable.values() if blob.sha256 not in self.retired]


def plan(fetch: Fetch) -> Plan:
    """Decide what could go, from the rows that `fetch` gives for a SELECT."""
    return _Planner(_Rows.read(fetch)).plan()


@dataclass(frozen=True, slots=True)
class _Rows:
    """All that a plan looks at."""

    cohorts: dict[int, Cohort]
    adapters: dict[int, Adapter]
    files: dict[int, dict[str, AdapterFile]]  # by adapter and path
    encodings: list[Encoding]
    generators: dict[int, Generator]
    certificates: dict[int, Certificate]
    pins: dict[int, Pin]
    copied: frozenset[int]
    retired: dict[str, RetiredBlob]

    @staticmethod
    def read(fetch: Fetch) -> _Rows:
        """Raises IntegrityError for a damaged row."""

        def all_of(record: type[Record], table: str) -> list[Record]:
            return [record_from_row(record, table, row) for row in fetch(every_row(table))]

        files: dict[int, dict[str, AdapterFile]] = defaultdict(dict)
        for file in all_of(AdapterFile, "adapter_file"):
            files[file.adapter_id][file.path] = file
        return _Rows(
            cohorts={row.id: row for row in all_of(Cohort, "cohort")},
            adapters={row.id: row for row in sorted(all_of(Adapter, "adapter"), key=lambda a: (a.name, a.version))},
            files=files,
            encodings=all_of(Encoding, "encoding"),
            generators={row.id: row for row in all_of(Generator, "generator")},
            certificates={row.encoding_id: row for row in all_of(Certificate, "certificate")},
            pins={row.adapter_id: row for row in all_of(Pin, "pin")},
            copied=frozenset(row.generator_id for row in all_of(GeneratorCopy, "generator_copy")),
            retired={row.sha256: row for row in all_of(RetiredBlob, "retired_blob")},
        )


class _Planner:
    """One look at the rows."""

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows
        self.current = {e.adapter_id: e for e in rows.encodings if e.superseded_at is None}
        self.refusals = {adapter_id: self._refusal(adapter) for adapter_id, adapter in rows.adapters.items()}

    def plan(self) -> Plan:
        removable: dict[str, Removable] = {}
        staying: list[Staying] = []
        for sha256, owners in self._originals().items():
            file = self.rows.files[owners[0]][WEIGHTS_FILE]
            what = ", ".join(self.rows.adapters[owner].ref for owner in owners)
            reasons = [f"{self._ref(owner)} {self.refusals[owner]}" for owner in owners if self.refusals[owner]]
            retired = self.rows.retired.get(sha256)
            if retired is not None and retired.state == "deleted":
                continue
            if sha256 in self.needed:
                reasons.append("a code is the same file")
            if reasons:
                staying.append(Staying(what, file.size_bytes, reasons[0].removeprefix(f"{what} ")))
            else:
                removable[sha256] = self._removable(sha256, file.size_bytes, "original", what, owners)
        for blob in self._history():
            if blob.sha256 not in removable:
                removable[blob.sha256] = blob
        return Plan(removable, staying, self.rows.retired)

    def _originals(self) -> dict[str, list[int]]:
        """Weights files, with the adapters whose they are."""
        owners: dict[str, list[int]] = defaultdict(list)
        for adapter_id in self.rows.adapters:
            file = self.rows.files[adapter_id].get(WEIGHTS_FILE)
            if file is not None:
                owners[file.sha256].append(adapter_id)
        return owners

    @cached_property
    def needed(self) -> set[str]:
        """Blobs that no proof lets go: codes and generators in use, and files other than weights."""
        in_use = {encoding.generator_id for encoding in self.current.values()} - {None}
        codes = {encoding.sha256 for encoding in self.current.values()}
        generators = {self.rows.generators[number].sha256 for number in in_use if number is not None}
        others = {f.sha256 for files in self.rows.files.values() for f in files.values() if f.path != WEIGHTS_FILE}
        return codes | generators | others

    def _history(self) -> Iterable[Removable]:
        """Older codes and generators, as far as nothing else needs the same bytes."""
        kept = self.needed | self._originals().keys()
        older: dict[str, list[Encoding]] = defaultdict(list)
        for encoding in self.rows.encodings:
            if encoding.superseded_at is not None and encoding.sha256 not in kept:
                older[encoding.sha256].append(encoding)
        for sha256, encodings in older.items():
            owners = sorted({encoding.adapter_id for encoding in encodings})
            if not self._gone(sha256) and all(self._holds(owner) for owner in owners):
                what = ", ".join(self._ref(owner) for owner in owners)
                yield self._removable(sha256, encodings[0].size_bytes, "older code", what, owners)
        for generator in self.rows.generators.values():
            if generator.sha256 not in kept and not self._gone(generator.sha256):
                what = f"generator {generator.arch} v{generator.version}"
                yield self._removable(generator.sha256, generator.size_bytes, "older generator", what, [])

    def _gone(self, sha256: str) -> bool:
        return sha256 in self.rows.retired and self.rows.retired[sha256].state == "deleted"

    def _removable(
        self, sha256: str, size_bytes: int, kind: RetiredKind, what: str, owners: Sequence[int]
    ) -> Removable:
        encodings = {owner: self.current[owner] for owner in owners}
        used = sorted({e.generator_id for e in encodings.values() if e.generator_id is not None})
        certified = [[self.rows.certificates[e.id].digest, owner] for owner, e in sorted(encodings.items())]
        proof = sha256_hex(canonical_json([sha256, kind, certified, used]).encode())
        by_owner = {owner: encoding.id for owner, encoding in encodings.items()}
        return Removable(sha256, size_bytes, kind, what, by_owner, tuple(used), proof)

    def _holds(self, adapter_id: int) -> bool:
        """Whether an adapter's present encoding is certified, whatever keeps its original."""
        encoding = self.current.get(adapter_id)
        return encoding is not None and not self._uncertified(self.rows.adapters[adapter_id], encoding)

    def _refusal(self, adapter: Adapter) -> str:
        """Why an adapter's original must stay; empty if it could go."""
        encoding = self.current.get(adapter.id)
        if encoding is None:
            return "has no code yet; `lorareg compress` makes one"
        if adapter.id in self.rows.pins:
            reason = self.rows.pins[adapter.id].reason
            return "is pinned" + (f": {reason}" if reason else "")
        uncertified = self._uncertified(adapter, encoding)
        if uncertified:
            return uncertified
        if encoding.generator_id is not None and encoding.generator_id not in self.rows.copied:
            generator = self.rows.generators[encoding.generator_id]
            return (
                f"needs generator {generator.arch} v{generator.version}, which has no second copy; "
                "`lorareg replicate` makes one"
            )
        return ""

    def _uncertified(self, adapter: Adapter, encoding: Encoding) -> str:
        certificate = self.rows.certificates.get(encoding.id)
        if certificate is None:
            return "has no certificate; `lorareg verify` makes one while the original is here"
        generator = None if encoding.generator_id is None else self.rows.generators[encoding.generator_id]
        subject = Subject(
            adapter, self.rows.cohorts[adapter.cohort_id], self.rows.files[adapter.id], encoding, generator
        )
        if is_stale(subject, certificate):
            return "has a stale certificate: its rows say something else now; `lorareg verify` makes a new one"
        return contract_failure(encoding)

    def _ref(self, adapter_id: int) -> str:
        return self.rows.adapters[adapter_id].ref


_LEVELS = {"relative_error": ("relative_error", 1), "kl": ("kl_divergence", 1), "gain": ("gain_retained", -1)}
"""Of a contract: what was measured for it, and whether it may be at most (1) or at least (-1) that."""


def contract_failure(encoding: Encoding) -> str:
    """What of its contract an encoding does not hold by what was measured; empty if it holds."""
    if encoding.tier == "lossless":
        return ""
    held, found = json.loads(encoding.tolerance), json.loads(encoding.fidelity)
    for name, (key, sign) in _LEVELS.items():
        if name not in held:
            continue
        measured = found.get(key)
        if measured is None or not sign * float(measured) <= sign * float(held[name]) + 1e-9:
            return f"does not hold its contract: {key} is {measured}, and {held[name]} was asked for"
    return ""
