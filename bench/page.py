"""The frontier as one HTML page with its plots as inline SVG, and as a PNG where matplotlib is installed.

The page opens offline, in light and dark, without a line of script.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from curves import Point

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 26, 48
COLOURS = ("#2a78d6", "#d95926", "#008300", "#9a4fc4", "#b8860b", "#c2185b", "#00838f", "#6d6a62")
DARK_COLOURS = ("#5aa2f0", "#f0865c", "#4cc04c", "#c58be6", "#dcb04a", "#ee6fa0", "#4fc3cf", "#a8a49a")
SHAPES = ("circle", "square", "diamond", "triangle")
PNG_MARKERS = dict(zip(SHAPES, "osD^", strict=True))

_STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1b1b19; --muted: #66645f; --line: #e2e0da; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #1a1a19; --ink: #f2f1ec; --muted: #a3a19a; --line: #383733;
  DARK } }
body { font: 15px/1.5 system-ui, sans-serif; background: var(--ground); color: var(--ink);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.muted { color: var(--muted); }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: var(--ink); }
svg text.muted { fill: var(--muted); } .grid { stroke: var(--line); } .curve { fill: none; stroke-width: 1.3; }
.curve.ours { stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
.legend svg { width: 16px; height: 16px; vertical-align: -3px; margin-right: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.ours td { font-weight: 600; }
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; `strong` are the rows that are ours."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Plot:
    """One y of the points over their total bytes."""

    title: str
    y_name: str
    y_of: Callable[[Point], float]
    low: float
    high: float
    y_format: str = "{:.0%}"


@dataclass(frozen=True, slots=True)
class Look:
    """How a family is drawn."""

    colour: int
    shape: str
    ours: bool


def looks_of(points: Sequence[Point], ours: str) -> dict[str, Look]:
    """A colour and a shape for each family, in order of appearance."""
    families = list(dict.fromkeys(point.family for point in points if not point.reason))
    return {
        family: Look(
            index % len(COLOURS), SHAPES[(index + index // len(COLOURS)) % len(SHAPES)], family.startswith(ours)
        )
        for index, family in enumerate(families)
    }


def plots_of(points: Sequence[Point]) -> list[Plot]:
    """What is worth drawing: gain in full and close to all of it, where there are gains, and the error."""
    plots = []
    if any(point.gains for point in points):
        plots = [
            Plot("Gain retained", "gain retained, mean", lambda point: point.gain, 0.0, 1.05),
            Plot("Gain retained, from 90%", "gain retained, mean", lambda point: point.gain, 0.9, 1.01),
        ]
    error = Plot("Relative error of ΔW", "relative error of ΔW, mean", _mean_error, 0.0, 1.05, "{:.1f}")
    return [*plots, error]


def write_page(
    path: Path, title: str, lead: Sequence[str], points: Sequence[Point], tables: Sequence[Table], ours: str
) -> None:
    """Write the page."""
    looks = looks_of(points, ours)
    shown = [point for point in points if not point.reason]
    light, dark = (
        " ".join(f"--c{index}: {colour};" for index, colour in enumerate(colours))
        for colours in (COLOURS, DARK_COLOURS)
    )
    figures = "".join(f"<h2>{escape(plot.title)}</h2>{svg_of(plot, shown, looks)}" for plot in plots_of(shown))
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="muted">{escape(line)}</p>' for line in lead),
        _legend(looks),
        figures,
        *(_table(table) for table in tables),
    ]
    style = _STYLE.replace("LIGHT", light).replace("DARK", dark)
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def svg_of(plot: Plot, points: Sequence[Point], looks: dict[str, Look]) -> str:
    """One plot: a marker a point, a line a family; what lies beyond the range sits on its edge."""
    left, right = _span([point.total_percent for point in points if point.total_percent > 0])

    def x_at(percent: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(percent) - left) / (right - left)

    def y_at(value: float) -> float:
        share = (min(max(value, plot.low), plot.high) - plot.low) / (plot.high - plot.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    body = _frame(plot, left, right, x_at, y_at)
    for family, look in looks.items():
        drawn = [point for point in points if point.family == family and math.isfinite(plot.y_of(point))]
        drawn = sorted((point for point in drawn if point.total_percent > 0), key=lambda point: point.total_percent)
        places = [(x_at(point.total_percent), y_at(plot.y_of(point))) for point in drawn]
        if len(places) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            css = "curve ours" if look.ours else "curve"
            body.append(f'<polyline points="{line}" class="{css}" style="stroke: var(--c{look.colour})"/>')
        for point, (x, y) in zip(drawn, places, strict=True):
            value = plot.y_of(point)
            beyond = "" if plot.low <= value <= plot.high else " (beyond the plot)"
            body.append(_marker(look, x, y, f"{point.name}: {value:.4f}{beyond} at {point.total_percent:.2f}%"))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">{"".join(body)}</svg>'


def write_png(path: Path, title: str, points: Sequence[Point], ours: str) -> bool:
    """The same plots as a picture; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [point for point in points if not point.reason]
    looks, plots = looks_of(points, ours), plots_of(shown)
    figure, axes = pyplot.subplots(len(plots), 1, figsize=(10, 5.5 * len(plots)), squeeze=False)
    for plot, axis in zip(plots, axes[:, 0], strict=True):
        for family, look in looks.items():
            drawn = sorted((p for p in shown if p.family == family), key=lambda point: point.total_percent)
            xs, ys = [p.total_percent for p in drawn], [plot.y_of(p) for p in drawn]
            width, marker = (2.5 if look.ours else 1), PNG_MARKERS[look.shape]
            axis.plot(xs, ys, marker=marker, color=COLOURS[look.colour], label=family, linewidth=width, markersize=5)
        axis.set(xscale="log", xlabel="total bytes, % of the originals", ylabel=plot.y_name, title=plot.title)
        axis.set_ylim(plot.low, plot.high)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7, loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _mean_error(point: Point) -> float:
    return sum(point.errors) / len(point.errors)


