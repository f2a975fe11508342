"""What taking a validated folder in comes to: its files staged, and its rows, which decide what it was.

`intake` does it, for one or many: blobs first, then rows.

| outcome | when |
|---|---|
| `new` | the name was not here |
| `version` | the name was here with other weights or config: it becomes the next version |
| `known` | the same bytes under the same name: nothing changes |
| `updated` | the same weights and config with another card, samples, evaluation or description |
| `revived` | the same bytes under a name that was removed: it is back, with the version it had |
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorareg.registry.blobs import StagedBlob, Staging
from lorareg.registry.card import tidy_description
from lorareg.registry.names import validate_relative_path
from lorareg.registry.peft_format import PeftFolder, verify_copy
from lorareg.registry.rows import record_from_row
from lorareg.registry.schema import AdapterFileRow, AdapterRow, Base, CohortRow, TaskVectorRow, stored_values
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EXTRAS_FOLDER,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    Adapter,
    Layout,
    canonical_json,
    sha256_hex,
)

OutcomeKind = Literal["new", "version", "known", "updated", "revived"]
_SHORT_DIGEST_CHARS = 6


@dataclass(frozen=True, slots=True)
class IngestRequest:
    """An adapter to take in; without a description, its card's, without a base model, what it says itself."""

    path: Path
    name: str
    description: str | None = None
    base_model: str | None = None  # of a lone file
    source: str | None = None  # where it is from, if not `path`


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What ingesting a folder came to."""

    kind: OutcomeKind
    adapter: Adapter
    note: str = ""  # why nothing of it can be coded, where that is so


@dataclass(frozen=True, slots=True)
class Staged:
    """An adapter that was read and validated, and its files on their way in, or stored."""

    request: IngestRequest
    folder: PeftFolder
    files: dict[str, StagedBlob]


def stage_files(staging: Staging, folder: PeftFolder) -> dict[str, StagedBlob]:
    """Copy the folder's files to where blobs come from, and verify the copies.

    Raises:
        InvalidAdapterError: a file changed since it was validated, or a weight is not finite.
    """
    staged = {}
    for file in folder.files:
        blob = staging.add_bytes(file.data) if file.data is not None else staging.add_file(file.source, file.max_bytes)
        verify_copy(folder, file, blob.path, blob.sha256)
        staged[validate_relative_path(file.path)] = blob
    return staged


def record_adapters(session: Session, coming: Sequence[Staged]) -> list[IngestOutcome]:
    """Write the rows of adapters whose files are stored already, in order."""
    return _Recording(session, {one.request.name for one in coming}).record(coming)


def adapter_digest(digests: dict[str, str]) -> str:
    """An adapter's identity: SHA-256 over the sorted (path, sha256) of its weights and config."""
    return sha256_hex(canonical_json(sorted([path, digests[path]] for path in (CONFIG_FILE, WEIGHTS_FILE))).encode())


