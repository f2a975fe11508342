"""Progress of anything that takes more than a second, on stderr.

`progress(output)` gives a reporter that fits: bars with figures and an ETA on a terminal, a line
every few seconds in a log, silence when quiet or printing JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorareg.cli.output import Output, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lorareg.compress.progress import Reporter

LOG_INTERVAL_S = 10.0


def _format_figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_per_s', '/s')} {value:.4g}" for name, value in figures.items())


class LogReporter:
    """A line at the start and end of a stage and every few seconds between."""

    def __init__(self) -> None:
        self._stage, self._total, self._done = "", 0, 0
        self._started_s = self._logged_s = 0.0
        self._figures: dict[str, float] = {}

    def start(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done, self._figures = stage, total, 0, {}
        self._started_s = self._logged_s = time.monotonic()

    def advance(self, n: int = 1, **figures: float) -> None:
        self._done += n
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._logged_s >= LOG_INTERVAL_S:
            self._logged_s = now
            left_s = (now - self._started_s) * (self._total - self._done) / max(self._done, 1)
            self.note(f"{self._line()}  about {max(left_s, 0):.0f} s left")

    def finish(self) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self.note(f"{self._line()}  {elapsed_s:.1f} s")

    def note(self, message: str) -> None:
        print(printable(message), file=sys.stderr, flush=True)

    def _line(self) -> str:
        return f"{self._stage}: {self._done}/{self._total}  {_format_figures(self._figures)}".rstrip()


class BarReporter:
    """One bar a stage, with its figures, the time taken and the time left."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._bar: TaskID | None = None
        self._figures: dict[str, float] = {}

    def start(self, stage: str, total: int) -> None:
        self._figures = {}
        self._bar = self._bars.add_task(printable(stage), total=total, figures="")

    def advance(self, n: int = 1, **figures: float) -> None:
        assert self._bar is not None
        self._figures.update(figures)
        self._bars.update(self._bar, advance=n, figures=_format_figures(self._figures))

    def finish(self) -> None:
        if self._bar is not None:
            self._bars.stop_task(self._bar)
            self._bar = None

    def note(self, message: str) -> None:
        self._bars.console.print(printable(message), markup=False, highlight=False)


@contextmanager
def progress(output: Output) -> Iterator[Reporter]:
    """A reporter for the time of one command."""
    if not output.shows_progress:
        from lorareg.compress.progress import Silent

        yield Silent()
    elif not sys.stderr.isatty():
        yield LogReporter()
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield BarReporter(bars)
