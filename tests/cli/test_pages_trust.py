"""The pages for people: who sees what, and that strangers' texts stay texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("starlette")

from page_reader import HOSTILE, Outline, client_of, shown, tasks_on

from lorareg.registry.peft_format import read_folder
from lorareg.registry.report import build_report
from lorareg.registry.schema import CohortRow
from lorareg.registry.store import Registry
from lorareg.registry.types import Layout, NewEncoding

BASE = "x/<script>alert(4)</script>\"'); import os #"


def test_what_may_not_be_seen_is_not_there(tenants: Path) -> None:
    client = client_of(tenants, lambda name: name.startswith("a/"))
    first, second = shown(client, "/"), shown(client, "/?after=a/task-49")
    assert "55 tasks in" in first.words
    report = shown(client, "/report")
    assert "55 adapters" in report.words
    for page in (first, second, report, shown(client, "/?q=secret+zebra+diaries"), shown(client, "/?q=b")):
        assert "zebra" not in page.words.replace("secret zebra diaries", "")
        assert "b/" not in page.words
        assert not [name for name in tasks_on(page) if not name.startswith("a/")]
    hidden, missing = client.get("/tasks/b/zebra"), client.get("/tasks/b/nobody")
    assert (hidden.status_code, hidden.content) == (missing.status_code, missing.content)
    assert shown(client_of(tenants, lambda name: name == "b/zebra"), "/tasks/b/zebra")
    assert "1 task in" in shown(client_of(tenants, lambda name: name == "b/zebra"), "/").words


def test_nobody_is_asked_about_what_is_no_name(tenants: Path) -> None:
    asked: list[str] = []
    client = client_of(tenants, lambda name: bool(asked.append(name)))
    assert client.get("/tasks/%3Cscript%3E").status_code == 404
    assert asked == []


def test_the_report_of_some_is_that_of_a_registry_of_its_own(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    """What others store beside it changes no figure, not even of files that both have."""
    cards = {"one": "Of one, and of three.", "two": "Of two.", "three": "Of one, and of three."}
    folders = {
        name: read_folder(make_adapter(name, seed=seed, card=card)) for seed, (name, card) in enumerate(cards.items())
    }
    reports = []
    for kept in (("one", "two"), ("one", "two", "three")):
        home = tmp_path / f"of-{len(kept)}"
        with Registry.open(home, create=True) as registry:
            for name in kept:
                registry.ingest(folders[name], name=name)
                adapter = registry.adapter(name)
                code = name.encode() * 100
                digest = registry.blobs.put_bytes(code)
                registry.record_encoding(
                    NewEncoding(adapter.id, None, "fake-1", "residual", digest, len(code), "0" * 64, 900, {}, {})
                )
            with registry.reading() as connection:
                built = build_report(connection, registry, {"one", "two"})
                adapters = list(built.adapters)
            reports.append(replace(built, home="", created_at="", adapters=adapters))
    assert reports[0] == reports[1]
    assert reports[0].totals.adapters == 2
    assert reports[0].totals.stored["database_overhead"] == reports[0].totals.beside["orphans"] == 0


# -- strangers' texts -------------------------------------------------------------------------------


@pytest.fixture
def hostile_home(home: Path, make_adapter: Callable[..., Path], certify: Callable[..., None]) -> Path:
    """A task whose every text is up to no good."""
    modules = ("layers.0.<svg onload=alert(3)>\u202e\x1b[2J", "layers.1.'\"&amp;</title><script>x</script>")
    config = {"base_model_name_or_path": BASE}
    with Registry.open(home, create=False) as registry:
        folder = read_folder(make_adapter("evil", card=None, config=config))
        registry.ingest(folder, name="evil", description=HOSTILE)
        adapter = registry.adapter("evil")
        with registry.writing() as session:  # as a damaged or foreign registry may say
            cohort = session.get_one(CohortRow, adapter.cohort_id)
            for plain, evil in zip(Layout.from_json(cohort.layout).modules, modules, strict=True):
                cohort.layout = cohort.layout.replace(f'"{plain}"', json.dumps(evil))
        figures = {"relative_error": 0.1, "worst_module": modules[0], "worst_module_error": 0.2}
        held = {"relative_error": 0.2, "<b>": "<script>"}
        sha256 = registry.blobs.put_bytes(b"code")
        registry.record_encoding(
            NewEncoding(adapter.id, None, "fake-1", "residual", sha256, 4, "0" * 64, 900, held, figures)
        )
        certify(registry, "evil")
    return home


@pytest.mark.parametrize("url", ["/", "/tasks/evil", "/report", "/?q=script+alert", f"/?q={HOSTILE[:60]}"])
def test_text_of_strangers_is_neither_markup_nor_control(hostile_home: Path, url: str) -> None:
    client = client_of(hostile_home)
    answer = client.get(url)
    page = Outline(answer.text)
    assert page.named("script") == []
    assert [image["src"] for image in page.named("img")] == ["/static/icon.svg"]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on") or key == "style"]
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text
    if url in {"/", "/tasks/evil"}:
        assert "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }}" in page.words
    if url == "/tasks/evil":
        assert "layers.0.<svg onload=alert(3)>" in page.words


@pytest.mark.parametrize("host", ["evil.example/<script>", "a b", "x'; rm -rf ~; '", 'x"', "user@evil.example"])
def test_a_host_that_is_none_is_not_shown(certified_home: Path, host: str) -> None:
    answer = client_of(certified_home).get("/tasks/man-nl", headers={"host": host})
    assert "hf download" in answer.text
    assert host not in answer.text
    assert "HF_ENDPOINT=http://testserver" in answer.text


def test_snippets_quote_what_they_hold(hostile_home: Path) -> None:
    page = shown(client_of(hostile_home), "/tasks/evil")
    (line,) = [line for line in "".join(page.text).splitlines() if line.startswith("base = ")]
    compiled = compile(line, "snippet", "exec")
    assert [constant for constant in compiled.co_consts if isinstance(constant, str)] == [BASE]
