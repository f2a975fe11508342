"""Running the application on a socket: uvicorn, with limits on headers and on how long a connection may take."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorareg.cli.web.guard import CUT_OFF, SLOWEST_BYTES_PER_S
from lorareg.cli.web.observe import JsonLines
from lorareg.registry.errors import ServeError

BACKLOG = 2048
SHUTDOWN_S = 30
HEADERS_WITHIN_S = 20.0


class PatientlyH11(H11Protocol):
    """HTTP/1.1 by h11, which ends a connection whose next request does not come in time.

    uvicorn itself waits for ever for headers that began, for the rest of a body that was refused, and, having closed
    a connection, for a client that does not read to take what is left of an answer. So what is too slow is aborted.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, CUT_OFF: transport.abort}
        self._expect_request(HEADERS_WITHIN_S)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        unsent_s = self.transport.get_write_buffer_size() / SLOWEST_BYTES_PER_S
        self._expect_request(self.timeout_keep_alive + HEADERS_WITHIN_S + unsent_s)
        super().on_response_complete()

    def _expect_request(self, within_s: float) -> None:
        """Give up on the client unless another request than this one is under way by then."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(within_s, self._give_up_after, self.cycle)

    def _give_up_after(self, cycle: object) -> None:
        if self.cycle is cycle:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ServeError: the address cannot be had.
    """
    listening = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without, a small body waits 40 ms for the client's word that the head has come.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        reason = f"{host} port {port} cannot be had: {error.strerror or error}"
        raise ServeError(reason=reason, remedy="Choose another with --host and --port.") from error
    return listening


def run(app: ASGIApp, listening: socket.socket, *, header_bytes: int, idle_s: int) -> None:
    """Serve until the process is told to stop; requests under way have `SHUTDOWN_S` to end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("lorareg.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "lorareg.serve" else logging.WARNING)
    config = uvicorn.Config(
        app,
        http=PatientlyH11,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=header_bytes,
        timeout_keep_alive=idle_s,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    with suppress(KeyboardInterrupt):  # how uvicorn ends on Ctrl-C
        uvicorn.Server(config).run(sockets=[listening])
