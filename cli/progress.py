"""Progress of anything that takes more than a second, on stderr.

`progress(output)` gives a reporter that fits: bars with figures and an ETA on a terminal, a line
every few seconds in a log, silence when quiet or printing JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorareg.cli.output import Output, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lorareg.compress.progress import Reporter

LOG_INTERVAL_S = 10.0


def _format_figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_per_s', '/s')} {value:.4g}" for name, value in figures.items())


@dataclass(slots=True)
class _Stage:
    """A stage under way; one may begin inside another."""

    name: str
    total: int
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.name}: {self.done}/{self.total}  {_format_figures(self.figures)}".rstrip()


class LogReporter:
    """A line at the end of a stage and every few seconds before; of a stage within another only the latter."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []
        self._logged_s = time.monotonic()

    def start(self, stage: str, total: int) -> None:
        self._stages.append(_Stage(stage, total))
        if len(self._stages) == 1:
            self._logged_s = time.monotonic()

    def advance(self, n: int = 1, **figures: float) -> None:
        stage, now = self._stages[-1], time.monotonic()
        stage.done += n
        stage.figures.update(figures)
        if now - self._logged_s >= LOG_INTERVAL_S:
            self._logged_s = now
            left_s = (now - stage.started_s) * (stage.total - stage.done) / max(stage.done, 1)
            self.note(f"{stage}  about {max(left_s, 0):.0f} s left")

    def finish(self) -> None:
        stage = self._stages.pop()
        if not self._stages:
            self.note(f"{stage}  {time.monotonic() - stage.started_s:.1f} s")

    def note(self, message: str) -> None:
        print(printable(message), file=sys.stderr, flush=True)


class BarReporter:
    """One bar a stage, with its figures, the time taken and the time left; one within another goes with its end."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._stages: list[tuple[TaskID, dict[str, float]]] = []

    def start(self, stage: str, total: int) -> None:
        self._stages.append((self._bars.add_task(printable(stage), total=total, figures=""), {}))

    def advance(self, n: int = 1, **figures: float) -> None:
        bar, known = self._stages[-1]
        known.update(figures)
        self._bars.update(bar, advance=n, figures=_format_figures(known))

    def finish(self) -> None:
        bar, _ = self._stages.pop()
        if self._stages:
            self._bars.remove_task(bar)
        else:
            self._bars.stop_task(bar)

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
