"""`lorareg list`: the adapters in the registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Listing, Output, Table, format_bytes, format_error

if TYPE_CHECKING:
    from lorareg.registry.types import Adapter, Encoding

NOT_ENCODED = "original"
COLUMNS = ("adapter", "original", "stored", "tier", "error", "task")
NUMBERS = frozenset({"original", "stored", "error"})


def _entry(adapter: Adapter, cohort: str | None, encoding: Encoding | None) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "version": adapter.version,
        "cohort": cohort,
        "rank": adapter.rank,
        "original_bytes": adapter.original_bytes,
        "stored_bytes": encoding.size_bytes if encoding else adapter.original_bytes,
        "tier": encoding.tier if encoding else NOT_ENCODED,
        "relative_error": json.loads(encoding.fidelity).get("relative_error") if encoding else None,
        "description": adapter.description,
        "removed_at": adapter.removed_at,
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{entry['name']}@{entry['version']}",
        format_bytes(entry["original_bytes"]),
        format_bytes(entry["stored_bytes"]),
        entry["tier"] if entry["removed_at"] is None else f"removed {entry['removed_at'][:10]}",
        format_error(entry["relative_error"]),
        " ".join(entry["description"].split()) or MISSING,
    )


def list_adapters(
    cohort: Annotated[
        str | None, typer.Option("--cohort", show_default=False, help="Only those of one cohort.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also older versions and removed adapters.")] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the adapters.

    The latest version of each, how it is stored, and how exactly it comes back. Printed while it is read; damaged rows
    are passed over and told at the end.

    Raises:
        DamagedRowsError: some were.
        IntegrityError: rows are lost.
    """
    from lorareg.registry.damage import Damage
    from lorareg.registry.reader import Reader

    damage, table = Damage(), Table(COLUMNS, (), numbers=NUMBERS, flexible=frozenset({"adapter", "task"}))
    with Reader(home) as registry:
        only = None if cohort is None else registry.cohort(cohort).id
        names = {one.id: one.name for one in registry.cohorts(damage)}
        listing = Listing(Output(as_json, quiet), "adapters", table)
        for page in registry.pages(damage, cohort_id=only, include_history=every):
            entries = [_entry(one.adapter, names.get(one.adapter.cohort_id), one.encoding) for one in page]
            listing.add(entries, [_row(entry) for entry in entries], [one.adapter.ref for one in page])
        listing.end({"damaged": list(damage.rows)})
        damage.tell(registry.home)
        registry.expect_counts("cohort", "adapter", "encoding")
