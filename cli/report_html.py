"""The report as one HTML page: opens offline, in light and dark, without a line of script.

Whatever came from an adapter (names, tiers, models) is escaped here or in `plots`; the page forbids
itself to load anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest
from html import escape

from lorareg.cli.output import BYTE_KINDS, MISSING, format_bytes, format_error, format_percent, format_tiers, printable
from lorareg.cli.plots import IS_DENSE, MAX_BARS, bytes_per_adapter, error_against_bytes, total_against_count
from lorareg.registry.report import MEANING, AdapterReport, CohortReport, Report

MAX_ROWS = 1000
MAX_POINTS = 2000

FIGURE_STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1b1b19; --muted: #66645f; --line: #e2e0da;
  --original: #d5d3cc; --blue: #2a78d6; --pale: #86b6ef; --green: #008300; --orange: #d95926; }
@media (prefers-color-scheme: dark) { :root { --ground: #1a1a19; --ink: #f2f1ec; --muted: #a3a19a; --line: #383733;
  --original: #4a4945; --blue: #3987e5; --pale: #1c5cab; --green: #35a035; --orange: #e8703f; } }
.muted, figcaption, caption { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1rem; margin: 1.5rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; }
.tiles b { display: block; font-size: 1.5rem; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
caption { text-align: left; padding: .25rem .6rem; } tbody th { font-weight: inherit; }
th:first-child, td:first-child { text-align: left; } tr.sum > * { font-weight: 600; }
figure { margin: 1rem 0; } svg.plot { width: 100%; height: auto; overflow: visible;
  font: 12px system-ui, sans-serif; } svg.dense { min-width: 620px; }
.plot text { fill: var(--ink); } .plot text.muted { fill: var(--muted); }
.grid { stroke: var(--line); } .mark { stroke: var(--muted); stroke-dasharray: 3 3; }
.original { fill: var(--original); } .marginal { fill: var(--blue); } .share { fill: var(--pale); }
.line-original { stroke: var(--muted); stroke-width: 2; } .line-stored { stroke: var(--blue); stroke-width: 2; }
circle { stroke: var(--ground); stroke-width: 1.5; fill: var(--muted); }
.tier-residual { fill: var(--blue); } .tier-generated { fill: var(--green); } .tier-lossless { fill: var(--orange); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
.key.original { background: var(--original); } .key.marginal, .key.tier-residual { background: var(--blue); }
.key.share { background: var(--pale); } .key.tier-generated { background: var(--green); }
.key.tier-lossless { background: var(--orange); } .key.line-original { background: var(--muted); }
.key.line-stored { background: var(--blue); } .legend { white-space: nowrap; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
@media (max-width: 44rem) { .scroll tbody th { white-space: normal; min-width: 7.5rem; }
  svg.plot:not(.dense) { font-size: 20px; } }
"""
"""What tables, tiles and plots look like, wherever they are shown."""

_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; background: var(--ground); color: var(--ink);
  max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
"""


def _scrolling(label: str, content: str) -> str:
    """Content that may be wider than a phone: it scrolls by itself, by touch or by keys."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(printable(label))}">{content}</div>'


def _table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], sums: frozenset[int] = frozenset()
) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        ('<tr class="sum">' if index in sums else "<tr>")
        + f'<th scope="row">{escape(printable(row[0]))}</th>'
        + "".join(f"<td>{escape(printable(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for index, row in enumerate(rows)
    )
    table = f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return _scrolling(caption, table)


def _figure(svg: str, caption: str, keys: Sequence[tuple[str, str]] = ()) -> str:
    legend = "".join(
        f'<span class="legend"><span class="key {css}"></span>{escape(name)}</span> ' for css, name in keys
    )
    if not svg:
        return ""
    caption = printable(caption)
    plot = _scrolling(caption, svg) if IS_DENSE in svg else svg
    return f"<figure>{plot}<figcaption>{escape(caption)}{legend}</figcaption></figure>"


def _tiles(report: Report) -> str:
    totals = report.totals
    errors = [one.worst_relative_error for one in report.cohorts if one.worst_relative_error is not None]
    tiles = (
        (str(totals.adapters), f"adapters, {totals.encoded} encoded"),
        (format_bytes(totals.original_bytes), "original weights"),
        (format_bytes(totals.stored_bytes), "stored, everything counted"),
        (format_percent(totals.stored_percent), "of the originals"),
        (format_error(max(errors, default=None)), "worst relative error of ΔW"),
    )
    return '<div class="tiles">' + "".join(f"<div><b>{escape(a)}</b>{escape(b)}</div>" for a, b in tiles) + "</div>"


def _totals(report: Report) -> str:
    totals = report.totals
    groups = (("stored", totals.stored), ("also on disk now, beside what must stay", totals.beside))
    rows: list[tuple[str, int]] = [("original weights files", totals.original_bytes)]
    sums = {0}
    for name, parts in groups:
        sums.add(len(rows))
        rows.append((name, sum(parts.values())))
        rows += [(BYTE_KINDS[kind], size) for kind, size in parts.items()]
    sums.add(len(rows))
    rows.append(("all on disk", totals.on_disk_bytes))
    whole = totals.original_bytes or 1
    cells = [(name, format_bytes(size), format_percent(100 * size / whole)) for name, size in rows]
    return _table("Every byte, by what it is for", ("kind", "bytes", "% of originals"), cells, frozenset(sums))