def _span(percents: Sequence[float]) -> tuple[float, float]:
    """Decimal logarithms that hold all of them, with a little room."""
    low, high = min(percents, default=1.0), max(percents, default=100.0)
    return math.log10(low) - 0.08, max(math.log10(high), math.log10(low) + 0.5) + 0.08


def _frame(
    plot: Plot, left: float, right: float, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> list[str]:
    bottom = HEIGHT - BOTTOM
    body = [_text(4, 14, plot.y_name, "start", "muted")]
    magnitude = 10.0 ** math.floor(math.log10((plot.high - plot.low) / 6))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= (plot.high - plot.low) / 6)
    for index in range(int((plot.high - plot.low) / step + 1e-9) + 1):
        value = plot.low + index * step
        y = y_at(value)
        body.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>')
        body.append(_text(LEFT - 8, y + 4, plot.y_format.format(value), "end", "muted"))
    ticks = [m * 10.0**e for e in range(math.floor(left), math.ceil(right) + 1) for m in (1, 2, 5)]
    for tick in (tick for tick in ticks if left <= math.log10(tick) <= right):
        x = x_at(tick)
        body.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" class="grid"/>')
        body.append(_text(x, bottom + 18, f"{tick:g}%", "middle", "muted"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, "total bytes, % of the originals", "middle", "muted"))
    return body


def _text(x: float, y: float, text: str, anchor: str, css: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'


def _marker(look: Look, x: float, y: float, tip: str) -> str:
    size = 6.0 if look.ours else 4.5
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    }
    style = f'style="fill: var(--c{look.colour}); stroke: var(--ground)"'
    title = f"<title>{escape(tip)}</title>"
    if look.shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {style}>{title}</circle>'
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners[look.shape])
    return f'<polygon points="{points}" {style}>{title}</polygon>'


def _legend(looks: dict[str, Look]) -> str:
    entries = "".join(
        f'<li><svg viewBox="0 0 16 16">{_marker(look, 8, 8, family)}</svg>{escape(family)}</li>'
        for family, look in looks.items()
    )
    return f'<ul class="legend">{entries}</ul>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        ('<tr class="ours">' if index in table.strong else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
