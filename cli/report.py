"""`lorareg report`: what was saved, in the terminal, as JSON or as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import (
    BYTE_KINDS,
    MISSING,
    Listing,
    Output,
    Table,
    format_bytes,
    format_error,
    format_percent,
    format_tiers,
)

if TYPE_CHECKING:
    from lorareg.registry.report import AdapterReport, Report

ADAPTERS_A_PAGE = 200
MOST_TOLD = 20
_COLUMNS = ("adapter", "original", "stored", "tier", "error", "marginal", "amortised")
ADAPTERS = Table(_COLUMNS, (), "Adapters", frozenset(_COLUMNS) - {"adapter", "tier"}, frozenset({"adapter"}))
EXPLAINED = ("original", "stored", "marginal", "amortised", "break_even", "generator_pays_from", "relative_error")


def _adapter_row(adapter: AdapterReport) -> tuple[str, ...]:
    return (
        f"{adapter.name}@{adapter.version}",
        format_bytes(adapter.original_bytes),
        format_bytes(adapter.stored_bytes),
        adapter.tier,
        format_error(adapter.relative_error),
        format_bytes(adapter.marginal_bytes),
        format_bytes(adapter.amortised_bytes),
    )


def _cohort_table(report: Report) -> Table:
    columns = ("cohort", "adapters", "original", "stored", "%", "break-even", "worst error")
    rows = [
        (
            cohort.name,
            str(cohort.adapters),
            format_bytes(cohort.original_bytes),
            format_bytes(cohort.stored_bytes),
            format_percent(cohort.stored_percent),
            MISSING if cohort.break_even_adapters is None else str(cohort.break_even_adapters),
            format_error(cohort.worst_relative_error),
        )
        for cohort in report.cohorts
    ]
    return Table(columns, rows, "Cohorts", frozenset(columns) - {"cohort"}, frozenset({"cohort"}))


def _parts_table(report: Report) -> Table:
    columns = ("cohort", "generator", "its bytes", "pays from", "codes", "task vectors", "rows", "tiers")
    rows = [
        (
            cohort.name,
            ", ".join(cohort.generators) or MISSING,
            format_bytes(cohort.generator_bytes),
            MISSING if cohort.generator_pays_from is None else str(cohort.generator_pays_from),
            format_bytes(cohort.code_bytes),
            format_bytes(cohort.task_vector_bytes),
            format_bytes(cohort.row_bytes),
            format_tiers(cohort.by_tier),
        )
        for cohort in report.cohorts
    ]
    numbers = frozenset({"its bytes", "pays from", "codes", "task vectors", "rows"})
    return Table(columns, rows, "What cohorts are stored as", numbers, frozenset({"cohort", "tiers"}))


def _totals_table(report: Report) -> Table:
    totals = report.totals
    parts = [(f"  {BYTE_KINDS[kind]}", size) for kind, size in totals.stored.items()]
    beside = [(f"  {BYTE_KINDS[kind]}", size) for kind, size in totals.beside.items()]
    lines = [
        ("original weights files", totals.original_bytes),
        ("stored: must stay to give every adapter back", totals.stored_bytes),
        *parts,
        ("also on disk now", sum(totals.beside.values())),
        *beside,
        ("all on disk", totals.on_disk_bytes),
    ]
    rows = [
        (label, format_bytes(size), format_percent(100 * size / totals.original_bytes) if totals.original_bytes else "")
        for label, size in lines
    ]
    return Table(("total", "bytes", "% of originals"), rows, "Totals", frozenset({"bytes", "% of originals"}))


class _Kept:
    """Adapters that stay lossless though that was not asked for, and why: so many are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.more = 0

    def note(self, adapters: Iterable[AdapterReport]) -> None:
        for adapter in adapters:
            if "reason" not in adapter.fidelity:
                continue
            if len(self.lines) < MOST_TOLD:
                self.lines.append(f"{adapter.name}@{adapter.version} stays lossless: {adapter.fidelity['reason']}.")
            else:
                self.more += 1

    def told(self) -> list[str]:
        more = [f"So do {self.more} more; --json has why, as the reason in each one's fidelity."] if self.more else []
        return self.lines + more


def _headline(report: Report) -> str:
    totals = report.totals
    return (
        f"{totals.adapters} adapters, {totals.encoded} encoded: {format_bytes(totals.original_bytes)} stored in "
        f"{format_bytes(totals.stored_bytes)} ({format_percent(totals.stored_percent)}), everything counted."
    )


def report(
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", show_default=False, help="Write one page with plots; opens offline."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Report what was saved, and how exactly.

    Original and stored bytes, tiers and errors of each adapter, each cohort and in all.

    Raises:
        IntegrityError: rows that it would add up are damaged.
    """
    from lorareg.registry.check import expect_sound_rows
    from lorareg.registry.report import MEANING, build_report
    from lorareg.registry.store import Registry

    output, kept = Output(as_json, quiet), _Kept()
    with Registry.open(home, create=False, frees=True) as registry:
        expect_sound_rows(registry)  # sums do not show what is wrong with what they are of
        with registry.reading() as connection:
            built = build_report(connection, registry)
            if html is not None:
                from lorareg.cli.report_html import render

                html.write_text(render(built), encoding="utf-8")
            listing = Listing(output, "adapters", ADAPTERS)
            adapters = iter(built.adapters if as_json or not quiet else ())
            is_last = False
            while not is_last:
                page = list(islice(adapters, ADAPTERS_A_PAGE))
                rows = [] if as_json else [_adapter_row(adapter) for adapter in page]
                listing.add((asdict(adapter) for adapter in page), rows, ())
                kept.note(page)
                is_last = len(page) < ADAPTERS_A_PAGE
            listing.end(built.summary())
    if not as_json:
        meaning = [f"  {term.replace('_', '-')}: {MEANING[term]}" for term in EXPLAINED]
        written = [f"Page written to {html}"] if html else []
        tables, headline = [draw(built) for draw in (_cohort_table, _parts_table, _totals_table)], _headline(built)
        output.show({}, *tables, headline, *kept.told(), *meaning, *written, brief=[headline])
