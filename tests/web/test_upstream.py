"""What is not here, asked of another hub: what is passed on, and what never is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from lorareg.cli.web.upstream import Upstream

Serve = Callable[..., TestClient]
BODY = b"weights of a base model" * 1000


class Elsewhere:
    """A hub that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.url = ""

    async def info(self, request: Request) -> Response:
        self.seen.append(request)
        return JSONResponse({"id": "base/model", "sha": "1" * 40})

    async def resolve(self, request: Request) -> Response:
        self.seen.append(request)
        name = request.path_params["path"]
        headers = {
            "X-Repo-Commit": "1" * 40,
            "X-Linked-ETag": '"linked"',
            "X-Linked-Size": str(len(BODY)),
            "X-Xet-Hash": "x",
        }
        if name == "large":
            return RedirectResponse(f"{self.url}/store", 302, headers=headers)
        if name == "loop":
            return RedirectResponse(str(request.url), 302)
        if name == "secret":
            return Response(status_code=403)
        if name == "none":
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        return Response(b"{}", headers={"ETag": '"small"', "X-Repo-Commit": "1" * 40, "Set-Cookie": "a=b"})

    async def store(self, request: Request) -> Response:
        self.seen.append(request)
        if request.headers.get("range") == "bytes=5-":
            return Response(BODY[5:], 206, headers={"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"})
        return Response(BODY, headers={"ETag": '"store"'})


@pytest.fixture
def elsewhere(on_socket: Callable[..., Any]) -> Elsewhere:
    hub = Elsewhere()
    routes = [
        Route("/api/models/base/model", hub.info),
        Route("/base/model/resolve/main/{path}", hub.resolve),
        Route("/store", hub.store),
    ]
    hub.url = on_socket(Starlette(routes=routes), lifespan="off").url
    return hub


def test_base_models_are_read_through(serve: Serve, elsewhere: Elsewhere, tokens: Any) -> None:
    client = serve(upstream=elsewhere.url)
    secret = {**tokens.headers("read"), "Cookie": "session=1"}
    assert client.get("/api/models/base/model", headers=secret).json()["sha"] == "1" * 40
    small = client.get("/base/model/resolve/main/config.json", headers=secret)
    assert (small.content, small.headers["etag"]) == (b"{}", '"small"')
    assert "set-cookie" not in small.headers
    head = client.head("/base/model/resolve/main/large", headers=secret)
    assert (head.status_code, head.headers["etag"], head.headers["content-length"]) == (200, '"linked"', str(len(BODY)))
    assert not [name for name in head.headers if name.startswith(("x-xet", "location"))]
    whole = client.get("/base/model/resolve/main/large", headers=secret)
    assert (whole.content, whole.headers["etag"], whole.headers["x-repo-commit"]) == (BODY, '"linked"', "1" * 40)
    part = client.get("/base/model/resolve/main/large", headers={**secret, "Range": "bytes=5-"})
    assert (part.status_code, part.content) == (206, BODY[5:])
    for request in elsewhere.seen:
        assert not {"authorization", "cookie", "x-forwarded-for"} & set(request.headers)


def test_what_is_here_comes_from_here(serve: Serve, elsewhere: Elsewhere) -> None:
    client = serve(upstream=elsewhere.url)
    assert client.get("/api/models/man-de").status_code == 200
    assert client.get("/man-de/resolve/main/adapter_config.json").status_code == 200
    assert elsewhere.seen == []


@pytest.mark.parametrize(
    "path",
    ["/man-de/resolve/main/pytorch_model.bin", "/man-de/resolve/v9/adapter_config.json", "/api/models/man-de/tree/v9"],
)
def test_what_a_task_lacks_does_not_come_from_elsewhere(
    serve: Serve, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """There its name may be a stranger's, who would have a client load what they put beside our weights."""
    asked = []
    monkeypatch.setattr(Upstream, "answer", lambda self, request: asked.append(request))
    answer = serve(upstream=elsewhere.url).get(path)
    assert (answer.status_code, asked) == (404, [])


def test_a_path_is_passed_on_as_it_was_asked_for(serve: Serve, elsewhere: Elsewhere) -> None:
    client = serve(upstream=elsewhere.url)
    for path in ("a%3Fb%23c", "a%25b"):
        assert client.get(f"/base/model/resolve/main/{path}").status_code == 200, path
        assert elsewhere.seen[-1].scope["raw_path"].decode().rpartition("/")[2].upper() == path.upper()
    for path in ("%01", "%7f"):
        assert client.get(f"/base/model/resolve/main/{path}").status_code != 500


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/base/model/resolve/main/none", 404),
        ("/base/model/resolve/main/secret", 502),
        ("/base/model/resolve/main/loop", 502),
        ("/store", 404),
        ("/api/models/base/../../store", 404),
        ("/api/whoami", 404),
    ],
)
def test_what_is_not_passed_on(serve: Serve, elsewhere: Elsewhere, path: str, status: int) -> None:
    assert serve(upstream=elsewhere.url).get(path).status_code == status
    assert "/store" not in [request.url.path for request in elsewhere.seen]


def test_writing_is_not_passed_on(serve: Serve, elsewhere: Elsewhere) -> None:
    serve(upstream=elsewhere.url).post("/api/models/base/model/paths-info/main", json={"paths": []})
    assert elsewhere.seen == []


def test_an_upstream_that_does_not_answer(serve: Serve) -> None:
    answer = serve(upstream="http://127.0.0.1:9").get("/api/models/base/model")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
