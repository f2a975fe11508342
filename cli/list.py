"""`lorareg list`: the adapters in the registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table, format_bytes, format_error

if TYPE_CHECKING:
    from lorareg.registry.types import Adapter, Encoding

NOT_ENCODED = "original"


def _entry(adapter: Adapter, cohort: str, encoding: Encoding | None) -> dict[str, Any]:
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


def _latest(adapters: list[Adapter]) -> list[Adapter]:
    newest: dict[str, Adapter] = {}
    for adapter in adapters:
        if adapter.name not in newest or adapter.version > newest[adapter.name].version:
            newest[adapter.name] = adapter
    return list(newest.values())


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

    The latest version of each, how it is stored, and how exactly it comes back.
    """
    from lorareg.registry.reader import Reader

    with Reader(home) as registry:
        cohorts = [registry.cohort(cohort)] if cohort else registry.cohorts()
        names = {one.id: one.name for one in cohorts}
        encodings = {enc.adapter_id: enc for one in cohorts for enc in registry.encodings(one.id)}
        only = cohorts[0].id if cohort else None
        adapters = registry.adapters(cohort_id=only, include_removed=every)
    shown = adapters if every else _latest(adapters)
    shown.sort(key=lambda adapter: (adapter.name, adapter.version))
    entries = [_entry(adapter, names[adapter.cohort_id], encodings.get(adapter.id)) for adapter in shown]
    columns = ("adapter", "original", "stored", "tier", "error", "task")
    table = Table(
        columns,
        [_row(entry) for entry in entries],
        numbers=frozenset({"original", "stored", "error"}),
        flexible=frozenset({"adapter", "task"}),
    )
    Output(as_json, quiet).show({"adapters": entries}, table, brief=[adapter.ref for adapter in shown])
