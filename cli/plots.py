"""The report's plots as inline SVG: no script, no font, nothing from anywhere else.

Colours are CSS classes of the page (`report_html`), so that light and dark are one drawing. Every
mark carries a <title>, which browsers show as a tooltip and screen readers read out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lorareg.cli.output import format_bytes, format_error, format_percent, printable
from lorareg.registry.report import AdapterReport, CohortReport, percent

WIDTH = 720
IS_DENSE = "plot dense"
"""The class of a plot that has a line of text for every mark: on a phone it scrolls, where others shrink."""

MAX_BARS = 60
MAX_MODULES = 240
"""Columns of a plot over modules; where there are more modules, a column is the worst of several."""

_MOST_TICKS = 8
_ROW_HEIGHT = 20
_LABEL_WIDTH = 170
_VALUE_WIDTH = 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 14, 52


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from 0 to `top` over `length` pixels, with round ticks."""

    top: float
    length: float

    @property
    def ticks(self) -> list[float]:
        """About five round numbers from 0 to `top`."""
        raw = self.top / 5
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
        return [step * i for i in range(int(self.top / step * 1.001) + 1)]

    def at(self, value: float) -> float:
        """Pixels from the start."""
        return self.length * value / self.top


def _svg(height: float, title: str, body: Sequence[str], css: str = "plot") -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(printable(title))}">'
        + "".join(body)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(printable(text))}</text>'


def _bar(x: float, y: float, width: float, css: str, tip: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{_ROW_HEIGHT - 6}" rx="2" class="{css}">'
        f"<title>{escape(printable(tip))}</title></rect>"
    )


def bytes_per_adapter(adapters: Sequence[AdapterReport]) -> str:
    """Bars: the original's bytes behind the stored ones, which are marginal bytes and a share of what is shared."""
    shown = sorted(adapters, key=lambda adapter: -adapter.amortised_bytes)[:MAX_BARS]
    top = max(max(adapter.original_bytes, adapter.amortised_bytes) for adapter in shown)
    axis = Axis(top, WIDTH - _LABEL_WIDTH - _VALUE_WIDTH)
    body: list[str] = []
    for index, adapter in enumerate(shown):
        y, marginal = index * _ROW_HEIGHT + 3, axis.at(adapter.marginal_bytes)
        name = f"{adapter.name}@{adapter.version}"
        share = adapter.amortised_bytes - adapter.marginal_bytes
        stored = percent(adapter.amortised_bytes, adapter.original_bytes)
        body += [
            _text(_LABEL_WIDTH - 8, y + 11, name if len(name) <= 26 else f"{name[:25]}…", "end"),
            _bar(
                _LABEL_WIDTH,
                y,
                axis.at(adapter.original_bytes),
                "original",
                f"{name}: original {format_bytes(adapter.original_bytes)}",
            ),
            _bar(_LABEL_WIDTH, y, marginal, "marginal", f"{name}: marginal {format_bytes(adapter.marginal_bytes)}"),
            _bar(_LABEL_WIDTH + marginal, y, axis.at(share), "share", f"{name}: its share {format_bytes(share)}"),
            _text(
                WIDTH - _VALUE_WIDTH + 8, y + 11, f"{format_bytes(adapter.amortised_bytes)}, {format_percent(stored)}"
            ),
        ]
    return _svg(len(shown) * _ROW_HEIGHT + 6, "Original and stored bytes of each adapter", body, IS_DENSE)


def _frame(
    x_axis: Axis, y_axis: Axis, x_labels: Sequence[str], y_labels: Sequence[str], names: tuple[str, str]
) -> list[str]:
    bottom = _TOP + y_axis.length
    body = []
    for value, label in zip(y_axis.ticks, y_labels, strict=True):
        y = bottom - y_axis.at(value)
        body.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        body.append(_text(_LEFT - 8, y + 4, label, "end", "muted"))
    for value, label in zip(x_axis.ticks if x_labels else (), x_labels, strict=True):
        body.append(_text(_LEFT + x_axis.at(value), bottom + 20, label, "middle", "muted"))
    body.append(_text(_LEFT + x_axis.length / 2, bottom + 45, names[0], "middle", "muted"))
    body.append(_text(4, 10, names[1], "start", "muted"))
    return body


def _axes(x_top: float, y_top: float, height: float) -> tuple[Axis, Axis]:
    return Axis(x_top, WIDTH - _LEFT - _RIGHT), Axis(y_top, height - _TOP - _BOTTOM)


