"""Connections that say little, or take little: against a server on a socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from lorareg.cli.web import guard, hub, listen
from lorareg.cli.web.app import Settings, make_app
from lorareg.cli.web.decoded import DecodedFiles
from lorareg.cli.web.guard import Limits

OnSocket = Callable[..., Any]
LARGE = bytes(64 << 20)  # more than all buffers between two sockets
SMALL_BUFFER = 4096
ASK = b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEADERS_WITHIN_S", 0.5)
    for module in (guard, listen):
        monkeypatch.setattr(module, "SLOWEST_BYTES_PER_S", 1 << 30)


@pytest.fixture
def served(on_socket: OnSocket, settings: Settings) -> Any:
    return on_socket(make_app(replace(settings, cache_bytes=0, limits=Limits(patience_s=0.5))), timeout_keep_alive=1)


def connected(url: str) -> socket.socket:
    place = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.settimeout(10)
    connection.connect((place.hostname, place.port))
    return connection


def until(condition: Callable[[], bool], within_s: float = 8.0) -> bool:
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_client_that_does_not_read_is_cut_off(
    served: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds neither its file, nor a place among the requests, nor the connection."""
    monkeypatch.setattr(hub, "restore_weights", lambda *_: LARGE)
    decoded, released = settings.cache / "decoded", []
    real = DecodedFiles.release
    monkeypatch.setattr(DecodedFiles, "release", lambda *given: (real(*given), released.append(given[1])))
    with connected(served.url) as slow, connected(served.url) as quick:
        slow.sendall(ASK % (b"/man-de/resolve/main/adapter_model.safetensors", b""))
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert len(list(decoded.iterdir())) == 2  # the file and the lock
        quick.sendall(ASK % (b"/healthz", b""))
        assert quick.recv(12) == b"HTTP/1.1 200"
        quick.close()
        assert until(lambda: served.connections == 0)
        assert len(released) == 1
        assert [path.name for path in decoded.iterdir()] == ["lock"]


def test_the_end_of_an_answer_has_to_be_taken(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece is written whole before anybody waits: the request is done, and its bytes are not."""
    monkeypatch.setattr(hub.FileResponse, "chunk_size", len(LARGE) + 1, raising=False)
    monkeypatch.setattr(hub._Leased, "chunk_size", len(LARGE) + 1, raising=False)
    monkeypatch.setattr(hub, "restore_weights", lambda *_: LARGE)
    with connected(served.url) as slow:
        slow.sendall(ASK % (b"/man-de/resolve/main/adapter_model.safetensors", b""))
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert until(lambda: served.connections == 0)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: loc",
        ASK % (b"/healthz", b"") + b"GET /heal",
        ASK.replace(b"GET", b"POST") % (b"/api/repos/create", b"Content-Length: 1000\r\n"),
        ASK.replace(b"GET", b"POST") % (b"/nowhere", b"Transfer-Encoding: chunked\r\n"),
    ],
    ids=["nothing", "first", "second", "refused-body", "refused-chunks"],
)
def test_what_trickles_in_holds_no_connection(served: Any, first: bytes) -> None:
    """Headers, or a body that was refused unread, a byte at a time: each byte is no reason to wait for the next."""
    with connected(served.url) as slow:
        slow.sendall(first)
        trickle = b"1\r\nx\r\n" if b"chunked" in first else b"x"

        def is_gone() -> bool:
            try:
                slow.send(trickle if first else b"")
            except OSError:
                return True
            time.sleep(0.1)
            return bool(served.connections == 0)

        assert until(lambda: served.connections == 1)
        assert until(is_gone)
        assert until(lambda: served.connections == 0, 1)


def test_a_connection_goes_on_while_it_asks(served: Any) -> None:
    with connected(served.url) as client:
        for _ in range(8):  # longer than headers may take
            client.sendall(ASK % (b"/healthz", b""))
            answer = b""
            while b'{"status":"ok"}' not in answer:
                answer += client.recv(4096)
            time.sleep(0.1)
        assert served.connections == 1


def test_a_small_answer_does_not_wait_for_its_head_to_be_heard() -> None:
    with listen.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