def _cohort_row(cohort: CohortReport) -> tuple[str, ...]:
    return (
        cohort.name,
        str(cohort.adapters),
        format_bytes(cohort.original_bytes),
        format_bytes(cohort.stored_bytes),
        format_percent(cohort.stored_percent),
        ", ".join(cohort.generators) or MISSING,
        format_bytes(cohort.generator_bytes),
        format_bytes(cohort.code_bytes),
        format_bytes(cohort.task_vector_bytes),
        MISSING if cohort.break_even_adapters is None else str(cohort.break_even_adapters),
        format_error(cohort.worst_relative_error),
        format_tiers(cohort.by_tier),
    )


def _adapter_row(adapter: AdapterReport) -> tuple[str, ...]:
    return (
        f"{adapter.name}@{adapter.version}",
        format_bytes(adapter.original_bytes),
        format_bytes(adapter.stored_bytes),
        adapter.tier,
        format_error(adapter.relative_error),
        format_bytes(adapter.marginal_bytes),
        format_bytes(adapter.amortised_bytes),
        adapter.generator or MISSING,
    )


class _Picked:
    """Of any number of adapters those that the page shows: the first, the largest, and points spread over all."""

    def __init__(self, adapters: Iterable[AdapterReport]) -> None:
        self.first: list[AdapterReport] = []
        self.largest: list[AdapterReport] = []
        self.encoded: list[AdapterReport] = []
        count, step = 0, 1
        for adapter in adapters:
            if len(self.first) < MAX_ROWS:
                self.first.append(adapter)
            self.largest.append(adapter)
            if len(self.largest) >= 2 * MAX_BARS:
                self._keep_largest()
            if adapter.relative_error is not None:
                if count % step == 0:
                    self.encoded.append(adapter)
                count += 1
                if len(self.encoded) > MAX_POINTS:
                    self.encoded, step = self.encoded[::2], 2 * step
        self._keep_largest()
        self.points = "Every encoded adapter." if step == 1 else f"One in {step} of the encoded adapters."

    def _keep_largest(self) -> None:
        self.largest = nlargest(MAX_BARS, self.largest, key=lambda adapter: adapter.amortised_bytes)


def _plots(report: Report, picked: _Picked) -> str:
    count = report.totals.adapters
    more = f" The {MAX_BARS} largest of {count}." if count > MAX_BARS else ""
    tiers = [("tier-residual", "residual"), ("tier-generated", "generated"), ("tier-lossless", "lossless")]
    bars = [("original", "original"), ("marginal", "marginal"), ("share", "share of what is stored once")]
    lines = [("line-original", "originals"), ("line-stored", "stored, generator and all")]
    return "".join(
        [
            "<h2>Bytes of each adapter</h2>",
            _figure(bytes_per_adapter(picked.largest), f"Amortised bytes and their share of the original.{more}", bars),
            "<h2>Exactness and size</h2>",
            _figure(error_against_bytes(picked.encoded), picked.points, tiers)
            or '<p class="muted">Nothing is encoded yet.</p>',
            "<h2>When the generator pays</h2>",
            *(_figure(total_against_count(cohort), f"Cohort {cohort.name}.", lines) for cohort in report.cohorts),
        ]
    )


def render_sections(report: Report) -> str:
    """All that is below the page's heading: tiles, tables, plots, and what the figures mean."""
    cohort_columns = (
        "cohort",
        "adapters",
        "original",
        "stored",
        "%",
        "generator",
        "its bytes",
        "codes",
        "task vectors",
        "break-even",
        "worst error",
        "tiers",
    )
    columns = ("adapter", "original", "stored", "tier", "error", "marginal", "amortised", "generator")
    picked, count = _Picked(report.adapters), report.totals.adapters
    cut = "" if count <= MAX_ROWS else f"<p>The first {MAX_ROWS} of {count}.</p>"
    cohorts = [_cohort_row(one) for one in report.cohorts]
    adapters = [_adapter_row(adapter) for adapter in picked.first]
    sections = [
        _tiles(report),
        "<h2>Totals</h2>",
        _totals(report),
        _plots(report, picked) if count else '<p class="muted">No adapters yet.</p>',
        "<h2>Cohorts</h2>",
        _table("Each cohort, its generator counted", cohort_columns, cohorts),
        "<h2>Adapters</h2>",
        cut,
        _table("Each version of each adapter", columns, adapters),
        "<h2>What the figures mean</h2><dl>",
        *(f"<dt>{escape(term.replace('_', ' '))}</dt><dd>{escape(words)}</dd>" for term, words in MEANING.items()),
        "</dl>",
    ]
    return "".join(sections)


def render(report: Report) -> str:
    """The whole page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>lorareg report</title><style>{FIGURE_STYLE}{_PAGE_STYLE}</style></head>"
        "<body><main><h1>lorareg report</h1>"
        f'<p class="muted">{escape(printable(report.home))}, {escape(report.created_at)}</p>'
        f"{render_sections(report)}</main></body></html>\n"
    )
