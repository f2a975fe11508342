"""A server under load: latency beside plain static servers of the same files, a soak, and slow clients.

    python bench/serve.py ADAPTERS [--work DIR] [--requests N] [--soak SECONDS] [--clients N] [--out FILE.json]

ADAPTERS is a folder of them. They are ingested and compressed once, in --work. Cold is the first GET of a weights file,
which decodes it; warm is any later one. The static servers give the same decoded files: nginx where it is installed,
Starlette's StaticFiles under the same uvicorn, Python's http.server. All answer the same client, one request at a time
over one connection, in turns. The soak asks for random adapters from many clients at once, hashes every body, and reads
the server's memory every few seconds; meanwhile some clients read too slowly to be kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from results import Row, print_table

WEIGHTS = "adapter_model.safetensors"
STATIC_APP = """
import sys, uvicorn
from starlette.staticfiles import StaticFiles
uvicorn.run(StaticFiles(directory=sys.argv[1]), port=int(sys.argv[2]), log_level="critical", http="h11")
"""
NGINX = """daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; tcp_nopush on; types {{ }} default_type application/octet-stream;
client_body_temp_path {work}/nb; proxy_temp_path {work}/np; fastcgi_temp_path {work}/nf; uwsgi_temp_path {work}/nu;
scgi_temp_path {work}/ns; server {{ listen 127.0.0.1:{port}; root {root}; keepalive_requests 1000000; }} }}"""
PIECE = 1 << 16


@dataclass
class Server:
    """A process that serves, and how to ask it for a task's weights."""

    name: str
    port: int
    path: str  # with {task}
    process: subprocess.Popen[bytes]

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: a temporary folder")
    parser.add_argument("--requests", type=int, default=400, metavar="N", help="warm, of each server")
    parser.add_argument("--soak", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=200, metavar="N")
    parser.add_argument("--slow", type=int, default=8, metavar="N", help="clients that read 1 kB a second")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        digests = prepare(arguments.adapters, work)
        found: Row = {"latency": latencies(work, digests, arguments.requests)}
        if arguments.soak:
            found["soak"] = soaked(work, digests, arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def prepare(adapters: Path, work: Path) -> dict[str, str]:
    """A registry, its decoded files as plain ones, and the SHA-256 of each task's."""
    home, files = work / "home", work / "files"
    if not home.exists():
        lorareg("ingest", adapters, "--home", home)
        lorareg("compress", "--home", home)
    listed = json.loads(lorareg("list", "--home", home, "--json"))["adapters"]
    for entry in listed:
        if not (files / entry["name"]).exists():
            lorareg("materialize", entry["name"], "-o", files / entry["name"], "--home", home)
    return {e["name"]: hashlib.sha256((files / e["name"] / WEIGHTS).read_bytes()).hexdigest() for e in listed}


def latencies(work: Path, digests: dict[str, str], requests: int) -> list[Row]:
    rows, tasks = [], sorted(digests)
    shutil.rmtree(work / "cache", ignore_errors=True)
    with served(work, digests) as servers:
        ours = servers[0]
        cold = asked(ours, tasks, digests)
        rows.append(row("lorareg, cold", cold))
        rows.append(row("lorareg, HEAD", heads(ours, tasks * (requests // len(tasks) + 1))))
        warm: dict[str, list[tuple[float, float]]] = {server.name: [] for server in servers}
        for _ in range(requests // len(tasks) + 1):  # in turns, so that whatever else goes on meets all of them
            for server in servers:
                warm[server.name] += asked(server, tasks, digests)
        rows += [row(f"{name}, warm", times) for name, times in warm.items()]
    columns = ("server", "requests", "first byte p50", "p99", "last byte p50", "p99, ms")
    print_table(columns, [tuple(str(value) for value in one.values()) for one in rows])
    return rows


def asked(server: Server, tasks: list[str], digests: dict[str, str]) -> list[tuple[float, float]]:
    """Seconds to the first and to the last byte of each task's weights, over one connection."""
    times = []
    connection = HTTPConnection("127.0.0.1", server.port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for task in tasks:
        started = time.perf_counter()
        connection.request("GET", server.path.format(task=task))
        answer = connection.getresponse()
        first = answer.read(1)
        first_s = time.perf_counter() - started
        body = first + answer.read()
        last_s = time.perf_counter() - started
        assert answer.status == 200
        assert hashlib.sha256(body).hexdigest() == digests[task], (server.name, task)
        times.append((first_s, last_s))
    connection.close()
    return times


def heads(server: Server, tasks: list[str]) -> list[tuple[float, float]]:
    times = []
    connection = HTTPConnection("127.0.0.1", server.port)
    for task in tasks:
        started = time.perf_counter()
        connection.request("HEAD", server.path.format(task=task))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        elapsed_s = time.perf_counter() - started
        times.append((elapsed_s, elapsed_s))
    return times


def row(name: str, times: list[tuple[float, float]]) -> Row:
    first, last = (1000 * np.array([pair[index] for pair in times]) for index in (0, 1))
    named = {"server": name, "requests": len(times)}
    for label, values in (("first_byte", first), ("last_byte", last)):
        named[f"{label}_p50_ms"] = round(float(np.percentile(values, 50)), 2)
        named[f"{label}_p99_ms"] = round(float(np.percentile(values, 99)), 2)
    return named


def soaked(work: Path, digests: dict[str, str], arguments: object) -> Row:
    seconds, clients, slow = arguments.soak, arguments.clients, arguments.slow  # type: ignore[attr-defined]
    with served(work, digests, only_ours=True) as (ours,):
        found = asyncio.run(soak(ours, digests, seconds, clients, slow))
        with urlopen(f"http://127.0.0.1:{ours.port}/metrics") as answer:
            figures = answer.read().decode()
    found["decoded"] = next(
        line.split()[1] for line in figures.splitlines() if line.startswith("lorareg_decoded_misses")
    )
    print_table(("soak", "value"), [(name, str(value)) for name, value in found.items() if name != "memory_mb"])
    print(f"memory, MB, every 5 s: {' '.join(map(str, found['memory_mb']))}")
    return found


async def soak(ours: Server, digests: dict[str, str], seconds: float, clients: int, slow: int) -> Row:
    statuses: Counter[str] = Counter()
    memory: list[int] = []
    cut: list[float] = []
    until = time.monotonic() + seconds
    wrong = [0, 0]  # bodies, bytes

    async def client(seed: int) -> None:
        chosen = random.Random(seed)
        tasks = sorted(digests)
        while time.monotonic() < until:
            task = chosen.choice(tasks)
            try:
                status, digest, size = await fetched(ours, task, until + 60)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[str(status)] += 1
            wrong[1] += size
            if status == 200 and digest != digests[task]:
                wrong[0] += 1
            if status in (429, 503):
                await asyncio.sleep(1)

    async def sluggard(seed: int) -> None:
        """Reads 1 kB a second of a body, for as long as it is let."""
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", ours.port, limit=1024)
        writer.write(request_for(ours, sorted(digests)[seed % len(digests)]))
        with_bytes = True
        while with_bytes and time.monotonic() < until:
            with_bytes = bool(await reader.read(1024))
            await asyncio.sleep(1)
        if not with_bytes:
            cut.append(time.monotonic() - started)
        writer.close()

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(round(ours.memory_bytes() / 1e6))
            await asyncio.sleep(5)

    await asyncio.gather(watch(), *(client(n) for n in range(clients)), *(sluggard(n) for n in range(slow)))
    third = max(len(memory) // 3, 1)
    return {
        "seconds": seconds,
        "clients": clients,
        "slow_clients": slow,
        "slow_clients_cut_after_s": [round(value) for value in cut],
        "answers": dict(statuses),
        "wrong_bodies": wrong[0],
        "gigabytes": round(wrong[1] / 1e9, 2),
        "per_second": round(statuses["200"] / seconds, 1),
        "memory_mb_of_the_middle_third": round(float(np.mean(memory[third : 2 * third])), 1),
        "memory_mb_of_the_last_third": round(float(np.mean(memory[2 * third :])), 1),
        "memory_mb": memory,
    }


def request_for(server: Server, task: str) -> bytes:
    return f"GET {server.path.format(task=task)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


async def fetched(server: Server, task: str, until: float) -> tuple[int, str, int]:
    """Status, SHA-256 and size of one body, over a connection of its own."""
    async with asyncio.timeout(max(until - time.monotonic(), 1)):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
        try:
            writer.write(request_for(server, task))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            left = next(int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:"))
            digest, size = hashlib.sha256(), left
            while left:
                piece = await reader.read(1 << 18)
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                digest.update(piece)
                left -= len(piece)
            return int(head.split()[1]), digest.hexdigest(), size
        finally:
            writer.close()


@contextmanager
def served(work: Path, digests: dict[str, str], only_ours: bool = False) -> Iterator[list[Server]]:
    """The servers, each in a process of its own, ready to answer."""
    servers = []
    python, files = sys.executable, work / "files"

    def start(name: str, path: str, command: list[object], port: int) -> None:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        servers.append(Server(name, port, path, process))

    try:
        port = free_port()
        ours = [
            python,
            "-m",
            "lorareg.cli",
            "serve",
            "--home",
            work / "home",
            "--cache",
            work / "cache",
            "--port",
            port,
        ]
        start("lorareg", f"/{{task}}/resolve/main/{WEIGHTS}", ours, port)
        if not only_ours:
            port = free_port()
            start("StaticFiles", f"/{{task}}/{WEIGHTS}", [python, "-c", STATIC_APP, files, port], port)
            port = free_port()
            builtin = [python, "-m", "http.server", port, "--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "-d", files]
            start("http.server", f"/{{task}}/{WEIGHTS}", builtin, port)
            nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
            if nginx:
                port = free_port()
                config = work / "nginx.conf"
                config.write_text(NGINX.format(work=work, port=port, root=files))
                start("nginx", f"/{{task}}/{WEIGHTS}", [nginx, "-c", config], port)
            else:
                print("nginx is not installed: no row for it", file=sys.stderr)
        for server in servers:
            wait_for(server.port)
        yield servers
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        for server in servers:
            server.process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing listens at {port}")


def lorareg(*words: object) -> str:
    command = [sys.executable, "-m", "lorareg.cli", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
