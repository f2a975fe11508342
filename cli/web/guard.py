"""What every request passes before it is answered: room, time, size, and who asks. One ASGI layer around the routes.

    too many at once            503, or 429 where one client has its share already; Retry-After
    a head or body too large    431, 413
    a slow client               is cut off: a body may keep us waiting `patience_s`, and a second for 8 KiB of it;
                                each piece that is sent has as much
    no token where one is due   401

Whatever goes wrong behind it becomes an answer here, or, where the answer had begun, the end of the connection. An
answer that does not say so itself is not to be kept by anybody on the way: what it holds depends on who asks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorareg.cli.web.access import ANONYMOUS, Grant, grant_of
from lorareg.cli.web.observe import Figures
from lorareg.cli.web.readers import Readers
from lorareg.cli.web.replies import RefusedError, answer_to, bad_request, busy

OPEN_PATHS = ("/healthz",)
SLOWEST_BYTES_PER_S = 8 << 10
CUT_OFF = "cut_off"
"""Where a request's state has what ends its connection at once, unsent bytes and all."""

log = logging.getLogger("lorareg.serve")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on."""

    requests: int = 512  # at once
    requests_per_client: int = 256  # at once, by token, or by address where there is none
    header_bytes: int = 32 << 10  # with the path
    body_bytes: int = 1 << 30
    patience_s: float = 30.0
    uploads: int = 2  # at once


class Guard:
    """The layer around the routes. `hosts` are the names that a request may be for; None takes any."""

    def __init__(
        self,
        app: ASGIApp,
        readers: Readers,
        figures: Figures,
        limits: Limits,
        *,
        anonymous: bool,
        hosts: frozenset[str] | None,
    ) -> None:
        self.app, self.readers, self.figures, self.limits = app, readers, figures, limits
        self.anonymous, self.hosts = anonymous, hosts
        self._under_way = 0
        self._by_client: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.limits)
        self._under_way += 1
        self.figures.under_way.inc()
        client = ""
        try:
            if self._under_way > self.limits.requests:
                raise busy(503, "The server is busy.")
            connection = HTTPConnection(scope)
            self._expect_host(connection)
            exchange.expect_size(connection)
            grant = await self._grant(connection)
            exchange.who = grant.who
            client = grant.who if grant is not ANONYMOUS else str(scope["client"] and scope["client"][0])
            self._by_client[client] += 1
            if self._by_client[client] > self.limits.requests_per_client:
                raise busy(429, "This client has as many requests under way as it may.")
            scope.setdefault("state", {}).update(grant=grant, request_id=exchange.id)
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:  # the one handler of a request
            await self._failed(exchange, error)
        finally:
            self._under_way -= 1
            self.figures.under_way.dec()
            if client:
                self._by_client[client] -= 1
                if not self._by_client[client]:
                    del self._by_client[client]
            self._told(exchange)

    async def _grant(self, connection: HTTPConnection) -> Grant:
        if connection.scope["path"] in OPEN_PATHS:  # never `url.path`: a Host header has its say in that
            return ANONYMOUS
        return await grant_of(connection, self.readers, anonymous=self.anonymous)

    def _expect_host(self, connection: HTTPConnection) -> None:
        """A page elsewhere must not read this server through a name of its own that leads here (DNS rebinding)."""
        host = connection.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.hosts is not None and name.strip("[]").lower() not in self.hosts:
            raise bad_request("This server does not go by that name; --allow-host NAME lets it.")

    async def _failed(self, exchange: _Exchange, error: Exception) -> None:
        if not exchange.status:
            try:
                await answer_to(error, exchange.id)(exchange.scope, exchange.receive, exchange.send)
            except Exception as another:  # of the sending
                error = another
        if not exchange.is_sent:  # the answer ends here, and the connection with it
            log.warning("cut off", extra={"told": {"id": exchange.id, "why": type(error).__name__}})
            exchange.scope.get("state", {}).get(CUT_OFF, lambda: None)()

    def _told(self, exchange: _Exchange) -> None:
        elapsed_s, route = time.perf_counter() - exchange.started_s, exchange.route
        method = exchange.scope["method"] if exchange.scope["method"] in _METHODS else "other"
        self.figures.requests.labels(method, route, str(exchange.status)).inc()
        self.figures.seconds.labels(route).observe(elapsed_s)
        self.figures.sent.inc(exchange.sent_bytes)
        told = {
            "id": exchange.id,
            "method": method,
            "path": exchange.scope["path"][:500],
            "status": exchange.status,
            "bytes": exchange.sent_bytes,
            "elapsed_s": round(elapsed_s, 4),
            "who": exchange.who,
            "client": exchange.scope["client"] and exchange.scope["client"][0],
        }
        log.info("request", extra={"told": told})


_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})


class _Exchange:
    """One request and its answer: pieces timed and counted as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self.id, self.who = secrets.token_hex(6), "-"
        self.started_s = time.perf_counter()
        self.status = self.sent_bytes = self._received_bytes = 0
        self.is_sent = self._whole = False
        self._waited_s = 0.0  # for the body

    @property
    def route(self) -> str:
        """The handler's name, one of a few."""
        return getattr(self.scope.get("endpoint"), "__name__", "none")

    def expect_size(self, connection: HTTPConnection) -> None:
        """What headers say is no more than is taken on.

        Raises:
            RefusedError: 431 or 413.
        """
        head_bytes = len(self.scope["path"]) + len(self.scope["query_string"])
        head_bytes += sum(len(name) + len(value) for name, value in self.scope["headers"])
        if head_bytes > self._limits.header_bytes:
            raise RefusedError(431, "TooLarge", "The headers are too large.", {"Connection": "close"})
        length = connection.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:18]) > self._limits.body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._whole:  # what comes now is the client's going away
            return await self._receive()
        asked_s = time.perf_counter()
        left_s = self._limits.patience_s + self._received_bytes / SLOWEST_BYTES_PER_S - self._waited_s
        async with asyncio.timeout(left_s):
            message = await self._receive()
        self._waited_s += time.perf_counter() - asked_s
        self._whole = not message.get("more_body", False)
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._limits.body_bytes:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            said = {name for name, _ in message["headers"]}
            ours = [(name, value) for name, value in _HEADERS if name not in said]
            message = {**message, "headers": [*message["headers"], *ours, (b"x-request-id", self.id.encode())]}
        size = len(message.get("body", b""))
        self.sent_bytes += size
        # Smaller pieces would be cut off more evenly, and cost a warm answer's p99 the 40 ms of a delayed ACK.
        async with asyncio.timeout(self._limits.patience_s + size / SLOWEST_BYTES_PER_S):
            await self._send(message)
        self.is_sent = message["type"] == "http.response.body" and not message.get("more_body", False)

    def _too_large(self) -> RefusedError:
        most = self._limits.body_bytes
        return RefusedError(413, "TooLarge", f"A request may have {most} bytes.", {"Connection": "close"})


_HEADERS: list[tuple[Any, Any]] = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
