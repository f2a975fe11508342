"""`lorareg prune` and `lorareg gc`: letting go of what nothing needs, never in one step."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, Table, format_bytes
from lorareg.cli.progress import progress
from lorareg.registry.errors import ContractError

if TYPE_CHECKING:
    from lorareg.registry.prune import Plan
    from lorareg.registry.store import Registry

GRACE_DAYS = 7.0
SWEEP_LIMIT = 1000

GraceDays = Annotated[
    float, typer.Option("--grace-days", metavar="DAYS", help="How long what is to be deleted can be brought back.")
]


def prune(
    apply: Annotated[bool, typer.Option("--apply", help="Verify, then put what passes in quarantine.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Delete what has been in quarantine for the grace.")] = False,
    grace_days: GraceDays = GRACE_DAYS,
    limit: Annotated[int, typer.Option("--limit", min=1, help="With --sweep: the most files to delete.")] = SWEEP_LIMIT,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Let originals and older codes go that nothing needs any more.

    Without options it only says what would go, and why the rest stays. --apply decodes everything once
    more in a new process, from the disk, and puts what passes in quarantine, where `lorareg restore`
    finds it. --sweep deletes what has been there for the grace. Adapters that are pinned, that have no
    certificate that holds, or whose generator has no second copy keep their originals.
    """
    from lorareg.registry.store import Registry

    if apply and sweep:
        raise typer.BadParameter("takes a run of its own.", param_hint="--sweep")
    output = Output(as_json, quiet)
    with Registry.open(home, create=False, frees=True) as registry:
        if sweep:
            _sweep(registry, output, _grace(grace_days), limit)
        elif apply:
            _apply(registry, output)
        else:
            from lorareg.compress.proofs.prune import plan_of

            _show_plan(plan_of(registry), output)


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Delete them.")] = False,
    grace_days: GraceDays = GRACE_DAYS,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Delete files that nothing refers to.

    Those in the blob store that no row names, older than the grace. A stopped `ingest` or `compress`
    leaves some. Without --apply it only lists them.
    """
    from lorareg.registry.store import Registry
    from lorareg.registry.sweep import delete_orphans, find_orphans

    with Registry.open(home, create=False, frees=True) as registry:
        orphans = (delete_orphans if apply else find_orphans)(registry, _grace(grace_days))
    size_bytes = sum(orphan.size_bytes for orphan in orphans)
    verb = "deleted" if apply else "could be deleted; --apply does it"
    data = {"applied": apply, "size_bytes": size_bytes, "orphans": [asdict(orphan) for orphan in orphans]}
    line = f"{len(orphans)} files that nothing refers to ({format_bytes(size_bytes)}) {verb}."
    Output(as_json, quiet).show(data, line, brief=[orphan.sha256 for orphan in orphans])


def _grace(days: float) -> timedelta:
    if not 0 <= days <= 36500:
        raise ContractError(option=f"--grace-days {days:g}", reason="it is at least 0 days")
    return timedelta(days=days)


def _show_plan(found: Plan, output: Output) -> None:
    going = found.fresh
    freed = sum(blob.size_bytes for blob in going)
    quarantined = [blob for blob in found.retired.values() if blob.state != "deleted"]
    waiting = sum(blob.size_bytes for blob in quarantined)
    data = {
        "would_go": [{"what": b.what, "kind": b.kind, "sha256": b.sha256, "size_bytes": b.size_bytes} for b in going],
        "would_go_bytes": freed,
        "stays": [asdict(blob) for blob in found.staying],
        "in_quarantine": [asdict(blob) for blob in quarantined],
        "in_quarantine_bytes": waiting,
    }
    flexible = frozenset({"what", "because it"})
    numbers = frozenset({"bytes"})
    rows = [(blob.kind, blob.what, format_bytes(blob.size_bytes)) for blob in going]
    tables = [Table(("would go", "what", "bytes"), rows, "", numbers, flexible)] if rows else []
    stay = [(blob.what, format_bytes(blob.size_bytes), blob.reason) for blob in found.staying]
    tables += [Table(("what", "bytes", "because it"), stay, "Stays", numbers, flexible)] if stay else []
    line = (
        f"{len(going)} files ({format_bytes(freed)}) could go, {len(stay)} originals stay, {len(quarantined)} files "
        f"({format_bytes(waiting)}) are in quarantine. Nothing was changed; --apply verifies and puts in quarantine."
    )
    output.show(data, *tables, line, brief=[blob.sha256 for blob in going])


def _apply(registry: Registry, output: Output) -> None:
    from lorareg.compress.proofs.prune import prune as run_prune

    with progress(output) as reporter:
        retired, refused = run_prune(registry, reporter)
    size_bytes = sum(blob.size_bytes for blob in retired)
    data = {"quarantined": [asdict(blob) for blob in retired], "size_bytes": size_bytes, "refused": refused}
    line = (
        f"{len(retired)} files ({format_bytes(size_bytes)}) are in quarantine; `lorareg restore TASK` brings them "
        "back, and `lorareg prune --sweep` deletes them after the grace."
    )
    stays = [f"stays: {problem}" for problem in refused]
    output.show(data, *stays, line, brief=[blob.sha256 for blob in retired])


def _sweep(registry: Registry, output: Output, grace: timedelta, limit: int) -> None:
    from lorareg.registry.sweep import sweep

    swept = sweep(registry, grace, limit)
    freed = sum(blob.size_bytes for blob in swept.deleted)
    data = {
        "deleted": [asdict(blob) for blob in swept.deleted],
        "freed_bytes": freed,
        "stay": [asdict(blob) for blob in swept.stay],
        "left": swept.left,
    }
    lines = [f"{len(swept.deleted)} files deleted, {format_bytes(freed)} freed."]
    if swept.stay:
        lines.append(f"{len(swept.stay)} files stay after all: what spoke for letting them go has changed.")
    if swept.left:
        lines.append(f"{swept.left} more are due; run it again, or raise --limit.")
    output.show(data, *lines, brief=[blob.sha256 for blob in swept.deleted])
