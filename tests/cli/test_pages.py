"""The pages for people: what they show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("starlette")

from page_reader import HOSTILE, Outline, client_of, shown, tasks_on
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from lorareg.cli.web.pages import finder, overview
from lorareg.cli.web.pages.routes import page_routes
from lorareg.registry.errors import BaseModelError
from lorareg.registry.reader import Reader
from lorareg.registry.schema import CertificateRow
from lorareg.registry.store import Registry
from lorareg.registry.types import SENTENCE_MODEL

# -- the first page ---------------------------------------------------------------------------------


def test_the_first_page_sums_up_and_lists(certified_home: Path) -> None:
    page = shown(client_of(certified_home), "/")
    with Reader(certified_home) as reader:
        originals = sum(adapter.original_bytes for adapter in reader.adapters())
        flemish = reader.adapter("man-nl").original_bytes
    stored = 4000 + 100 + 200_000 + 9000 + flemish
    assert tasks_on(page) == ["man-de", "man-nl", "src-rust"]
    for words in (
        "3 tasks in 214 kB",
        "in 4 versions",
        f"is {100 * stored / originals:.2f}% of that",
        "Continue Unix manual pages written in German.",
        "residual 0.1100 4 kB 99.16%",
        "lossless exact 200 kB 58.00%",
        "original - ",
        "smollm2-135m-instruct-r2-qv-",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ):
        assert words in page.words


def test_pages_by_key(tenants: Path) -> None:
    client = client_of(tenants)
    answer = client.get("/")
    assert len(answer.content) < 50_000
    first = Outline(answer.text)
    assert tasks_on(first) == [f"a/task-{number:02}" for number in range(50)]
    (following,) = [link["href"] for link in first.named("a") if link.get("rel") == "next"]
    assert following == "/?after=a%2Ftask-49"
    second = shown(client, following)
    assert tasks_on(second) == [*(f"a/task-{number:02}" for number in range(50, 55)), "b/zebra", "b/zulu"]
    assert [link for link in second.named("a") if link.get("rel") == "next"] == []
    assert "There are no tasks after this one." in shown(client, "/?after=zz").words
    assert HOSTILE.split()[0] not in client.get("/", params={"after": HOSTILE}).text


def test_a_full_page_takes_no_more_queries_than_a_short_one(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    fetch = Reader.fetch

    def counted(self: Reader, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        asked.append(sql)
        return fetch(self, sql, **parameters)

    monkeypatch.setattr(Reader, "fetch", counted)
    client_of(tenants).get("/")
    full, asked[:] = len(asked), []
    client_of(tenants, lambda name: name.startswith("b/")).get("/")
    assert len(asked) == full <= 6


def test_names_are_read_on_until_the_page_is_full(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "NAMES_AT_ONCE", 7)
    assert tasks_on(shown(client_of(tenants, lambda name: name.startswith("b/")), "/")) == ["b/zebra", "b/zulu"]
    assert len(tasks_on(shown(client_of(tenants), "/"))) == 50


def test_an_empty_registry_says_how_to_fill_it(tmp_path: Path) -> None:
    Registry.open(tmp_path / "empty", create=True).close()
    client = client_of(tmp_path / "empty")
    assert "lorareg ingest PATH" in shown(client, "/").words
    assert "Nothing fits" in shown(client, "/?q=poems").words
    assert "No adapters yet." in shown(client, "/report").words


# -- searching --------------------------------------------------------------------------------------


def test_search_by_words(certified_home: Path) -> None:
    client = client_of(certified_home)
    page = shown(client, "/?q=manual+pages+in+german")
    assert tasks_on(page)[0] == "man-de"
    assert "Compared by words" in page.words
    assert page.named("input")[0]["value"] == "manual pages in german"
    nothing = shown(client, "/?q=xyzzy+plugh")
    assert tasks_on(nothing) == []
    assert "in other words" in nothing.words
    assert tasks_on(shown(client, "/?q=++")) == ["man-de", "man-nl", "src-rust"]
    assert shown(client, f"/?q={'dutch ' * 500}")


class FakeEncoder:
    """Knows one word."""

    name = "sentence:2-fake-1"

    def __init__(self, path: Path) -> None:
        if path.name == "broken":
            raise BaseModelError(path=path, reason="it does not load", remedy="")

    def encode(self, description: str, samples: Sequence[str]) -> np.ndarray:
        return np.array([127, 0] if "rust" in description.casefold() else [0, 127], np.int8)


def test_search_by_meaning(certified_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "SentenceEncoder", FakeEncoder)
    (tmp_path / "model").mkdir()
    with Registry.open(certified_home, create=False) as registry:
        registry.remember(SENTENCE_MODEL, str(tmp_path / "model"))
        registry.put_task_vector(registry.adapter("src-rust").id, FakeEncoder.name, bytes([127, 0]))
    client = client_of(certified_home)
    page = shown(client, "/?q=rusty")
    assert (tasks_on(page), "Compared by meaning." in page.words) == (["src-rust"], True)
    assert tasks_on(shown(client, "/?q=german")) == ["man-de", "man-nl"]
    monkeypatch.setattr(finder, "MAKE_AT_ONCE", 1)
    fresh = client_of(certified_home)
    assert "1 tasks are not described yet" in shown(fresh, "/?q=german").words
    assert "not described" not in shown(fresh, "/?q=german").words


@pytest.mark.parametrize("name", ["gone", "broken"])
def test_search_without_its_model_falls_back_to_words(
    certified_home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "SentenceEncoder", FakeEncoder)
    (tmp_path / "broken").mkdir()
    with Registry.open(certified_home, create=False) as registry:
        registry.remember(SENTENCE_MODEL, str(tmp_path / name))
    page = shown(client_of(certified_home), "/?q=rust")
    assert tasks_on(page)[0] == "src-rust"
    assert "sentence model is not to be had" in page.words
    assert str(tmp_path) not in page.words


# -- a task -----------------------------------------------------------------------------------------


def test_a_task_and_all_that_is_known_of_it(certified_home: Path) -> None:
    client = client_of(certified_home, base_url="http://registry.example:8080")
    page = shown(client, "/tasks/man-nl?version=1")
    with Reader(certified_home) as reader:
        adapter = reader.adapter("man-nl@1")
        encoding = reader.encoding(adapter.id)
        assert encoding is not None
        certificate = reader.certificate(encoding.id)
        assert certificate is not None
        config = {file.path: file.size_bytes for file in reader.files(adapter)}["adapter_config.json"]
    for words in (
        "man-nl version 1",
        "Continue Unix manual pages written in Dutch.",
        "100 B of 476 kB",
        "beside the shared generator slots v1",
        "0.1900",
        "generated",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        certificate.digest,
        encoding.sha256,
        adapter.digest,
        "What was measured on 2026-01-02 03:04 UTC",
        "Held to relative error 0.2000",
        "Projections of the original 1,024",
        "Errors of 60 modules as a table",
        "model.layers.0.self_attn.q_proj 0.3000",
        "stable",
        f"PEFT config {config / 1000:.3g} kB",
        "snapshot_download('man-nl', revision='v1', endpoint='http://registry.example:8080')",
        "AutoModelForCausalLM.from_pretrained('HuggingFaceTB/SmolLM2-135M-Instruct')",
        "HF_ENDPOINT=http://registry.example:8080 hf download man-nl --revision v1 --local-dir man-nl",
        "http://registry.example:8080/man-nl/resolve/v1/adapter_model.safetensors",
        "lorareg materialize man-nl@1 -o man-nl",
    ):
        assert words in page.words
    assert "Stale" not in page.words
    links = [link["href"] for link in page.named("a") if "download" in link]
    assert links == [
        "/man-nl/resolve/v1/adapter_model.safetensors",
        "/man-nl/resolve/v1/adapter_config.json",
        "/man-nl/resolve/v1/README.md",
    ]
    (plot,) = page.named("svg")
    assert plot["aria-label"] == "Relative error of each module"
    assert len(page.named("rect")) == 60


def test_versions_and_labels(certified_home: Path) -> None:
    client = client_of(certified_home)
    newest = shown(client, "/tasks/man-nl")
    assert "man-nl version 2" in newest.words
    assert "stored as it came, so it comes back bit for bit" in newest.words
    assert "Continue manual pages in Flemish." in newest.words
    links = [link for link in newest.named("a") if "?version=" in str(link["href"])]
    assert [(link["href"], link.get("aria-current")) for link in links] == [
        ("/tasks/man-nl?version=2", "page"),
        ("/tasks/man-nl?version=1", None),
    ]
    assert "man-nl version 1" in shown(client, "/tasks/man-nl?version=stable").words
    assert "Every module comes back exactly." in shown(client, "/tasks/src-rust").words


def test_no_certificate_and_a_stale_one(certified_home: Path) -> None:
    client = client_of(certified_home)
    with Registry.open(certified_home, create=False) as registry:
        registry.describe(registry.adapter("man-de"), "")
        exact, coarse = (registry.encoding(registry.adapter(task).id) for task in ("src-rust", "man-de"))
        assert exact is not None
        assert coarse is not None
        with registry.writing() as session:
            session.delete(session.get_one(CertificateRow, exact.id))
            row = session.get_one(CertificateRow, coarse.id)
            row.facts = row.facts.replace("0.95", "0.99")
    assert "No certificate was made" in shown(client, "/tasks/src-rust").words
    page = shown(client, "/tasks/man-de")
    assert "Stale:" in page.words
    assert "Nobody has said what this adapter is for" in page.words


@pytest.mark.parametrize(
    "url",
    [
        "/tasks/nobody",
        "/tasks/man-nl?version=9",
        "/tasks/man-nl?version=0",
        "/tasks/man-nl?version=nosuch",
        "/tasks/man-nl?version=1@2",
        "/tasks/man-nl?version=%3Cscript%3E",
        "/tasks/..%2Fx",
        "/tasks/a--b",
        "/tasks/%3Cscript%3E",
        "/tasks/a/b",
    ],
)
def test_tasks_that_are_not_there(certified_home: Path, url: str) -> None:
    page = shown(client_of(certified_home), url, 404)
    assert "No such task" in page.words
    assert "script" not in page.words


def test_addresses_that_lead_nowhere(certified_home: Path) -> None:
    client = client_of(certified_home)
    assert "Nothing is here" in shown(client, "/nowhere", 404).words
    assert shown(client, "/tasks/a/b/c", 404)


# -- every page -------------------------------------------------------------------------------------

PAGES = (
    "/",
    "/?after=man-de",
    "/?q=dutch",
    "/?q=zzz",
    "/tasks/man-nl",
    "/tasks/man-nl?version=1",
    "/report",
    "/tasks/x",
)


@pytest.mark.parametrize("url", PAGES)
def test_headers(certified_home: Path, url: str) -> None:
    headers = client_of(certified_home).get(url).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("url", PAGES)
def test_pages_can_be_read_by_ear(certified_home: Path, url: str) -> None:
    page = Outline(client_of(certified_home).get(url).text)
    assert page.named("html") == [{"lang": "en"}]
    assert [tag for tag, _ in page.tags].index("title") < [tag for tag, _ in page.tags].index("body")
    for landmark in ("header", "main", "footer", "h1"):
        assert len(page.named(landmark)) == 1
    assert all(nav.get("aria-label") for nav in page.named("nav"))
    assert page.named("a")[0] == {"class": "skip", "href": "#main"}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(cell.get("scope") in {"col", "row"} for cell in page.named("th"))
    inputs = {field["id"] for field in page.named("input")}
    assert inputs == {label["for"] for label in page.named("label")}
    assert all(plot.get("aria-label") for plot in page.named("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "style"} & {tag for tag, _ in page.tags}


def test_the_report_is_the_one_that_is_written_to_files(certified_home: Path) -> None:
    client = client_of(certified_home)
    page = shown(client, "/report")
    for words in ("man-de@1", "Every byte, by what it is for", "rest of the database", "break even"):
        assert words in page.words
    assert str(certified_home) not in page.words
    assert len(page.named("svg")) == 4


def test_static_files(certified_home: Path) -> None:
    client = client_of(certified_home)
    (sheet,) = [link["href"] for link in shown(client, "/").named("link") if link["rel"] == "stylesheet"]
    style = client.get(str(sheet))
    assert style.headers["content-type"].startswith("text/css")
    assert "immutable" in style.headers["cache-control"]
    assert not re.search(r"https?:|url\(|@import", style.text)
    assert "prefers-color-scheme: dark" in style.text
    assert client.get("/static/icon.svg").headers["content-type"] == "image/svg+xml"
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


def test_under_a_path_of_its_own(certified_home: Path) -> None:
    routes = page_routes(lambda request: Reader(certified_home), lambda request, name: True)
    client = TestClient(Starlette(routes=[Mount("/registry", routes=routes)]))
    page = shown(client, "/registry/tasks/man-nl")
    links = [str(link["href"]) for link in page.named("a") if link["href"] != "#main"]
    assert [link for link in links if not link.startswith("/registry/")] == []
    assert "HF_ENDPOINT=http://testserver/registry hf" in page.words


def test_a_registry_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = shown(client_of(tmp_path / "nowhere"), "/", 503)
    assert "The registry could not be read." in page.words
    assert str(tmp_path) not in page.words
    assert "there is no registry here" in caplog.text
