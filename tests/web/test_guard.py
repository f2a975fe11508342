"""Limits, slow clients, hostile paths: against a server in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from lorareg.cli.web import guard as guard_module
from lorareg.cli.web import hub
from lorareg.cli.web.guard import Guard, Limits
from lorareg.cli.web.replies import answer_to
from lorareg.registry.errors import IntegrityError, RegistryError

Serve = Callable[..., TestClient]
Live = Callable[..., Any]
RESOLVE = "/man-de/resolve/main/adapter_model.safetensors"


def exchange(url: str, data: bytes, wait_s: float = 10.0) -> bytes:
    """What a server answers to these bytes until it closes the connection."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 0), wait_s) as connection:
        connection.sendall(data)
        answer = b""
        while True:
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                return answer
            if not piece:
                return answer
            answer += piece


def raw(method: str, target: str, headers: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode("latin-1")


TRAVERSALS = [
    f"{start}{way}"
    for start in (
        "/man-de/resolve/main/",
        "/man-de/resolve/",
        "/",
        "/api/models/",
        "/api/models/man-de/tree/main/",
        "/static/",
        "/tasks/",
    )
    for way in (
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
        "..\\..\\..\\etc\\passwd",
        "..%5c..%5cetc%5cpasswd",
        "..;/..;/etc/passwd",
        ";/../../etc/passwd",
        "%00",
        "adapter_config.json%00.txt",
        "adapter_config.json%20",
        "/etc/passwd",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "file:///etc/passwd",
        "....//....//etc/passwd",
        "%c0%ae%c0%ae/etc/passwd",
        "%uff0e%uff0e/etc/passwd",
        "registry.sqlite",
        "../home/registry.sqlite",
        "blobs/",
        "\u00ff",
        "%ff%fe",
        "." * 3000,
    )
]


@pytest.mark.slow
def test_no_path_leads_out(live: Live) -> None:
    url = live().url
    for target in TRAVERSALS:
        for method in ("GET", "HEAD"):
            answer = exchange(url, raw(method, target))
            status = int(answer.split()[1])
            assert status in (400, 404), (method, target, answer[:200])
            assert b"root:" not in answer
            assert b"SQLite" not in answer
            assert b"Traceback" not in answer


@pytest.mark.slow
def test_what_is_no_http_is_cut_off(live: Live) -> None:
    url = live("--most-upload", "1MB").url
    assert exchange(url, b"\x16\x03\x01\x02\x00hello").startswith(b"HTTP/1.1 400")
    assert exchange(url, b"GET / HTTP/one\r\n\r\n").startswith(b"HTTP/1.1 400")
    long_header = raw("GET", "/healthz", f"X-Long: {'a' * 100_000}\r\n")
    assert exchange(url, long_header).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    lying = raw("POST", "/api/validate-yaml", "Content-Length: 99999999999\r\n")
    assert exchange(url, lying).startswith(b"HTTP/1.1 413")
    assert exchange(url, raw("GET", "/healthz")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("limits", "status"), [(Limits(requests=1), 503), (Limits(requests_per_client=1), 429)])
def test_the_server_and_each_client_have_their_share(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, limits: Limits, status: int
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(*args: Any) -> bytes:
        entered.set()
        leave.wait(20)
        return b""

    monkeypatch.setattr(hub, "restore_weights", hold)
    client = serve(limits=limits)
    held = threading.Thread(target=client.get, args=(RESOLVE,))
    held.start()
    assert entered.wait(20)
    refused = client.get("/api/models")
    leave.set()
    held.join()
    assert refused.status_code == status
    assert int(refused.headers["retry-after"]) > 0
    assert client.get("/api/models").status_code == 200


async def ask(app: Any, messages: list[Any], slow_send: float = 0, slow_receive: float = 0) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(slow_receive)
        if messages:
            return messages.pop(0)
        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(slow_send)
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/validate-yaml", "raw_path": b"/", "query_string": b"",
        "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def guard_of(serve: Serve, **limits: Any) -> Guard:
    app = serve(limits=Limits(**limits)).app
    assert isinstance(app, Guard)
    return app


def test_a_body_that_does_not_come(serve: Serve) -> None:
    guard = guard_of(serve, patience_s=0.1)
    sent = asyncio.run(ask(guard, [{"type": "http.request", "body": b"{", "more_body": True}]))
    assert sent[0]["status"] == 408


def test_a_body_that_comes_a_byte_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in good time, and all of them would hold a place for an upload for days."""
    monkeypatch.setattr(guard_module, "SLOWEST_BYTES_PER_S", 1 << 20)
    pieces = [{"type": "http.request", "body": b" ", "more_body": True}] * 50
    pieces.append({"type": "http.request", "body": b"{}"})
    sent = asyncio.run(ask(guard_of(serve, patience_s=0.3), pieces, slow_receive=0.05))
    assert sent[0]["status"] == 408


def test_a_client_that_does_not_read(serve: Serve) -> None:
    guard = guard_of(serve, patience_s=0.1)
    sent = asyncio.run(ask(guard, [{"type": "http.request", "body": b"{}"}], slow_send=5))
    assert [message["type"] for message in sent] == ["http.response.start"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RegistryError(home="h", reason="busy", remedy=""), 503, "Busy"),
        (OSError(28, "No space left on device"), 503, "Busy"),
        (TimeoutError(), 408, "TooSlow"),
        (IntegrityError(what="x", expected="y", found="z", remedy=""), 500, "Damaged"),
        (ZeroDivisionError("secret"), 500, "ServerError"),
    ],
)
def test_what_errors_tell(error: Exception, status: int, code: str) -> None:
    answer = answer_to(error, "id")
    assert (answer.status_code, answer.headers["x-error-code"]) == (status, code)
    assert b"secret" not in answer.body


def test_an_answer_is_kept_by_nobody_on_the_way(serve: Serve) -> None:
    """A proxy's cache that knows nothing of tokens would give one client's list, or 404, to the next."""
    client = serve()
    for path in ("/api/models", "/api/models/man-de", "/api/models/nobody", "/nothing", "/healthz"):
        assert client.get(path).headers["cache-control"] == "no-store", path
    assert "immutable" in client.get("/static/style.css").headers["cache-control"]


def test_a_client_that_goes_away_is_no_error_of_the_server(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(ask(guard_of(serve), [{"type": "http.disconnect"}]))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
