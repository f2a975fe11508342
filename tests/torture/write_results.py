"""Write what `pytest tests/torture --torture long --torture-report FILE` found into docs/reliability.md.

python tests/torture/write_results.py FILE... docs/reliability.md

Rows of tests that were not run stay as they are: the long form takes hours, and may be run in parts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

BEGIN, END = "<!-- figures: written by make torture -->", "<!-- end of figures -->"
HEAD = ["| promise | test | runs | found and fixed | left |", "|---|---|---|---|---|"]


def row_of(outcome: dict[str, object]) -> tuple[str, str]:
    """A test, and its row."""
    left = "0" if outcome["held"] else "**fails**"
    figures = f"{outcome['runs']:,} | {outcome['fixed']} | {left}"
    return str(outcome["test"]), f"| {outcome['promise']} | `{outcome['test']}` | {figures} |"


def rows_in(table: str) -> dict[str, str]:
    """The rows of a table that was written before, by test."""
    lines = [line for line in table.splitlines() if line.startswith("| ") and line not in HEAD]
    return {line.split(" | ")[1].strip("`"): line for line in lines}


def main(results: Iterable[Path], document: Path) -> None:
    """Replace what is between the two marks."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    table, found, after = rest.partition(END)
    if not found:
        sys.exit(f"{document} has no lines {BEGIN} and {END} to write between")
    rows = rows_in(table)
    for path in results:
        rows |= dict(map(row_of, json.loads(path.read_text())))
    lines = "\n".join([*HEAD, *(rows[test] for test in sorted(rows))])
    document.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")


if __name__ == "__main__":
    main(map(Path, sys.argv[1:-1]), Path(sys.argv[-1]))
