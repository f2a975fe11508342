"""How anything is printed: a table for people, one JSON object for programs, and nothing twice.

Results go to stdout, everything else (progress, warnings, errors) to stderr. With `--json` stdout
holds exactly one JSON object. Text that came from an adapter is never read as markup, and control
characters in it are shown escaped, so that a model card cannot drive the terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

MISSING = "-"
MIN_FLEXIBLE_CHARS = 12
UNLIMITED_CHARS = 10_000
GAP_CHARS = 3  # as rich leaves between columns

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
    "reserve": "space kept for deleting",
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
    _Drawing(table).add(table.rows)
    print()


class Listing:
    """A table whose rows are printed while they are read, a page at a time, or the first list of a JSON object."""

    def __init__(self, output: Output, key: str, table: Table) -> None:
        """What it is called in JSON, and the table to draw without its rows."""
        self.output, self._drawing, self._is_first = output, _Drawing(table), True
        if output.as_json:
            print(f"{{\n{json.dumps(key)}: [", end="")

    def add(self, entries: Iterable[Mapping[str, Any]], rows: Sequence[Sequence[str]], brief: Sequence[str]) -> None:
        """Print a page: `entries` as JSON, or `brief` when quiet, or else `rows`."""
        if self.output.as_json:
            for entry in entries:
                print("\n" if self._is_first else ",\n", json.dumps(entry, ensure_ascii=False), sep="", end="")
                self._is_first = False
        elif self.output.quiet:
            for line in brief:
                print(printable(line))
        else:
            self._drawing.add(rows)
        sys.stdout.flush()

    def end(self, rest: Mapping[str, Any]) -> None:
        """Print the end, in JSON with what else there is to say."""
        if self.output.as_json:
            more = "".join(f",\n{json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items())
            print(f"\n]{more}\n}}")
        elif not self.output.quiet:
            print()


class _Drawing:
    """A table on stdout; its columns are as wide as what was drawn so far needs."""

    def __init__(self, table: Table) -> None:
        from rich.console import Console

        self.table, self._has_head = table, False
        self._console = Console(highlight=False, markup=False)
        self._widths = [MIN_FLEXIBLE_CHARS if column in table.flexible else 0 for column in table.columns]

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        """Draw rows, the head before the first."""
        from rich.cells import cell_len

        lines = [[printable(cell).split("\n") for cell in row] for row in (self.table.columns, *rows)]
        self._widths = [
            max(width, *(cell_len(line) for row in lines for line in row[column]))
            for column, width in enumerate(self._widths)
        ]
        if self._console.is_terminal:
            self._draw_for_people(rows)
        else:
            self._draw(lines)
        self._has_head = True

    def _draw(self, lines: Sequence[Sequence[Sequence[str]]]) -> None:
        """Where nobody sees colours and no line is too long: rich takes 0.7 ms a row."""
        from rich.cells import cell_len

        if not self._has_head and self.table.title:
            print(self.table.title)
        for number, row in enumerate(lines[self._has_head :]):
            for line in zip_longest(*row, fillvalue=""):
                cells = [
                    " " * (width - cell_len(text)) + text
                    if column in self.table.numbers
                    else text + " " * (width - cell_len(text))
                    for column, text, width in zip(self.table.columns, line, self._widths, strict=True)
                ]
                print((" " * GAP_CHARS).join(cells).rstrip())
            if not number and not self._has_head:
                print("─" * (sum(self._widths) + GAP_CHARS * len(cells) - 1))

    def _draw_for_people(self, rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table as RichTable
        from rich.text import Text

        table, console = self.table, self._console
        title = Text(table.title, style="bold") if table.title and not self._has_head else None
        drawn = RichTable(
            box=box.SIMPLE_HEAD,
            title=title,
            title_justify="left",
            padding=(0, 2, 0, 0),
            show_edge=False,
            show_header=not self._has_head,
        )
        for column, width in zip(table.columns, self._widths, strict=True):
            folds = column in table.flexible
            drawn.add_column(
                Text(column),
                justify="right" if column in table.numbers else "left",
                no_wrap=not folds,
                min_width=MIN_FLEXIBLE_CHARS if folds else width,
                overflow="fold",
            )
        for row in rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        # A terminal that is too narrow breaks the lines itself; cutting them would lose figures.
        needed = Measurement.get(console, console.options.update(width=UNLIMITED_CHARS), drawn)
        console.width = max(console.width, needed.minimum)
        console.print(drawn)


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
