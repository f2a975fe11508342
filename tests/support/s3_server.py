"""A real server of the S3 protocol on loopback (moto's), and a proxy before it that goes wrong when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("reset", "500", "503", "409", "412", "lost answer", "stall", "late answer", "wrong bytes", "short body")
STALL_S = 3.0


@dataclass
class Faults:
    """What the proxy does with the requests to come: a fault for each, then nothing more."""

    waiting: list[tuple[str, str]] = field(default_factory=list)  # method, fault
    happened: list[tuple[str, str]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)  # method, path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> str:
        with self.lock:
            self.seen.append((method, path))
            for number, (wanted, fault) in enumerate(self.waiting):
                if wanted == method:
                    del self.waiting[number]
                    self.happened.append((method, fault))
                    return fault
        return ""


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of a server with a bucket named `bucket`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        connection = HTTPConnection(host, port)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        connection.close()
        yield host, port
    finally:
        server.stop()


@contextmanager
def proxy(host: str, port: int) -> Iterator[tuple[str, Faults]]:
    """The URL of a proxy to that server, and what goes wrong in it."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = faults.take(self.command, self.path)
            if fault == "reset":
                self.connection.close()
                self.close_connection = True
                return
            if fault == "stall":
                time.sleep(STALL_S)
                self.close_connection = True
                return
            if fault in ("500", "503", "409", "412"):
                said = b"<Error><Code>InternalError</Code></Error>"
                self.send_response(int(fault))
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
                return
            connection = HTTPConnection(host, port)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            try:
                found = connection.getresponse()
                data = found.read()
            except HTTPException:
                self.close_connection = True
                return
            finally:
                connection.close()
            if fault == "late answer":
                time.sleep(STALL_S)
            if fault in ("lost answer", "late answer"):
                self.connection.close()
                self.close_connection = True
                return
            if fault == "wrong bytes" and data:
                data = bytes([data[0] ^ 1]) + data[1:]
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            length = found.getheader("content-length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault == "short body":
                self.wfile.write(data[: len(data) // 2])
                self.connection.close()
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
