"""A registry with three coded tasks, of which each test serves a copy."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the extra `serve` is not installed")

import uvicorn
from starlette.testclient import TestClient

from lorareg.cli.web import listen
from lorareg.cli.web.app import Settings, make_app
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token, revoke_token

TASKS = {"man-de": "man-de", "team/man-nl": "man-nl", "other/src-rust": "src-rust"}


@pytest.fixture(scope="session")
def coded_home(tmp_path_factory: pytest.TempPathFactory, sample_adapters: Path) -> Path:
    home = tmp_path_factory.mktemp("served") / "home"
    with Registry.open(home, create=True) as registry:
        for name, sample in TASKS.items():
            registry.ingest(read_folder(sample_adapters / sample), name=name)
        compress(registry, (), CompressOptions(arch="mean"), Silent())
        registry.tag(registry.adapter("team/man-nl"), "stable")
    return home


@pytest.fixture
def home(coded_home: Path, tmp_path: Path) -> Path:
    shutil.copytree(coded_home, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> Settings:
    return Settings(home=home, cache=tmp_path / "cache")


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    """A client of a server with these settings: `serve(anonymous=False)`."""
    with ExitStack() as stack:

        def start(**changed: Any) -> TestClient:
            return stack.enter_context(TestClient(make_app(replace(settings, **changed)), base_url="http://localhost"))

        yield start


@dataclass(frozen=True)
class Tokens:
    """Tokens of every kind, by what is said of them."""

    by_kind: dict[str, str]

    def headers(self, kind: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.by_kind[kind]}"} if kind in self.by_kind else {}


@pytest.fixture
def tokens(home: Path) -> Tokens:
    with Registry.open(home, create=False) as registry:
        made = {
            "read": create_token(registry, "reader", "read", "*")[1],
            "write": create_token(registry, "writer", "write", "*")[1],
            "team-read": create_token(registry, "team-reader", "read", "team")[1],
            "team-write": create_token(registry, "team-writer", "write", "team")[1],
            "other-write": create_token(registry, "other-writer", "write", "other")[1],
            "revoked": create_token(registry, "former", "write", "*")[1],
            "expired": create_token(registry, "short", "write", "*", days=1)[1],
        }
        revoke_token(registry, "former")
        with registry.writing() as session:
            from lorareg.registry.schema import TokenRow

            row = session.query(TokenRow).filter_by(name="short").one()
            row.expires_at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="microseconds")
    return Tokens(made | {"bad": f"lrg_1_{'A' * 43}", "malformed": "hf_something"})


@dataclass(frozen=True)
class OnSocket:
    """A server in a thread of this process, whose connections can be counted."""

    url: str
    server: uvicorn.Server

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def on_socket() -> Iterator[Callable[..., OnSocket]]:
    """Serve an application on a socket: `on_socket(app, timeout_keep_alive=1)`."""
    with ExitStack() as stack:

        def start(app: Any, **config: Any) -> OnSocket:
            listening = listen.listen("127.0.0.1", 0)
            server = uvicorn.Server(uvicorn.Config(app, http=listen.PatientlyH11, log_config=None, **config))
            thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            return OnSocket(f"http://127.0.0.1:{listening.getsockname()[1]}", server)

        yield start


@dataclass(frozen=True)
class Live:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]


@pytest.fixture
def live(home: Path, tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start `lorareg serve` with options; it is stopped when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, at: Path = home) -> Live:
        cache = tmp_path / f"cache-{len(started)}"
        command = [
            sys.executable,
            "-m",
            "lorareg.cli",
            "serve",
            "--home",
            str(at),
            "--port",
            "0",
            "--cache",
            str(cache),
        ]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=os.environ.copy())
        started.append(process)
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.stderr.read()
        log = (tmp_path / f"log-{len(started)}").open("w")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)  # a full pipe would stop the server
        log.close()
        started.append(drain)  # type: ignore[arg-type]
        return Live(found[0], process)

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(timeout=30)
        if process.stderr:
            process.stderr.close()
