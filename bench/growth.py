"""How answers and memory grow with a registry: what bench/scale.py found, as one picture.

    python bench/growth.py [--json FILE] [--output docs/scale.png]

Left, the milliseconds of an answer (p50; p99 faint); right, the peak memory of the commands that read all rows.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
ANSWERS = {
    "lookup": "one task",
    "page": "a page of 50",
    "list": "first page of `list`",
    "search": "search",
    "report": "report",
}
COMMANDS = ("list", "search", "report")
COLOURS = dict(zip(ANSWERS, ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00"), strict=True))
STYLES = {"SQLite": ("-", "o"), "PostgreSQL": ("--", "s")}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "scale.json", metavar="FILE")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "scale.png", metavar="FILE")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"]
    figure, (answers, memory) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for database, style in STYLES.items():
        own = sorted((row for row in rows if row["database"] == database), key=lambda row: row["adapters"])
        if own:
            draw(answers, memory, own, database, *style)
    answers.set(title="an answer", ylabel="milliseconds")
    memory.set(title="a command that reads all rows", ylabel="peak memory, MB", ylim=(0, None))
    answers.set_yscale("log")
    for axes in (answers, memory):
        axes.set_xscale("log")
        axes.set_xlabel("adapters")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
    figure.savefig(arguments.output, dpi=110)
    print(f"Written: {arguments.output}")


def draw(answers: Any, memory: Any, rows: list[dict[str, Any]], database: str, line: str, marker: str) -> None:
    """The lines of one database."""
    sizes = [row["adapters"] for row in rows]
    for key, label in ANSWERS.items():
        middle, late = ([row[f"{key}_{quantile}_ms"] for row in rows] for quantile in ("p50", "p99"))
        look = {"color": COLOURS[key], "linestyle": line, "marker": marker, "markersize": 4}
        answers.plot(sizes, middle, label=f"{label}, {database}", **look)
        answers.plot(sizes, late, alpha=0.25, **look)
    for key in COMMANDS:
        look = {"color": COLOURS[key], "linestyle": line, "marker": marker, "markersize": 4}
        memory.plot(sizes, [row[f"{key}_peak_mb"] for row in rows], label=f"{key}, {database}", **look)


if __name__ == "__main__":
    main()