def cohort_name(base_model: str, layout: Layout, rank: int, digest: str) -> str:
    """A readable name: base model, rank and initials of the adapted layers (or "opaque"), start of a digest."""
    base = re.sub(r"[^a-z0-9]+", "-", base_model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")[:48] or "model"
    if not layout.slots:
        return f"{base}-opaque-{digest}"
    layers = sorted({module.rsplit(".", 1)[-1] for module in layout.modules})
    initials = re.sub(r"[^a-z0-9]", "", "".join(layer[0].lower() for layer in layers))[:8] or "x"
    return f"{base}-r{rank}-{initials}-{digest}"


def adapter_record(row: AdapterRow) -> Adapter:
    """The record of a row that is loaded or flushed."""
    return record_from_row(Adapter, "adapter", stored_values(row))


def next_id(session: Session, table: type[Base]) -> int:
    """The next free id, allocated by hand because the row's digest covers it; inside the write transaction."""
    column: Any = table.__table__.c.id
    return int(session.scalar(select(func.coalesce(func.max(column), 0) + 1)) or 1)


def now() -> str:
    """The time as it is stored."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def describe_adapter(session: Session, row: AdapterRow, description: str) -> None:
    """Give an adapter another description; task vectors that were made from the old one go."""
    row.description = description
    for vector in session.scalars(select(TaskVectorRow).where(TaskVectorRow.adapter_id == row.id)):
        session.delete(vector)


def put_file_rows(session: Session, adapter_id: int, stored: Mapping[str, StagedBlob]) -> set[str]:
    """Make the rows of these files say what was stored; return the paths that are new or other."""
    rows = _file_rows(session, adapter_id)
    changed = stored.keys() - rows.keys()
    for path, blob in stored.items():
        if path not in rows:
            session.add(_file_row(adapter_id, path, blob))
        elif rows[path].sha256 != blob.sha256:
            rows[path].sha256, rows[path].size_bytes = blob.sha256, blob.size_bytes
            changed.add(path)
    return changed


class _Recording:
    """The rows of adapters that come together: what they are compared with is read once, and new rows are sent at once.

    A query and a flush take SQLAlchemy a millisecond, an adapter's rows themselves a tenth of that.
    """

    def __init__(self, session: Session, names: Collection[str]) -> None:
        self.session, self._next_id = session, next_id(session, AdapterRow)
        self._versions: dict[str, list[AdapterRow]] = {name: [] for name in names}
        for row in session.scalars(select(AdapterRow).where(AdapterRow.name.in_(names)).order_by(AdapterRow.version)):
            self._versions[row.name].append(row)
        self._cohorts: dict[tuple[str, str], int] = {}
        self._unsent: list[tuple[OutcomeKind, AdapterRow, Staged]] = []
        self._outcomes: list[IngestOutcome] = []

    def record(self, coming: Sequence[Staged]) -> list[IngestOutcome]:
        for one in coming:
            versions = self._versions[one.request.name]
            digest = adapter_digest({path: blob.sha256 for path, blob in one.files.items()})
            same = [row for row in versions if row.digest == digest]
            if same:
                self._send()
                self._outcomes.append(_record_again(self.session, same[-1], one))
                continue
            row = self._new_row(one, versions[-1].version + 1 if versions else 1, digest)
            self._unsent.append(("version" if versions else "new", row, one))
            versions.append(row)
        self._send()
        return self._outcomes

    def _new_row(self, one: Staged, version: int, digest: str) -> AdapterRow:
        folder, request = one.folder, one.request
        description = folder.description if request.description is None else request.description
        row = AdapterRow(
            id=self._next_id,
            name=request.name,
            version=version,
            digest=digest,
            cohort_id=self._cohort_id(folder),
            base_model=folder.base_model,
            rank=folder.rank,
            weight_count=folder.layout.weight_count,
            original_bytes=one.files[WEIGHTS_FILE].size_bytes,
            description=tidy_description(description),
            source=_printable(folder.path.absolute() if request.source is None else request.source),
            created_at=now(),
            removed_at=None,
        )
        self._next_id += 1
        return row

    def _cohort_id(self, folder: PeftFolder) -> int:
        key = folder.base_model, folder.layout.digest
        if key not in self._cohorts:
            self._cohorts[key] = _cohort_id(self.session, folder)
        return self._cohorts[key]

    def _send(self) -> None:
        """Adapters first: their files refer to them."""
        self.session.add_all(row for _, row, _ in self._unsent)
        self.session.flush()
        for _, row, one in self._unsent:
            self.session.add_all(_file_row(row.id, path, blob) for path, blob in one.files.items())
        self.session.flush()
        for kind, row, one in self._unsent:
            note = f"kept exactly: {one.folder.opaque}" if one.folder.opaque else ""
            self._outcomes.append(IngestOutcome(kind, adapter_record(row), note))
        self._unsent.clear()


def _record_again(session: Session, row: AdapterRow, one: Staged) -> IngestOutcome:
    changed, description = _record_files(session, row.id, one.files), one.request.description
    if description is None:
        # What `--description` once said stands until the card itself says something new.
        description = one.folder.description if CARD_FILE in changed else row.description
    wanted = tidy_description(description)
    revived, described = row.removed_at is not None, row.description != wanted
    if revived:
        row.removed_at = None
    if described or SAMPLES_FILE in changed:
        describe_adapter(session, row, wanted)
    session.flush()
    kind: OutcomeKind = "revived" if revived else "updated" if changed or described else "known"
    return IngestOutcome(kind, adapter_record(row))


def _record_files(session: Session, adapter_id: int, stored: dict[str, StagedBlob]) -> set[str]:
    """Make the adapter's file rows say what was ingested; return the paths that are new, other or gone."""
    rows = _file_rows(session, adapter_id)
    gone = {path for path in rows.keys() - stored.keys() if not path.startswith(EXTRAS_FOLDER)}
    for path in gone:
        session.delete(rows[path])
    return gone | put_file_rows(session, adapter_id, stored)


def _file_rows(session: Session, adapter_id: int) -> dict[str, AdapterFileRow]:
    mine = select(AdapterFileRow).where(AdapterFileRow.adapter_id == adapter_id)
    return {row.path: row for row in session.scalars(mine)}


def _file_row(adapter_id: int, path: str, blob: StagedBlob) -> AdapterFileRow:
    return AdapterFileRow(adapter_id=adapter_id, path=path, sha256=blob.sha256, size_bytes=blob.size_bytes)


def _cohort_id(session: Session, folder: PeftFolder) -> int:
    layout_digest = folder.layout.digest
    same = (CohortRow.base_model == folder.base_model, CohortRow.layout_digest == layout_digest)
    found = session.scalar(select(CohortRow.id).where(*same))
    if found is not None:
        return found
    digest, chars = sha256_hex(canonical_json([folder.base_model, layout_digest]).encode()), _SHORT_DIGEST_CHARS
    name = cohort_name(folder.base_model, folder.layout, folder.rank, digest[:chars])
    while session.scalar(select(CohortRow.id).where(CohortRow.name == name)) is not None:
        chars += 2
        name = cohort_name(folder.base_model, folder.layout, folder.rank, digest[:chars])
    row = CohortRow(
        id=next_id(session, CohortRow),
        name=name,
        base_model=folder.base_model,
        layout_digest=layout_digest,
        layout=folder.layout.to_json(),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row.id


def _printable(path: Path | str) -> str:
    """The path as text that any database takes, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace").replace("\0", "\ufffd")