def error_against_bytes(adapters: Sequence[AdapterReport], height: float = 320) -> str:
    """Scatter: relative error over marginal bytes, in percent of the original, one mark a tier."""
    points = [
        (percent(adapter.marginal_bytes, adapter.original_bytes), adapter.relative_error, adapter)
        for adapter in adapters
        if adapter.relative_error is not None
    ]
    if not points:
        return ""
    x_axis, y_axis = _axes(max(p[0] for p in points) * 1.08, max(0.01, max(p[1] for p in points)) * 1.12, height)
    body = _frame(
        x_axis,
        y_axis,
        [f"{tick:.3g}%" for tick in x_axis.ticks],
        [f"{tick:.3g}" for tick in y_axis.ticks],
        ("marginal bytes, % of the original", "relative error of ΔW"),
    )
    for share, error, adapter in points:
        tip = f"{adapter.name}@{adapter.version}, {adapter.tier}: {format_error(error)} at {format_percent(share)}"
        body.append(
            f'<circle cx="{_LEFT + x_axis.at(share):.1f}" cy="{_TOP + y_axis.length - y_axis.at(error):.1f}" r="4" '
            f'class="tier-{escape(adapter.tier)}"><title>{escape(tip)}</title></circle>'
        )
    return _svg(height, "Relative error against marginal bytes", body)


def total_against_count(cohort: CohortReport, height: float = 320) -> str:
    """Lines: bytes of n originals and of n stored adapters with what they share, and where they cross."""
    shared = max(0.0, (cohort.mean_amortised_bytes - cohort.mean_marginal_bytes) * cohort.adapters)
    mean_original = cohort.original_bytes / cohort.adapters
    even = cohort.break_even_adapters
    count = max(cohort.adapters, 2 * even if even is not None and even < 20 * cohort.adapters else 0, 2)
    x_axis, y_axis = _axes(count, max(mean_original * count, shared + cohort.mean_marginal_bytes * count), height)
    body = _frame(
        x_axis,
        y_axis,
        [f"{tick:.3g}" for tick in x_axis.ticks],
        [format_bytes(tick) for tick in y_axis.ticks],
        ("adapters in the cohort", "bytes in all"),
    )
    bottom = _TOP + y_axis.length
    lines = (
        ("line-original", 0.0, mean_original, "originals"),
        ("line-stored", shared, cohort.mean_marginal_bytes, "stored, generator and all"),
    )
    for css, start, slope, name in lines:
        first, last = bottom - y_axis.at(start), bottom - y_axis.at(start + slope * count)
        body.append(
            f'<line x1="{_LEFT}" y1="{first:.1f}" x2="{_LEFT + x_axis.at(count):.1f}" y2="{last:.1f}" class="{css}">'
            f"<title>{escape(name)}</title></line>"
        )
    marks = [(cohort.adapters, f"now: {cohort.adapters}")]
    if even is not None and even <= count:
        marks.append((even, f"break-even: {even}"))
    for value, label in marks:
        x = _LEFT + x_axis.at(value)
        near_end = value > 0.7 * count
        body.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom:.1f}" class="mark"/>')
        label_y = _TOP + y_axis.length * 0.45 if near_end else _TOP + 12
        body.append(_text(x + (-6 if near_end else 6), label_y, label, "end" if near_end else "start"))
    return _svg(height, f"Total bytes against the number of adapters, cohort {cohort.name}", body)


def module_errors(errors: Sequence[tuple[str, float]], height: float = 260) -> str:
    """Columns: the relative error of each module in the layout's order; nothing where all are exact.

    What is no number, or infinite, is a column of full height.
    """
    finite = [error for _, error in errors if math.isfinite(error)]
    if not errors or (len(finite) == len(errors) and not any(finite)):
        return ""
    together = math.ceil(len(errors) / MAX_MODULES)
    groups = [errors[start : start + together] for start in range(0, len(errors), together)]
    columns = [max(group, key=lambda one: one[1] if math.isfinite(one[1]) else math.inf) for group in groups]
    x_axis, y_axis = _axes(len(columns), max(finite, default=0.0) * 1.12 or 1.0, height)
    labels = _layer_labels([name for name, _ in columns])
    what = "layer" if labels else "modules, in their order"
    body = _frame(x_axis, y_axis, [], [f"{tick:.3g}" for tick in y_axis.ticks], (what, "relative error of ΔW"))
    bottom, step = _TOP + y_axis.length, x_axis.at(1)
    for index, (name, error) in enumerate(columns):
        size = y_axis.at(error) if math.isfinite(error) else y_axis.length
        css = "marginal" if math.isfinite(error) else "tier-lossless"
        x = _LEFT + index * step + 0.1 * step
        body.append(
            f'<rect x="{x:.1f}" y="{bottom - size:.1f}" width="{0.8 * step:.1f}" height="{size:.1f}" class="{css}">'
            f"<title>{escape(printable(f'{name}: {format_error(error)}'))}</title></rect>"
        )
    body += [_text(_LEFT + index * step, bottom + 20, label, "start", "muted") for index, label in labels]
    return _svg(height, "Relative error of each module", body)


def _layer_labels(modules: Sequence[str]) -> list[tuple[int, str]]:
    """(index, label) of the modules that begin a layer, as the first number in their names says; thinned out."""
    numbers = [found[1] if (found := re.search(r"\.(\d{1,5})\.", name)) else None for name in modules]
    starts = [
        (index, number)
        for index, number in enumerate(numbers)
        if number is not None and (index == 0 or number != numbers[index - 1])
    ]
    return starts[:: max(1, math.ceil(len(starts) / _MOST_TICKS))]
