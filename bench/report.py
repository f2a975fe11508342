"""What a run of the frontier bench says: tables on stdout, JSON, an HTML page and a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from curves import OURS, Point, Saving, compare
from page import Table, write_page, write_png
from results import machine, print_table, write_json
from study import Study

COLUMNS = ("stored as", "B each", "shared B", "total %", "error", "worst", "gain", "worst", "tasks")
SAVING_COLUMNS = ("ours against", "total bytes", "gains from", "to", "bytes each", "what is compared (total bytes)")


def savings_of(points: Sequence[Point]) -> dict[str, tuple[Saving | None, Saving | None]]:
    """For each peer: what the best of our points saves of all bytes, and of the bytes each, at equal gain."""
    ours = [point for point in points if point.is_ours and not point.reason]
    families = dict.fromkeys(point.family for point in points if not point.is_ours and not point.reason)
    found = {}
    for family in families:
        peer = [point for point in points if point.family == family and not point.reason]
        total = compare([(p.total_percent, p.gain) for p in ours], [(p.total_percent, p.gain) for p in peer])
        each = [(p.marginal_percent, p.gain) for p in peer if p.marginal_percent > 0]  # the mean adapter takes none
        marginal = compare([(p.marginal_percent, p.gain) for p in ours], each)
        found[family] = (total, marginal)
    return found


def tables_of(points: Sequence[Point]) -> tuple[Table, Table]:
    """The points, and the savings, as text."""
    measured = [point for point in points if not point.reason]
    rows = [[point.name, *_figures(point)] for point in measured]
    rows += [[f"{point.name}: {point.reason}", *[""] * (len(COLUMNS) - 1)] for point in points if point.reason]
    strong = frozenset(index for index, row in enumerate(rows) if row[0].startswith(OURS))
    savings = [[family, *_saving(total, marginal)] for family, (total, marginal) in savings_of(points).items()]
    return Table("All points", COLUMNS, rows, strong), Table("Saving at equal gain", SAVING_COLUMNS, savings)


def _figures(point: Point) -> list[str]:
    gains = [f"{point.gain:.4f}", f"{point.worst_gain:.4f}"] if point.gains else ["", ""]
    return [
        f"{point.marginal_bytes:.0f}",
        f"{point.shared_bytes:.0f}",
        f"{point.total_percent:.3f}",
        f"{np.mean(point.errors):.4f}",
        f"{max(point.errors):.4f}",
        *gains,
        str(len(point.gains)),
    ]


def _saving(total: Saving | None, marginal: Saving | None) -> list[str]:
    if total is None:
        return ["", "", "", "", "no gain measured"]
    each = "" if marginal is None or marginal.percent is None else f"{marginal.percent:+.1f}%"
    percent = "" if total.percent is None else f"{total.percent:+.1f}%"
    return [percent, f"{total.low:.4f}", f"{total.high:.4f}", each, total.note]


def explain(study: Study) -> list[str]:
    """What the figures are of."""
    return [
        f"{study.title}. {study.cohort.layout.weight_count} weights each, "
        f"{study.stored.original_bytes / len(study.stored.originals):.0f} bytes of weights file.",
        f"total %: shared bytes and {len(study.cohort.originals)} times the bytes each, of the files. error, worst: "
        "relative error of ΔW, mean and worst adapter. gain, worst: gain retained on held-out tokens, mean and worst "
        "task; 1 is what the original gains, 0 is the base model.",
        "Saving: Bjøntegaard, bytes of the best of our points against the peer's at equal gain, over the gains that "
        "both reach; minus is fewer bytes for us.",
    ]


def write(output: Path, study: Study, points: Sequence[Point], tasks: Sequence[str]) -> tuple[Path, Path, Path | None]:
    """Write JSON, page and picture of what is known now; None stands for a picture that was skipped."""
    savings = {
        family: [asdict(saving) if saving else None for saving in pair] for family, pair in savings_of(points).items()
    }
    document = {
        "title": study.title,
        "stored": study.stored.names,
        "evaluated": tasks,
        "machine": machine(),
        "points": [point.to_dict() for point in points],
        "savings_total_and_marginal": savings,
    }
    write_json(output, document)
    html, png = output.with_suffix(".html"), output.with_suffix(".png")
    write_page(html, "Rate-distortion frontier", explain(study), points, tables_of(points), OURS)
    return output, html, png if write_png(png, study.title, points, OURS) else None


def show(output: Path, study: Study, points: Sequence[Point], tasks: Sequence[str]) -> None:
    """Print the tables and write the files."""
    if all(point.reason for point in points):
        sys.exit("Nothing is measured yet.")
    print()
    for line in explain(study):
        print(line)
    for table in tables_of(points):
        print(f"\n{table.title}\n")
        print_table(table.columns, table.rows)
    json_file, html, png = write(output, study, points, tasks)
    print(f"\nWritten: {json_file}, {html}" + (f", {png}" if png else "; no PNG, as matplotlib is not installed"))
