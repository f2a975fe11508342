"""Running the application on a socket: uvicorn, with a limit on headers and on how long they may take."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorareg.cli.web.observe import JsonLines
from lorareg.registry.errors import ServeError

BACKLOG = 2048
SHUTDOWN_S = 30
HEADERS_WITHIN_S = 20.0


class PatientlyH11(H11Protocol):
    """HTTP/1.1 by h11, which closes a connection whose first request does not come in time.

    uvicorn itself waits for ever for the headers of a request that began.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADERS_WITHIN_S, self._expect_request)

    def _expect_request(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


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
