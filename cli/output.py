"""How anything is printed: a table for people, one JSON object for programs, and nothing twice.

Results go to stdout, everything else (progress, warnings, errors) to stderr. With `--json` stdout
holds exactly one JSON object. Text that came from an adapter is never read as markup, and control
characters in it are shown escaped, so that a model card cannot drive the terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "-"
MIN_FLEXIBLE_CHARS = 12
UNLIMITED_CHARS = 10_000

BYTE_KINDS = {
    "codes": "codes",
    "uncompressed": "weights not encoded",
    "generators": "generators",
    "task_vectors": "task vectors",
    "certificates": "certificates",
    "side_files": "configs, cards, extras",
    "rows": "database rows",
    "database_overhead": "rest of the database",
    "originals_kept": "originals of encoded adapters",
    "evaluation": "samples and held-out text",
    "quarantined": "removed adapters",
    "superseded": "older codes and generators",
    "retired": "pruned, until the grace is over",
    "orphans": "unreferenced files",
}
"""What a report calls each kind of bytes, in words."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under `columns`.

    Those named in `numbers` are aligned right; only those in `flexible` break over several lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    numbers: frozenset[str] = frozenset()
    flexible: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's result goes."""

    as_json: bool = False
    quiet: bool = False

    @property
    def shows_progress(self) -> bool:
        """Whether people are watching."""
        return not (self.as_json or self.quiet)

    def show(self, data: Mapping[str, Any], *blocks: Table | str, brief: Sequence[str] = ()) -> None:
        """Print `data` as JSON, or `brief` when quiet, or else `blocks`."""
        if self.as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
        elif self.quiet:
            for line in brief:
                print(printable(line))
        else:
            for block in blocks:
                if isinstance(block, Table):
                    print_table(block)
                else:
                    print(printable(block))


def printable(text: str) -> str:
    """`text` with control and format characters (other than line ends) escaped."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} else ascii(char)[1:-1]
        for char in text
    )


def print_table(table: Table) -> None:
    """Draw a table on stdout: as wide as the terminal if it can be, as it needs where there is none."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    title = Text(table.title, style="bold") if table.title else None
    drawn = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 2, 0, 0), show_edge=False)
    for column in table.columns:
        drawn.add_column(
            Text(column),
            justify="right" if column in table.numbers else "left",
            no_wrap=column not in table.flexible,
            min_width=MIN_FLEXIBLE_CHARS if column in table.flexible else None,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    needed = Measurement.get(console, console.options.update(width=UNLIMITED_CHARS), drawn)
    # A terminal that is too narrow breaks the lines itself; cutting them would lose figures.
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(drawn)
    console.print()


def print_error(message: str) -> None:
    """One line on stderr."""
    print(f"lorareg: {printable(message)}", file=sys.stderr)


def format_bytes(size: float) -> str:
    """Decimal units, three digits: 476 kB, 1.84 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_error(relative_error: float | None) -> str:
    """Four decimals; exact zero says so."""
    if relative_error is None:
        return MISSING
    return "exact" if relative_error == 0 else f"{relative_error:.4f}"


def format_percent(value: float) -> str:
    """Two decimals and the sign."""
    return f"{value:.2f}%"


def format_gains(mean: float | None, worst: float | None) -> str:
    """Gain retained, mean and worst: '99.2% (98.1%)'."""
    if mean is None or worst is None:
        return MISSING
    return f"{100 * mean:.1f}% ({100 * worst:.1f}%)"


def format_tiers(by_tier: Mapping[str, int]) -> str:
    """How many adapters are stored which way: '3 lossless, 9 residual'."""
    return ", ".join(f"{count} {tier}" for tier, count in by_tier.items() if count) or MISSING
