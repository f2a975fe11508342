"""The steps by which blobs go: retire, bring back, sweep, and clearing away what no row ever named.

`prune.plan` decides, here is only done what it says. See there for the protocol.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from lorareg.registry.blobs import StoredBlob
from lorareg.registry.check import expect_sound_rows
from lorareg.registry.errors import MissingBlobError
from lorareg.registry.ingest import now
from lorareg.registry.prune import Plan, plan
from lorareg.registry.report_queries import referenced_digests
from lorareg.registry.rows import record_from_row
from lorareg.registry.schema import AdapterFileRow, EncodingRow, RetiredBlobRow, stored_values
from lorareg.registry.types import Adapter, RetiredBlob

if TYPE_CHECKING:
    from lorareg.registry.store import Registry

GRACE_DAYS = 7.0
SWEEP_LIMIT = 1000
ORPHANS_AT_ONCE = 100
"""Within one transaction; two requests each, where they are objects."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: files deleted, blobs that stay after all, and how many are due but over the limit."""

    deleted: list[RetiredBlob]
    stay: list[RetiredBlob]
    left: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file in the blob store that no row names."""

    sha256: str
    size_bytes: int
    age_s: float


def retire(registry: Registry, proofs: Mapping[str, str]) -> list[RetiredBlob]:
    """Quarantine the blobs of `proofs` (by digest) that the plan, asked again, still lets go with that proof."""
    with registry.writing() as session:
        found, rows = _plan(session), []
        for blob in found.fresh:
            if proofs.get(blob.sha256) != blob.proof:
                continue
            row = RetiredBlobRow(
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
                kind=blob.kind,
                proof=blob.proof,
                state="quarantined",
                retired_at=now(),
                deleted_at=None,
            )
            session.add(row)
            rows.append(row)
        session.flush()
        return [_record(row) for row in rows]


def bring_back_adapter(session: Session, adapter: Adapter) -> list[RetiredBlob]:
    """Take an adapter's own blobs off the way out, as far as they are not deleted; what came back."""
    files = select(AdapterFileRow.sha256).where(AdapterFileRow.adapter_id == adapter.id)
    codes = select(EncodingRow.sha256).where(EncodingRow.adapter_id == adapter.id)
    mine = RetiredBlobRow.sha256.in_(files) | RetiredBlobRow.sha256.in_(codes)
    rows = session.scalars(select(RetiredBlobRow).where(mine, RetiredBlobRow.state == "quarantined")).all()
    back = [_record(row) for row in rows]
    for row in rows:
        session.delete(row)
    return back


def sweep(registry: Registry, grace: timedelta, limit: int = SWEEP_LIMIT) -> Swept:
    """Delete what has been in quarantine for `grace`, at most `limit` files; safe to stop and to run again.

    Raises:
        BusyError: another process sweeps, collects or compresses.
        IntegrityError: rows are damaged or lost: what they named must not go as nobody's.
    """
    with registry.backend.working():
        expect_sound_rows(registry)
        stay, left = _mark(registry, grace, limit)
        deleted, later = _unlink(registry)
    return Swept(deleted, stay + later, left)


def find_orphans(registry: Registry, grace: timedelta) -> list[Orphan]:
    """Files that no row names and that were stored longer ago than `grace`."""
    with registry.reading() as connection:
        named = referenced_digests(connection)
    return list(_orphans(registry.blobs.listed(), named, grace))


def delete_orphans(registry: Registry, grace: timedelta) -> list[Orphan]:
    """Delete them, each looked at again under the write lock: nobody can come to name one meanwhile.

    Listing a large bucket takes minutes, in which others write; they come in between as well.

    Raises:
        BusyError: another process compresses, and has stored what it is about to name; or one sweeps or collects.
        IntegrityError: rows are damaged or lost: what they named must not go as nobody's.
    """
    with registry.backend.working():
        expect_sound_rows(registry)
        candidates, deleted = find_orphans(registry, grace), []
        for start in range(0, len(candidates), ORPHANS_AT_ONCE):
            with registry.writing() as session:
                named = referenced_digests(session.connection())
                blobs = (_stored(registry, orphan) for orphan in candidates[start : start + ORPHANS_AT_ONCE])
                found = list(_orphans((blob for blob in blobs if blob is not None), named, grace))
                registry.blobs.delete(_while_locked(session, [orphan.sha256 for orphan in found]))
            deleted += found
    return deleted


def _mark(registry: Registry, grace: timedelta, limit: int) -> tuple[list[RetiredBlob], int]:
    """Commit `deleting` for what is due; gives back what stays after all, and how many are over the limit."""
    before = (datetime.now(UTC) - grace).isoformat(timespec="microseconds")
    with registry.writing() as session:
        found, stay = _plan(session), []
        waiting = select(RetiredBlobRow).where(
            RetiredBlobRow.state == "quarantined", RetiredBlobRow.retired_at <= before
        )
        due = session.scalars(waiting.order_by(RetiredBlobRow.retired_at, RetiredBlobRow.sha256)).all()
        for row in due[:limit]:
            if _may_go(found, row):
                row.state = "deleting"
            else:
                stay.append(_record(row))
                session.delete(row)
        return stay, max(len(due) - limit, 0)


def _unlink(registry: Registry) -> tuple[list[RetiredBlob], list[RetiredBlob]]:
    """Unlink what is `deleting`, also from a sweep that was stopped; gives back what went and what stays."""
    with registry.writing() as session:
        found, stay = _plan(session), []
        going = []
        for row in session.scalars(select(RetiredBlobRow).where(RetiredBlobRow.state == "deleting")).all():
            if _may_go(found, row) or row.sha256 not in registry.blobs:
                going.append(row)
            else:
                stay.append(_record(row))
                session.delete(row)
        registry.blobs.delete(_while_locked(session, [row.sha256 for row in going]))
        for row in going:
            row.state, row.deleted_at = "deleted", now()
        session.flush()
        return [_record(row) for row in going], stay


def _while_locked(session: Session, digests: Sequence[str]) -> Iterator[str]:
    """Digests, as long as the transaction lasts: a server that ended it has let others write, who may need the next.

    Asking also keeps a server from ending it as idle while objects are deleted.
    """
    for sha256 in digests:
        session.execute(text("SELECT 1"))
        yield sha256


def _stored(registry: Registry, orphan: Orphan) -> StoredBlob | None:
    """As it is now; None if another came before."""
    try:
        return registry.blobs.stored(orphan.sha256)
    except MissingBlobError:
        return None


def _orphans(blobs: Iterable[StoredBlob], named: set[str], grace: timedelta) -> Iterator[Orphan]:
    for blob in blobs:
        age_s = time.time() - blob.stored_at_s
        if blob.sha256 not in named and age_s >= grace.total_seconds():
            yield Orphan(blob.sha256, blob.size_bytes, age_s)


def _may_go(found: Plan, row: RetiredBlobRow) -> bool:
    blob = found.removable.get(row.sha256)
    return blob is not None and blob.proof == row.proof


def _plan(session: Session) -> Plan:
    session.flush()
    return plan(lambda sql: [dict(row) for row in session.execute(text(sql)).mappings()])


def _record(row: RetiredBlobRow) -> RetiredBlob:
    return record_from_row(RetiredBlob, "retired_blob", stored_values(row))
