"""The figures of `report`: they add up, and to the bytes that are really on disk."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorareg.cli.report_html import render
from lorareg.registry.report import MEANING, Report, build_report, percent
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE


def report_of(home: Path) -> Report:
    with Registry.open(home, create=False) as registry, registry.reading() as connection:
        report = build_report(connection, registry)
        return replace(report, adapters=list(report.adapters))


def test_parts_add_up_to_all_bytes_on_disk(encoded_home: Path) -> None:
    totals = report_of(encoded_home).totals
    blobs = sum(file.stat().st_size for file in (encoded_home / "blobs").rglob("*") if file.is_file())
    database = (encoded_home / "registry.sqlite").stat().st_size
    reserve = (encoded_home / "reserve").stat().st_size
    assert totals.on_disk_bytes == blobs + database + reserve
    assert totals.beside["reserve"] == reserve
    assert totals.stored_bytes == sum(totals.stored.values())


def test_each_kind_of_bytes_is_counted_where_it_belongs(encoded_home: Path) -> None:
    totals = report_of(encoded_home).totals
    assert totals.stored["codes"] == 4000 + 100 + 200_000
    assert totals.stored["generators"] == 9000
    assert totals.stored["task_vectors"] == 512
    assert totals.stored["uncompressed"] == 0
    assert totals.beside["originals_kept"] == totals.original_bytes
    assert totals.beside["superseded"] == 250
    assert totals.beside["orphans"] == 8
    assert totals.stored["rows"] > 0
    assert totals.stored["database_overhead"] > 0


def test_amortised_bytes_sum_to_the_cohort(encoded_home: Path) -> None:
    report = report_of(encoded_home)
    (cohort,) = report.cohorts
    assert sum(adapter.amortised_bytes for adapter in report.adapters) == pytest.approx(cohort.stored_bytes, abs=3)
    assert cohort.by_tier == {"generated": 1, "lossless": 1, "residual": 1}
    assert cohort.worst_relative_error == 0.19
    assert cohort.generators == ["slots v1"]


def test_break_even_is_where_the_lines_cross(encoded_home: Path) -> None:
    report = report_of(encoded_home)
    (cohort,) = report.cohorts
    users = [adapter for adapter in report.adapters if adapter.generator]
    saved = sum(adapter.original_bytes - adapter.marginal_bytes for adapter in users) / len(users)
    shared = cohort.stored_bytes - sum(adapter.marginal_bytes for adapter in report.adapters)
    assert cohort.break_even_adapters is not None
    assert (cohort.break_even_adapters - 1) * saved < shared <= cohort.break_even_adapters * saved


def test_adapters_without_a_code_count_with_their_weights(home: Path) -> None:
    report = report_of(home)
    (cohort,) = report.cohorts
    assert {adapter.tier for adapter in report.adapters} == {"original"}
    assert cohort.uncompressed_bytes == report.totals.original_bytes == 3 * 476_224
    assert cohort.break_even_adapters is None
    assert all(adapter.relative_error is None for adapter in report.adapters)


def test_removed_adapters_count_beside(encoded_home: Path) -> None:
    with Registry.open(encoded_home, create=False) as registry:
        adapter = registry.adapter("src-rust")
        weights = {file.path: file.size_bytes for file in registry.files(adapter)}[WEIGHTS_FILE]
        registry.remove(adapter)
    report = report_of(encoded_home)
    assert [adapter.name for adapter in report.adapters] == ["man-de", "man-nl"]
    assert report.totals.beside["quarantined"] >= weights + 200_000
    assert report.totals.stored["codes"] == 4100


def test_an_empty_registry_has_an_empty_report(tmp_path: Path) -> None:
    Registry.open(tmp_path / "empty", create=True).close()
    report = report_of(tmp_path / "empty")
    assert (report.totals.adapters, report.totals.stored_percent, report.cohorts) == (0, 0.0, [])
    assert "No adapters yet." in render(report)


def test_percent_of_nothing_is_nothing() -> None:
    assert percent(5, 0) == 0.0


def test_every_kind_of_bytes_is_explained(encoded_home: Path) -> None:
    totals = report_of(encoded_home).totals
    kinds = {"codes", "uncompressed", "generators", "task_vectors"}
    assert (set(totals.stored) | set(totals.beside)) - kinds <= set(MEANING)


class Balance(HTMLParser):
    """Checks that tags nest, and collects attributes that could load something."""

    VOID = frozenset({"meta", "rect", "line", "circle", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [f"{key}={value}" for key, value in attrs if key in {"src", "href", "xlink:href", "data"}]
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("which", ["home", "encoded_home"])
def test_the_page_is_well_formed_and_loads_nothing(which: str, request: pytest.FixtureRequest) -> None:
    page = render(report_of(request.getfixturevalue(which)))
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.links == []
    assert "script" not in parser.tags
    assert not re.search(r"https?:|url\(|@import", page)
    assert "nan" not in page.lower().replace("nano", "")


def test_the_page_shows_each_adapter_and_plot(encoded_home: Path) -> None:
    page = render(report_of(encoded_home))
    for words in ("man-de@1", "Relative error against marginal bytes", "Original and stored bytes", "break-even: 1"):
        assert words in page


def test_the_page_escapes_what_came_from_adapters(encoded_home: Path) -> None:
    report = report_of(encoded_home)
    hostile = Report(
        "<script>alert(1)</script>\x1b[2J", report.created_at, report.totals, report.cohorts, report.adapters
    )
    page = render(hostile)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
