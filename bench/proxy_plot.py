"""The points of `bench/proxies.py` as a picture: gain lost over each of some proxies, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from proxy_statistics import PROXIES, SMALLEST, Row, telling

COLOURS = {"none": "#2a78d6", "mean": "#d95926"}
NAMES = {"none": "without generator", "mean": "with the mean table"}
LEAST_LOST = 3e-4
"""Where points that lose less, or nothing, are drawn."""


def write_plot(path: Path, title: str, rows: Sequence[Row], proxies: Sequence[str]) -> bool:
    """Write a PNG with one panel a proxy; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    columns = 3
    lines = math.ceil(len(proxies) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.5 * lines), dpi=80, layout="constrained")
    figure.suptitle(title)
    for index, proxy in enumerate(proxies):
        axes = figure.add_subplot(lines, columns, index + 1)
        for arch, colour in COLOURS.items():
            own = [row for row in rows if row["rate"].startswith(arch)]
            x = [max(PROXIES[proxy](row), SMALLEST) for row in own]
            y = [max(1 - row["gain"], LEAST_LOST) for row in own]
            axes.scatter(x, y, s=9, alpha=0.6, color=colour, label=NAMES[arch], linewidths=0)
        axes.set(xscale="log", yscale="log", xlabel=proxy)
        axes.xaxis.set_minor_formatter(NullFormatter())
        figures = telling(proxy, rows)
        axes.set_title(f"rank correlation {figures.spearman:.3f}", fontsize=9)
        for lost in (0.01, 0.03, 0.05):
            axes.axhline(lost, color="#a8a49a", linewidth=0.6)
        if index % columns == 0:
            axes.set_ylabel("gain lost")
        if index == 0:
            axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    return True
