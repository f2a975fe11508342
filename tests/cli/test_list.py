"""`lorareg list`: pages that are printed while they are read, past damaged rows."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorareg.cli import output
from lorareg.registry import listings
from lorareg.registry.errors import DamagedRowsError

Run = Callable[..., Any]


def change(home: Path, sql: str) -> None:
    """Change rows behind the registry's back."""
    with closing(sqlite3.connect(home / "registry.sqlite")) as connection, connection:
        connection.execute(sql)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_of_any_size_are_one_list(
    run: Run, certified_home: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    whole = {every: run("list", "--home", certified_home, "--json", *every).data for every in ((), ("--all",))}
    monkeypatch.setattr(listings, "ROWS_A_PAGE", size)
    for every, data in whole.items():
        assert run("list", "--home", certified_home, "--json", *every).data == data
    names = [f"{one['name']}@{one['version']}" for one in whole["--all",]["adapters"]]
    assert names == ["man-de@1", "man-nl@1", "man-nl@2", "src-rust@1"]
    assert [one["version"] for one in whole[()]["adapters"]] == [1, 2, 1]
    lines = run("list", "--home", certified_home).out.splitlines()
    assert [line.split()[0] for line in lines if line and line[0] != "─"] == ["adapter", *[names[i] for i in (0, 2, 3)]]
    assert run("list", "--home", certified_home, "--quiet").out.split() == [names[i] for i in (0, 2, 3)]


def test_the_newest_of_a_cohort_is_the_newest_in_it(run: Run, certified_home: Path) -> None:
    """man-nl@2 has another layout than man-nl@1."""
    cohorts = {c["name"] for c in run("cohorts", "--home", certified_home, "--json").data["cohorts"]}
    found = [run("list", "--home", certified_home, "--cohort", c, "--json").data["adapters"] for c in sorted(cohorts)]
    assert sorted([f"{a['name']}@{a['version']}" for a in adapters] for adapters in found) == [
        ["man-de@1", "man-nl@1", "src-rust@1"],
        ["man-nl@2"],
    ]


@pytest.mark.parametrize(
    ("sql", "row", "left"),
    [
        ("UPDATE adapter SET rank = rank + 1 WHERE name = 'man-de'", "Row 1 of table 'adapter'", 2),
        ("UPDATE adapter SET source = CAST(x'ff41' AS TEXT) WHERE id = 2", "Row 2 of table 'adapter'", 2),
        ("UPDATE adapter SET version = 'x' WHERE id = 3", "Row 3 of table 'adapter'", 2),
        ("UPDATE encoding SET size_bytes = 1 WHERE adapter_id = 2", "Row 3 of table 'encoding'", 2),
        ("UPDATE cohort SET base_model = 'b'", "Row 1 of table 'cohort'", 3),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_damaged_rows_are_passed_over_and_told_at_the_end(
    run: Run, encoded_home: Path, monkeypatch: pytest.MonkeyPatch, size: int, sql: str, row: str, left: int
) -> None:
    monkeypatch.setattr(listings, "ROWS_A_PAGE", size)
    change(encoded_home, sql)
    result = run("list", "--home", encoded_home, "--json")
    assert result.exit_code == DamagedRowsError.exit_code == 22
    assert len(result.data["adapters"]) == left
    assert result.data["damaged"] == [row]
    assert f"Damaged rows in {encoded_home} (1) were passed over, with what they say: {row}." in result.err
    assert len(run("list", "--home", encoded_home, "--quiet").out.split()) == left


def test_a_table_is_drawn_the_same_for_files_and_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes into a file is drawn without rich, which takes most of the time of a long list."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm")
    rows = [("a\x1b[31m", "1", "one\ntwo 日本"), ("longer name", "22.5 MB", ""), ("", "", "é" * 50)]
    table = output.Table(("name", "size", "task"), rows, "Title", frozenset({"size"}), frozenset({"task"}))
    drawn = []
    for forced in (False, True):
        monkeypatch.setenv("FORCE_COLOR", "1") if forced else monkeypatch.delenv("FORCE_COLOR", raising=False)
        output.print_table(table)
        text = capsys.readouterr().out
        assert ("\x1b" in text) == forced
        drawn.append([re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in text.splitlines()])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == "Title"
    assert drawn[0][1].split() == ["name", "size", "task"]
    assert drawn[0][3:5] == ["a\\x1b[31m" + " " * 11 + "1   one", " " * 24 + "two 日本"]
