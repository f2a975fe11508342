"""Reading the pages for people as a client and a screen reader would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from lorareg.cli.web.pages.routes import not_found_page, page_routes
from lorareg.registry.reader import Reader

SEE_ALL: Callable[[str], bool] = lambda name: True  # noqa: E731
HOSTILE = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202eRLO \x1b[2J"


def client_of(home: Path, may_see: Callable[[str], bool] = SEE_ALL, **options: Any) -> TestClient:
    routes = page_routes(lambda request: Reader(home), lambda request, name: may_see(name))
    handlers: Mapping[Any, Any] = {404: lambda request, error: not_found_page(request)}
    return TestClient(Starlette(routes=routes, exception_handlers=handlers), **options)


class Outline(HTMLParser):
    """Checks that tags nest, and collects what a screen reader would go by."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def shown(client: TestClient, url: str, status: int = 200) -> Outline:
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Outline(answer.text)


def tasks_on(page: Outline) -> list[str]:
    links = [str(link["href"]) for link in page.named("a")]
    return [link.removeprefix("/tasks/") for link in links if link.startswith("/tasks/")]
