"""Write what `pytest tests/torture --torture long --torture-report FILE` found into docs/reliability.md.

python tests/torture/write_results.py FILE docs/reliability.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- figures: written by make torture -->", "<!-- end of figures -->"


def table(outcomes: list[dict[str, object]]) -> str:
    """A row for every promise."""
    lines = ["| promise | test | runs | found and fixed | left |", "|---|---|---|---|---|"]
    for row in sorted(outcomes, key=lambda row: str(row["test"])):
        left = "0" if row["held"] else "**fails**"
        lines.append(f"| {row['promise']} | `{row['test']}` | {row['runs']:,} | {row['fixed']} | {left} |")
    return "\n".join(lines)


def main(results: Path, document: Path) -> None:
    """Replace what is between the two marks."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"{document} has no lines {BEGIN} and {END} to write between")
    document.write_text(f"{before}{BEGIN}\n\n{table(json.loads(results.read_text()))}\n\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
