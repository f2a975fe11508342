"""`lorareg token`: made, listed, revoked, and written down."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorareg.cli.audit import AUDIT_FILE

Run = Callable[..., Any]


def test_make_list_revoke(run: Run, home: Path) -> None:
    made = run(
        "token", "create", "ci", "--scope", "write", "--namespace", "team", "--days", "30", "--home", home, "--json"
    )
    assert made.data["token"].startswith("lrg_1_")
    assert run("token", "create", "all", "--home", home, "-q").out.startswith("lrg_2_")
    listed = run("token", "list", "--home", home)
    assert "team" in listed.out
    assert made.data["token"] not in listed.out
    assert run("token", "revoke", "ci", "--home", home).exit_code == 0
    states = {one["name"]: one["state"] for one in run("token", "list", "--home", home, "--json").data["tokens"]}
    assert states == {"ci": "revoked", "all": "holds"}
    assert run("token", "list", "--home", home, "-q").out == "ci\nall\n"
    events = [json.loads(line) for line in (home / AUDIT_FILE).read_text().splitlines()]
    assert [event["event"] for event in events] == ["token created", "token created", "token revoked"]
    assert made.data["token"] not in (home / AUDIT_FILE).read_text()
    assert stat.S_IMODE((home / AUDIT_FILE).stat().st_mode) == 0o600


def test_what_is_refused(run: Run, home: Path) -> None:
    run("token", "create", "ci", "--home", home)
    assert run("token", "create", "ci", "--home", home).exit_code == 60
    assert run("token", "revoke", "no", "--home", home).exit_code == 60
    assert run("token", "create", "x", "--namespace", "a/b", "--home", home).exit_code == 3
    assert run("token", "create", "x", "--scope", "admin", "--home", home).exit_code == 2
    assert run("token", "list", "--home", home / "none").exit_code == 20


def test_shared_options_come_before_the_command_too(run: Run, home: Path) -> None:
    assert run("--home", home, "--json", "token", "create", "ci").data["name"] == "ci"
    assert run("--home", home, "-q", "token", "list").out == "ci\n"


def test_an_empty_list_says_so(run: Run, home: Path) -> None:
    assert run("token", "list", "--home", home).out == "No tokens.\n"


def test_the_group_has_help(run: Run) -> None:
    for words in (("token", "--help"), ("token", "create", "--help")):
        assert run(*words).exit_code == 0
