"""How answers and memory grow with a registry: what bench/scale.py found, as one picture.

    python bench/growth.py [--json FILE] [--output docs/scale.png]

Left, the milliseconds of an answer (p50; p99 faint); then the seconds of a core and the peak memory of the commands
that read all rows, without what PostgreSQL's own processes take.
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
ANSWERS = {"lookup": "one task", "page": "a page of 50"}
COMMANDS = ("list", "search", "report", "check")
COLOURS = dict(
    zip((*ANSWERS, *COMMANDS), ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#56b4e9"), strict=True)
)
STYLES = {"SQLite": ("-", "o"), "PostgreSQL": ("--", "s")}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "scale.json", metavar="FILE")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "scale.png", metavar="FILE")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"]
    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    answers, seconds, memory = panels
    for database, style in STYLES.items():
        own = sorted((row for row in rows if row["database"] == database), key=lambda row: row["adapters"])
        if own:
            draw(panels, own, database, *style)
    answers.set(title="an answer", ylabel="milliseconds")
    memory.set(title="the same", ylabel="peak memory, MB", ylim=(0, None))
    seconds.set(title="a command that reads all rows", ylabel="seconds of a core")
    answers.set_yscale("log")
    seconds.set_yscale("log")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("adapters")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
    figure.savefig(arguments.output, dpi=110)
    print(f"Written: {arguments.output}")


def draw(panels: Any, rows: list[dict[str, Any]], database: str, line: str, marker: str) -> None:
    """The lines of one database."""
    answers, seconds, memory = panels
    sizes = [row["adapters"] for row in rows]
    looks = {
        key: {"color": colour, "linestyle": line, "marker": marker, "markersize": 4} for key, colour in COLOURS.items()
    }
    for key, label in ANSWERS.items():
        answers.plot(sizes, [row[f"{key}_p50_ms"] for row in rows], label=f"{label}, {database}", **looks[key])
        answers.plot(sizes, [row[f"{key}_p99_ms"] for row in rows], alpha=0.25, **looks[key])
    for key in COMMANDS:
        seconds.plot(sizes, [row[f"{key}_cpu_s"] for row in rows], label=f"{key}, {database}", **looks[key])
        memory.plot(sizes, [row[f"{key}_peak_mb"] for row in rows], label=f"{key}, {database}", **looks[key])


if __name__ == "__main__":
    main()
