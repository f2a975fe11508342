"""Engines brought to serve adapters: on stand-ins that check requests as the engines' own source does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorareg.compress.serving import sync as sync_module
from lorareg.compress.serving.engines import ENGINES
from lorareg.compress.serving.folders import Served, serve
from lorareg.compress.serving.sync import ENDPOINTS, EngineClient, sync
from lorareg.registry.errors import EngineError, EngineRefusedError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

STUBS = {"vllm": "StubVllm", "sglang": "StubSglang"}
SECRET = "sk-never-printed"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(params=sorted(STUBS))
def engine(request: pytest.FixtureRequest, engines: ModuleType) -> Iterator[Any]:
    """Each engine, listening; `engine.client()` asks it."""
    stub = getattr(engines, STUBS[request.param])()
    stub.client = lambda **options: EngineClient(request.param, stub.url, **options)
    with engines.running(stub):
        yield stub


@pytest.fixture
def folder(registry: Registry, make_adapter: Callable[..., Path], home: Path, tmp_path: Path) -> dict[str, Served]:
    """The folders of an adapter's two versions, by version, for engines of any kind."""
    for seed in (1, 2):
        registry.ingest(read_folder(make_adapter(f"v{seed}", seed=seed)), name="task")
    with Reader(home) as reader:
        return {v: serve(reader, reader.adapter(f"task@{v}"), "sglang", tmp_path / "into") for v in "12"}


def actions(done: list[Any]) -> dict[str, str]:
    return {item.name: item.action for item in done}


def test_each_engine_that_can_be_asked_has_a_profile() -> None:
    assert set(ENDPOINTS) <= set(ENGINES)


# -- what is loaded ------------------------------------------------------------------------------


def test_it_loads_leaves_alone_replaces_and_unloads(engine: Any, folder: dict[str, Served]) -> None:
    old, new = folder["1"], folder["2"]
    assert actions(sync(engine.client(), {"a": old, "b": old})) == {"a": "loaded", "b": "loaded"}
    assert engine.adapters == {"a": str(old.path), "b": str(old.path)}
    engine.asked.clear()
    assert actions(sync(engine.client(), {"a": old, "b": old})) == {"a": "unchanged", "b": "unchanged"}
    assert engine.asked == []
    assert actions(sync(engine.client(), {"b": new})) == {"b": "replaced"}
    assert engine.adapters == {"a": str(old.path), "b": str(new.path)}
    assert actions(sync(engine.client(), {"b": new}, unload_others=True)) == {"a": "unloaded", "b": "unchanged"}
    assert engine.adapters == {"b": str(new.path)}


def test_vllm_replaces_in_place(engines: ModuleType, folder: dict[str, Served]) -> None:
    with engines.running(engines.StubVllm()) as engine:
        engine.adapters["a"] = "/elsewhere"
        sync(EngineClient("vllm", engine.url), {"a": folder["1"]})
        path = str(folder["1"].path)
        assert engine.asked == [("load", {"lora_name": "a", "lora_path": path, "load_inplace": True})]


def test_a_vllm_that_cannot_gets_it_unloaded_first(engines: ModuleType, folder: dict[str, Served]) -> None:
    with engines.running(engines.StubVllm()) as engine:
        engine.knows_in_place = False
        engine.adapters["a"] = "/elsewhere"
        assert actions(sync(EngineClient("vllm", engine.url), {"a": folder["1"]})) == {"a": "replaced"}
        assert [what for what, _ in engine.asked] == ["load", "unload", "load"]
        assert engine.adapters == {"a": str(folder["1"].path)}


def test_what_is_refused_does_not_stop_the_others(engine: Any, folder: dict[str, Served]) -> None:
    engine.broken.add(str(folder["1"].path))
    done = sync(engine.client(), {"a": folder["1"], "b": folder["2"]})
    assert actions(done) == {"a": "refused", "b": "loaded"}
    assert "--into" in done[0].reason or "--max-lora-rank" in done[0].reason


def test_the_one_before_stays_where_the_new_one_is_refused(engine: Any, folder: dict[str, Served]) -> None:
    sync(engine.client(), {"a": folder["1"]})
    engine.broken.add(str(folder["2"].path))
    (done,) = sync(engine.client(), {"a": folder["2"]})
    assert done.action == "refused"
    assert engine.adapters == {"a": str(folder["1"].path)}


def test_it_says_when_the_one_before_is_gone(engines: ModuleType, folder: dict[str, Served]) -> None:
    with engines.running(engines.StubSglang()) as engine:
        engine.adapters["a"] = str(folder["1"].path)
        engine.broken |= {str(served.path) for served in folder.values()}
        (done,) = sync(EngineClient("sglang", engine.url), {"a": folder["2"]})
        assert (done.action, engine.adapters) == ("refused", {})
        assert "could not be loaded again either" in done.reason


