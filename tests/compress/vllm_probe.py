"""Run by test_vllm_resolver.py in a process of its own, where vLLM's own files are on the path.

Loads the plugin through vLLM's loader, has vLLM's serving class resolve adapters with it, then puts that class behind
an HTTP server, as vllm/entrypoints/serve/lora/api_router.py does, and syncs with it. The engine alone is a stand-in:
it reads the adapter's config as vLLM's `PEFTHelper` does. Prints what happened as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
from vllm.plugins import load_general_plugins

from lorareg.compress.serving.folders import serve
from lorareg.compress.serving.sync import EngineClient, sync
from lorareg.registry.errors import EngineRefusedError
from lorareg.registry.home import resolve_home
from lorareg.registry.reader import Reader

BASE = "tiny/base-model"


class Engine:
    """What loads adapters in vLLM, without a model."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(model=BASE, max_model_len=128)
        self.renderer = self.input_processor = None
        self.added: list[list[Any]] = []

    async def add_lora(self, request: LoRARequest) -> bool:
        helper = PEFTHelper.from_local_dir(request.lora_path, 128)
        helper.validate_legal(SimpleNamespace(max_lora_rank=16))
        assert (Path(request.lora_path) / "adapter_model.safetensors").stat().st_size
        self.added.append([request.lora_name, request.lora_int_id, request.load_inplace])
        return True


def make_handler(models: OpenAIServingModels, loop: asyncio.AbstractEventLoop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.answer(200, self.wait(models.show_available_models()).model_dump_json())

        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/load_lora_adapter":
                done = self.wait(models.load_lora_adapter(LoadLoRAAdapterRequest.model_validate_json(body)))
            else:
                assert self.path == "/v1/unload_lora_adapter"
                done = self.wait(models.unload_lora_adapter(UnloadLoRAAdapterRequest.model_validate_json(body)))
            if isinstance(done, ErrorResponse):
                self.answer(done.error.code, done.model_dump_json())
            else:
                self.answer(200, done)

        def wait(self, work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(60)

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def resolve_all(models: OpenAIServingModels, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    found = {}
    for name in ("task", "task@1", "nobody"):
        result = asyncio.run_coroutine_threadsafe(models.resolve_lora(name), loop).result(60)
        if isinstance(result, LoRARequest):
            found[name] = [result.lora_name, result.lora_int_id, result.lora_path]
        else:
            found[name] = result.error.code
    return found


def sync_all(url: str, into: Path) -> dict[str, Any]:
    client = EngineClient("vllm", url)
    with Reader(resolve_home()) as reader:
        old, new = (serve(reader, reader.adapter(ref), "vllm", into) for ref in ("task@1", "task@2"))
    steps = [
        sync(client, {"a": old, "b": old}),
        sync(client, {"a": old, "b": new}),
        sync(client, {"a": old}, unload_others=True),
    ]
    refused = ""
    try:
        client.load("served", str(old.path))
    except EngineRefusedError as error:
        refused = str(error)
    return {"steps": [[[item.name, item.action] for item in done] for done in steps], "refused": refused}


def main() -> None:
    load_general_plugins()
    registered = sorted(LoRAResolverRegistry.get_supported_resolvers())
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    engine = Engine()
    models = OpenAIServingModels(engine, [BaseModelPath("served", BASE)])
    told: dict[str, Any] = {
        "registered": registered,
        "is_resolver": all(isinstance(resolver, LoRAResolver) for resolver in models.lora_resolvers),
        "resolved": resolve_all(models, loop),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(models, loop))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told |= sync_all(f"http://127.0.0.1:{server.server_port}", Path(sys.argv[1]))
    server.shutdown()
    print(json.dumps(told | {"added": engine.added}))


main()
