"""A proxy before a PostgreSQL server that goes wrong when it is told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

FAULTS = ("reset", "half a message", "lost answer", "stall", "COMMIT lost", "COMMIT's answer lost")
STALL_S = 0.3
CHUNK_BYTES = 1 << 16


@dataclass
class Faults:
    """What the proxy does with what clients are going to send."""

    waiting: tuple[str, int] | None = None  # a fault, and how much passes before it
    happened: list[str] = field(default_factory=list)
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, sent: bytes) -> str:
        with self.lock:
            self.seen += 1
            if self.waiting is None:
                return ""
            fault, left = self.waiting
            if fault.startswith("COMMIT") and b"COMMIT" not in sent:
                return ""
            if left > 0:
                self.waiting = (fault, left - 1)
                return ""
            self.waiting = None
            self.happened.append(fault)
            return fault


@contextmanager
def proxy(url: str) -> Iterator[tuple[str, Faults]]:
    """The URL of the same database by way of a proxy, and what goes wrong in it."""
    parts = urlsplit(url)
    behind = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
    faults, stopping = Faults(), threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.settimeout(0.05)

        def listen() -> None:
            while not stopping.is_set():
                with suppress(TimeoutError):
                    client, _ = listening.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(behind)
                    _Passage(client, server, faults).start()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            port = listening.getsockname()[1]
            yield f"postgresql://postgres@127.0.0.1:{port}{parts.path}?sslmode=disable&gssencmode=disable", faults
        finally:
            stopping.set()
            thread.join()


class _Passage:
    """One connection, both ways."""

    def __init__(self, client: socket.socket, server: socket.socket, faults: Faults) -> None:
        self.client, self.server, self.faults = client, server, faults
        self.swallows = False
        client.settimeout(None)

    def start(self) -> None:
        for pump in (self._send, self._receive):
            threading.Thread(target=pump, daemon=True).start()

    def _send(self) -> None:
        with suppress(OSError):
            while sent := self.client.recv(CHUNK_BYTES):
                fault = self.faults.take(sent)
                if fault in ("reset", "COMMIT lost"):
                    break
                if fault == "half a message":
                    self.server.sendall(sent[: len(sent) // 2])
                    break
                if fault == "stall":
                    time.sleep(STALL_S)
                if fault.endswith("lost answer") or fault.endswith("answer lost"):
                    self.swallows = True
                self.server.sendall(sent)
        if not self.swallows:
            self._cut()

    def _receive(self) -> None:
        with suppress(OSError):
            while (answer := self.server.recv(CHUNK_BYTES)) and not self.swallows:
                self.client.sendall(answer)
        self._cut()

    def _cut(self) -> None:
        """As a network does that goes away: nobody is told politely."""
        with suppress(OSError):
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
