"""Which blobs rows name, and what for: by digest, as a store's own list is, so that neither has to be held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from lorareg.registry.lookup import Lookup, Snapshot
from lorareg.registry.row_reading import VALUES_A_QUERY
from lorareg.registry.types import WEIGHTS_FILE, Finding, Severity

_FILE_REMEDY = "Restore it from a backup, or ingest the original again."
_CODE_REMEDY = "Restore it from a backup; while the originals are kept, `lorareg compress` makes it anew."
_OLD_REMEDY = "No adapter needs it; it takes space."


class Role(IntEnum):
    """What a blob is for; of several, the lowest is told."""

    FILE = 0
    ORIGINAL = 1  # weights of an adapter that has a code
    CODE = 2
    GENERATOR = 3  # that a code uses
    OLD_CODE = 4
    OLD_GENERATOR = 5


_IS_NEEDED = {Role.FILE, Role.ORIGINAL, Role.CODE, Role.GENERATOR}
_MAY_GO = {Role.ORIGINAL, Role.OLD_CODE, Role.OLD_GENERATOR}
_REMEDIES = {
    Role.FILE: _FILE_REMEDY,
    Role.ORIGINAL: _FILE_REMEDY,
    Role.CODE: _CODE_REMEDY,
    Role.GENERATOR: _CODE_REMEDY,
    Role.OLD_CODE: _OLD_REMEDY,
    Role.OLD_GENERATOR: _OLD_REMEDY,
}

_USES = f"""
SELECT file.sha256, file.size_bytes,
    CASE WHEN file.path = '{WEIGHTS_FILE}' AND code.id IS NOT NULL THEN {Role.ORIGINAL} ELSE {Role.FILE} END AS role,
    file.path AS part, adapter.name, adapter.version
FROM adapter_file file LEFT JOIN adapter ON adapter.id = file.adapter_id
    LEFT JOIN encoding code ON code.adapter_id = file.adapter_id AND code.superseded_at IS NULL
UNION ALL
SELECT code.sha256, code.size_bytes,
    CASE WHEN code.superseded_at IS NULL THEN {Role.CODE} ELSE {Role.OLD_CODE} END, '', adapter.name, adapter.version
FROM encoding code LEFT JOIN adapter ON adapter.id = code.adapter_id
UNION ALL
SELECT generator.sha256, generator.size_bytes, CASE WHEN EXISTS (
    SELECT 1 FROM encoding code WHERE code.generator_id = generator.id AND code.superseded_at IS NULL
) THEN {Role.GENERATOR} ELSE {Role.OLD_GENERATOR} END, '', '', generator.id
FROM generator
"""


def _query(where: str = "") -> str:
    state = "LEFT JOIN retired_blob ON retired_blob.sha256 = used.sha256"
    order = "used.sha256, used.role, used.name, used.version"
    return f"SELECT used.*, retired_blob.state FROM ({_USES}) AS used {state} {where} ORDER BY {order}"


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """What rows say of a blob: its size, the use of it that tells most, and whether it may be gone."""

    sha256: str
    size_bytes: int
    role: Role
    owner: str
    is_released: bool  # it was pruned, and rightly

    def finding(self, problem: str) -> Finding:
        """What is wrong with it: an error only where somebody needs it."""
        severity: Severity = "error" if self.role in _IS_NEEDED else "information"
        return Finding(f"blob {self.sha256}", f"{self.owner} {problem}", _REMEDIES[self.role], severity)


def named_blobs(frozen: Snapshot) -> Iterator[NamedBlob]:
    """Every blob that a row names, by digest."""
    return _together(frozen.stream(_query()))


def named_among(lookup: Lookup, digests: Sequence[str]) -> Iterator[NamedBlob]:
    """Those of these blobs that rows name now."""
    for start in range(0, len(digests), VALUES_A_QUERY):
        asked = {f"digest_{number}": one for number, one in enumerate(digests[start : start + VALUES_A_QUERY])}
        among = ", ".join(f":{parameter}" for parameter in asked)
        yield from _together(lookup.fetch(_query(f"WHERE used.sha256 IN ({among})"), **asked))


def _together(rows: Iterable[Mapping[str, Any]]) -> Iterator[NamedBlob]:
    """All uses of a blob as one; a config may have a hundred thousand, which are not held either."""
    for sha256, uses in groupby(rows, key=itemgetter("sha256")):
        first = next(uses)
        may_go = all(use["role"] in _MAY_GO for use in chain([first], uses))
        is_released = may_go and first["state"] in ("deleting", "deleted")
        role = Role(first["role"])
        yield NamedBlob(sha256, first["size_bytes"], role, _owner(role, first), is_released)


def _owner(role: Role, use: Mapping[str, Any]) -> str:
    if role in (Role.GENERATOR, Role.OLD_GENERATOR):
        return f"generator {use['version']}"
    adapter = "?" if use["name"] is None else f"{use['name']}@{use['version']}"
    parts = {Role.CODE: "code", Role.OLD_CODE: "older code"}
    return f"{parts.get(role, use['part'])} of {adapter}"
