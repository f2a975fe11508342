"""Every route with every kind of token, and where a server may listen without any."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from lorareg.cli import serve as serve_command
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token, revoke_token

Serve = Callable[..., TestClient]
Run = Callable[..., Any]

KINDS = ("none", "bad", "malformed", "expired", "revoked", "read", "write", "team-read", "team-write", "other-write")
VOID = {kind: 401 for kind in ("none", "bad", "malformed", "expired", "revoked")}
OPEN = {kind: 200 for kind in KINDS}
ANY = {**OPEN, **VOID}
WHOLE = {**ANY, **{kind: 403 for kind in ("team-read", "team-write", "other-write")}}
READS_TEAM = {**ANY, "other-write": 404}
WRITES_TEAM = {**ANY, "read": 403, "team-read": 403, "other-write": 403}

ROUTES: dict[tuple[str, str], tuple[dict[str, int], str, Any]] = {
    ("GET", "/healthz"): (OPEN, "/healthz", None),
    ("GET", "/metrics"): (WHOLE, "/metrics", None),
    ("GET", "/openapi.json"): (ANY, "/openapi.json", None),
    ("GET", "/"): (ANY, "/", None),
    ("GET", "/report"): (ANY, "/report", None),
    ("GET", "/static/style.css"): (ANY, "/static/style.css", None),
    ("GET", "/static/icon.svg"): (ANY, "/static/icon.svg", None),
    ("GET", "/tasks/T"): (READS_TEAM, "/tasks/team/man-nl", None),
    ("GET", "/api/models"): (ANY, "/api/models", None),
    ("GET", "/api/whoami-v2"): (ANY, "/api/whoami-v2", None),
    ("POST", "/api/validate-yaml"): (ANY, "/api/validate-yaml", {"content": ""}),
    ("POST", "/api/repos/create"): (WRITES_TEAM, "/api/repos/create", {"name": "new", "organization": "team"}),
    ("DELETE", "/api/repos/delete"): (WRITES_TEAM, "/api/repos/delete", {"name": "man-nl", "organization": "team"}),
}
TASK_ROUTES: dict[tuple[str, str], tuple[dict[str, int], str, Any]] = {
    ("GET", "/api/models/T"): (READS_TEAM, "", None),
    ("GET", "/api/models/T/revision/{revision:path}"): (READS_TEAM, "/revision/main", None),
    ("GET", "/api/models/T/tree/{revision}"): (READS_TEAM, "/tree/main", None),
    ("GET", "/api/models/T/tree/{revision}/{path:path}"): (READS_TEAM, "/tree/main/", None),
    ("POST", "/api/models/T/paths-info/{revision}"): (READS_TEAM, "/paths-info/main", {"paths": []}),
    ("GET", "/api/models/T/refs"): (READS_TEAM, "/refs", None),
    ("GET", "/api/models/T/commits/{revision}"): (READS_TEAM, "/commits/main", None),
    ("POST", "/api/models/T/preupload/{revision:path}"): (WRITES_TEAM, "/preupload/main", {"files": []}),
    ("POST", "/api/models/T/commit/{revision:path}"): (WRITES_TEAM, "/commit/main", {"key": "header", "value": {}}),
    ("POST", "/api/models/T/tag/{revision}"): (WRITES_TEAM, "/tag/main", {"tag": "fresh"}),
    ("DELETE", "/api/models/T/tag/{revision}"): (WRITES_TEAM, "/tag/stable", None),
    ("GET", "/T/resolve/{revision}/{path:path}"): (READS_TEAM, "/resolve/main/adapter_config.json", None),
}


def cases() -> list[tuple[str, str, dict[str, int], Any]]:
    found = [(method, url, expected, body) for (method, _), (expected, url, body) in ROUTES.items()]
    for (method, pattern), (expected, rest, body) in TASK_ROUTES.items():
        start = "/api/models/team/man-nl" if pattern.startswith("/api") else "/team/man-nl"
        found.append((method, start + rest, expected, body))
    return found


@pytest.mark.parametrize(("method", "url", "expected", "body"), cases(), ids=lambda value: str(value)[:40])
def test_route_by_token(serve: Serve, tokens: Any, method: str, url: str, expected: dict[str, int], body: Any) -> None:
    client = serve(anonymous=False)
    # Those who may not come first, so that what is deleted by one who may is there for them.
    for kind in sorted(KINDS, key=lambda kind: expected[kind] == 200):
        answer = client.request(method, url, json=body, headers=tokens.headers(kind))
        once_gone = url.endswith(("/repos/delete", "/tag/stable")) and answer.status_code == 404
        assert answer.status_code == expected[kind] or (once_gone and expected[kind] == 200), (kind, answer.text)
        if expected[kind] == 401:
            assert answer.headers["www-authenticate"].startswith("Basic")
        if expected[kind] in (401, 404):
            assert "man-nl@" not in answer.text


def test_no_route_is_left_out(serve: Serve) -> None:
    app: Any = serve().app
    there = set()
    for route in app.app.routes:
        assert isinstance(route, Route)
        pattern = re.sub(r"(\{namespace\}/)?\{(task|name)\}", "T", route.path)
        there |= {(method, pattern) for method in route.methods or () if method != "HEAD"}
    assert there == set(ROUTES) | set(TASK_ROUTES)


def test_lists_hold_no_other_namespace(serve: Serve, tokens: Any) -> None:
    client = serve(anonymous=False)
    page = client.get("/", headers=tokens.headers("team-read")).text
    assert "man-nl" in page
    assert "man-de" not in page
    assert "src-rust" not in client.get("/report", headers=tokens.headers("team-read")).text
    assert "src-rust" not in client.get("/?q=rust", headers=tokens.headers("team-read")).text
    named = client.get("/api/models", headers=tokens.headers("team-read")).json()
    assert [entry["id"] for entry in named] == ["team/man-nl"]


def test_a_token_may_be_a_password(serve: Serve, tokens: Any) -> None:
    client = serve(anonymous=False)
    text = base64.b64encode(f"anybody:{tokens.by_kind['team-read']}".encode()).decode()
    assert client.get("/api/whoami-v2", headers={"Authorization": f"Basic {text}"}).json()["name"] == "team-reader"
    for header in (
        b"Basic ???",
        b"Basic bm9jb2xvbg==",
        b"Basic \xe9",
        b"Digest x",
        b"Bearer",
        b"Bearer  ",
        b"Bearer \xe9",
    ):
        assert client.get("/api/whoami-v2", headers={"Authorization": header}).status_code == 401, header


def test_revoking_holds_from_the_next_request_on(serve: Serve, tokens: Any, home: Path) -> None:
    client = serve(anonymous=False)
    assert client.get("/api/models", headers=tokens.headers("read")).status_code == 200
    with Registry.open(home, create=False) as registry:
        revoke_token(registry, "reader")
    assert client.get("/api/models", headers=tokens.headers("read")).status_code == 401


def test_a_wrong_token_is_no_anonymous(serve: Serve, tokens: Any) -> None:
    client = serve(anonymous=True)
    assert client.get("/api/models").status_code == 200
    assert client.get("/api/models", headers=tokens.headers("bad")).status_code == 401
    assert client.post("/api/repos/create", json={"name": "x"}).status_code == 401


def test_a_token_may_be_called_anonymous(serve: Serve, home: Path) -> None:
    with Registry.open(home, create=False) as registry:
        headers = {"Authorization": f"Bearer {create_token(registry, 'anonymous', 'write', '*')[1]}"}
    assert serve().post("/api/repos/create", json={"name": "x"}, headers=headers).status_code == 200


def test_no_page_writes(serve: Serve, tokens: Any) -> None:
    """A browser that was given a token as a password would add it to what any page has it send."""
    client, told = serve(anonymous=False), base64.b64encode(f"x:{tokens.by_kind['write']}".encode()).decode()
    for origin in ("https://evil.example", "null"):
        headers = {"Authorization": f"Basic {told}", "Origin": origin}
        answer = client.request("DELETE", "/api/repos/delete", json={"name": "man-de"}, headers=headers)
        assert answer.status_code == 403
        assert "for programs" in answer.json()["error"]
    assert client.get("/api/models/man-de", headers=tokens.headers("read")).status_code == 200


@pytest.mark.parametrize("host", ["x/healthz?", "x/healthz#", "healthz", "x\\healthz"])
def test_what_is_open_is_told_from_the_path_alone(serve: Serve, host: str) -> None:
    """Frameworks put Host and path together into one URL, and a Host with a path in it once had its say."""
    assert serve(anonymous=False).get("/api/models", headers={"Host": host}).status_code == 401


def test_names_a_server_does_not_go_by(serve: Serve) -> None:
    client = serve(hosts=frozenset({"localhost", "::1"}))
    for host, status in (
        ("localhost", 200),
        ("localhost:80", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("", 400),
    ):
        assert client.get("/healthz", headers={"Host": host}).status_code == status, host


def test_beyond_this_machine_there_have_to_be_tokens(run: Run, home: Path) -> None:
    result = run("serve", "--host", "0.0.0.0", "--port", "0", "--home", home)
    assert result.exit_code == 61
    assert "none holds" in result.err
    assert "lorareg token create" in result.err
    result = run("serve", "--tokens", "--port", "0", "--home", home)
    assert result.exit_code == 61


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_what_this_machine_is(host: str, is_local: bool) -> None:
    assert serve_command._is_loopback(host) == is_local


def test_an_address_that_is_taken(run: Run, home: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "--port", str(taken.getsockname()[1]), "--home", home)
    assert result.exit_code == 61
    assert "cannot be had" in result.err


def test_a_home_that_is_none(run: Run, tmp_path: Path) -> None:
    assert run("serve", "--port", "0", "--home", tmp_path / "none").exit_code == 20
