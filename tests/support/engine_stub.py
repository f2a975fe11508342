"""Stand-ins for engines on a local port, which check requests and answer as the engines' own source does.

vLLM 0.33.0: vllm/entrypoints/serve/lora/api_router.py, openai/models/serving.py, serve/middleware/authenticate.py.
SGLang 0.5.23: sglang/srt/entrypoints/http_server.py, managers/tokenizer_control_mixin.py, utils/auth.py.
`test_vllm_resolver.py` runs vLLM's own files in the place of the first, where they can be had.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]


class StubEngine:
    """What both have: models, a key, and a record of what was asked."""

    prefix = "/v1"
    fields = frozenset({"lora_name", "lora_path", "load_inplace", "is_3d_lora_weight"})

    def __init__(self, base: str = "tiny/base-model", served: str = "served") -> None:
        self.base, self.served = base, served
        self.adapters: dict[str, str] = {}
        self.asked: list[tuple[str, Any]] = []
        self.key: str | None = None
        self.updates = True  # whether adapters may come and go
        self.broken: set[str] = set()  # paths that cannot be loaded
        self.url = ""

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        if self.key is not None and headers["Authorization"] != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if (method, path) == ("GET", "/v1/models"):
            return 200, {"object": "list", "data": self.cards()}
        loads, unloads = (f"{self.prefix}/{word}_lora_adapter" for word in ("load", "unload"))
        if method != "POST" or path not in (loads, unloads) or not self.updates:
            return 404, {"detail": "Not Found"}
        assert headers["Content-Type"] == "application/json"
        asked = json.loads(body)
        assert set(asked) <= self.fields
        assert all(isinstance(asked[name], str) for name in ("lora_name",))
        self.asked.append((path.rpartition("/")[2].partition("_")[0], asked))
        if path == unloads:
            return self.unload(asked["lora_name"])
        assert isinstance(asked["lora_path"], str)
        assert (Path(asked["lora_path"]) / "adapter_config.json").is_file()
        return self.load(asked)

    def cards(self) -> list[dict[str, Any]]:
        card = {"object": "model", "created": 1, "owned_by": "stub"}
        first = {"id": self.served, "root": self.root(), "parent": None, "max_model_len": 128}
        others = [{"id": name, "root": path, "parent": self.served} for name, path in self.adapters.items()]
        return [card | more for more in (first, *others)]

    def root(self) -> str:
        return self.base

    def load(self, asked: dict[str, Any]) -> Answer:
        raise NotImplementedError

    def unload(self, name: str) -> Answer:
        raise NotImplementedError


class StubVllm(StubEngine):
    """vLLM; `knows_in_place` is false for versions before `load_inplace`, which ignore it."""

    knows_in_place = True

    def load(self, asked: dict[str, Any]) -> Answer:
        name, path = asked["lora_name"], asked["lora_path"]
        if name in self.adapters and not (asked.get("load_inplace") and self.knows_in_place):
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return 400, self.error(said, "InvalidUserInput", 400)
        if path in self.broken:
            return 404, self.error(f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError", 404)
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> Answer:
        if name not in self.adapters:
            return 404, self.error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    @staticmethod
    def error(message: str, kind: str, code: int) -> dict[str, Any]:
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class StubSglang(StubEngine):
    """SGLang; `most` is its --max-loaded-loras, `requests` how many come for what is unloaded, which load it again."""

    prefix = ""
    fields = frozenset({"lora_name", "lora_path", "pinned", "lora_id", "rid", "http_worker_ipc"})
    most: int | None = None
    requests = 0

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        if (method, path) == ("GET", "/model_info"):
            return 200, {"model_path": self.base, "served_model_name": self.served}
        return super().answer(method, path, headers, body)

    def root(self) -> str:
        return self.served

    def load(self, asked: dict[str, Any]) -> Answer:
        name, path = asked["lora_name"], asked["lora_path"]
        if name in self.adapters:
            return self.output(f"Failed to load LoRA adapter {name} because it is already loaded")
        if path in self.broken:
            return self.output(f"LoRA adapter {name} with rank 2 is incompatible with the current LoRA memory pool")
        self.adapters[name] = path
        while self.most is not None and len(self.adapters) > self.most:
            del self.adapters[next(iter(self.adapters))]
        return self.output(None)

    def unload(self, name: str) -> Answer:
        if name not in self.adapters:
            return self.output(f"LoRA with name {name} does not exist. Loaded LoRAs: {list(self.adapters)}")
        if self.requests:
            self.requests -= 1
            return self.output(None)
        del self.adapters[name]
        return self.output(None)

    def output(self, error: str | None) -> Answer:
        said = {"rid": None, "success": error is None, "error_message": error, "loaded_adapters": dict(self.adapters)}
        return (400 if error else 200), said


@contextmanager
def running(engine: StubEngine) -> Iterator[StubEngine]:
    """The engine, listening at `engine.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*engine.answer("GET", self.path, self.headers, b""))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(*engine.answer("POST", self.path, self.headers, body))

        def reply(self, status: int, said: Any) -> None:
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", said)
            self.end_headers()
            self.wfile.write(said.encode() if isinstance(said, str) else json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        engine.url = f"http://127.0.0.1:{server.server_port}"
        yield engine
        server.shutdown()
        thread.join()