@pytest.mark.parametrize(("requests", "action"), [(2, "replaced"), (1000, "refused")])
def test_requests_that_come_between_are_outwaited(
    engines: ModuleType, folder: dict[str, Served], requests: int, action: str
) -> None:
    with engines.running(engines.StubSglang()) as engine:
        engine.adapters["a"], engine.requests = str(folder["1"].path), requests
        (done,) = sync(EngineClient("sglang", engine.url), {"a": folder["2"]})
        assert done.action == action
        assert engine.adapters["a"] == str(folder["2" if action == "replaced" else "1"].path)
        assert action == "replaced" or "The one before is served again." in done.reason


def test_what_the_engine_lets_go_again_is_told(engines: ModuleType, folder: dict[str, Served]) -> None:
    with engines.running(engines.StubSglang()) as engine:
        engine.most = 1
        done = sync(EngineClient("sglang", engine.url), {"a": folder["1"], "b": folder["2"]})
        assert actions(done) == {"a": "unlisted", "b": "loaded"}
        assert "--max-loaded-loras" in done[0].reason


# -- which engine --------------------------------------------------------------------------------


def test_another_base_model_is_refused_before_anything_is_done(engine: Any, folder: dict[str, Served]) -> None:
    engine.base = "/models/other"
    with pytest.raises(EngineError, match=r"/models/other, and task@1 is for tiny/base-model\. Pass --any-base"):
        sync(engine.client(), {"a": folder["1"]})
    assert engine.asked == []
    assert actions(sync(engine.client(), {"a": folder["1"]}, any_base=True)) == {"a": "loaded"}


def test_a_key_goes_along_and_is_never_shown(engine: Any, folder: dict[str, Served]) -> None:
    engine.key = SECRET
    assert actions(sync(engine.client(api_key=SECRET), {"a": folder["1"]})) == {"a": "loaded"}
    for client in (engine.client(), engine.client(api_key=f"{SECRET}2")):
        with pytest.raises(EngineError, match="it wants a key") as caught:
            client.loaded()
        assert SECRET not in str(caught.value) + repr(client)


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}é", ""])
def test_a_key_that_is_none_is_refused_unseen(key: str) -> None:
    with pytest.raises(EngineError, match="no HTTP header has") as caught:
        EngineClient("vllm", "http://localhost:8000", key)
    assert SECRET not in str(caught.value)


def test_an_engine_that_takes_no_adapters_says_how_to_start_it(engine: Any, folder: dict[str, Served]) -> None:
    engine.updates = False
    with pytest.raises(EngineError, match=r"it has no POST .*load_lora_adapter\. Start it with") as caught:
        sync(engine.client(), {"a": folder["1"]})
    assert not isinstance(caught.value, EngineRefusedError)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "file:///etc/passwd",
        "ftp://host/",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host/?key=1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match="no address of a server"):
        EngineClient("vllm", url)


def test_a_password_in_an_address_is_not_printed() -> None:
    with pytest.raises(EngineError, match=r"at http://host:1/v1: ") as caught:
        EngineClient("vllm", f"http://me:{SECRET}@host:1/v1")
    assert SECRET not in str(caught.value)


# -- an engine that is none ----------------------------------------------------------------------


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf"vLLM at http://127\.0\.0\.1:{port}: it cannot be reached .*refused"):
        EngineClient("vllm", f"http://127.0.0.1:{port}").loaded()


def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = EngineClient("vllm", f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s\. .*--timeout"):
            client.loaded()


def test_what_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def mumble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail ready\r\n\r\n")

        thread = threading.Thread(target=mumble)
        thread.start()
        with pytest.raises(EngineError, match="it cannot be reached"):
            EngineClient("vllm", f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=5).loaded()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, "<html>", "lists no models"),
        (200, '{"data": ["x"]}', "lists no models"),
        (200, "[" * 100_000, "lists no models"),
        (404, "Not here", r"it has no GET /v1/models"),
        (302, "http://elsewhere/", r"leads elsewhere \(HTTP 302\)"),
        (500, '{"error": {"message": "EngineCore died.", "code": 500}}', r"EngineCore died\."),
        (503, "", "HTTP 503"),
        (200, "x" * 2000, "answer of over 1000 bytes"),
    ],
)
def test_answers_that_nobody_expects(
    engine: Any, monkeypatch: pytest.MonkeyPatch, status: int, body: str, words: str
) -> None:
    if "over" in words:
        monkeypatch.setattr(sync_module, "MAX_ANSWER_BYTES", 1000)
    engine.answer = lambda *_: (status, body)
    with pytest.raises(EngineError, match=words):
        engine.client().loaded()
