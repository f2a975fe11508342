"""The plugin of vLLM, on a stand-in with the signatures of vLLM 0.33.0."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.serving import folders, vllm_resolver
from lorareg.compress.serving.engines import is_same_model, model_name
from lorareg.compress.serving.folders import serve
from lorareg.compress.serving.vllm_resolver import RegistryResolver, register
from lorareg.registry.errors import IntegrityError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

BASE = "tiny/base-model"
MAX_MISS_S = 0.005
MakeAdapter = Callable[..., Path]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What vllm/lora/resolver.py and request.py declare in 0.33.0, without what they import."""

    class LoRAResolver(ABC):
        @abstractmethod
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any: ...

    class LoRARequest:
        def __init__(
            self,
            lora_name: str,
            lora_int_id: int,
            lora_path: str = "",
            base_model_name: str | None = None,
            load_inplace: bool = False,
            is_3d_lora_weight: bool = False,
        ) -> None:
            assert lora_int_id >= 1
            assert lora_path
            self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path

    class LoRAResolverRegistry:
        resolvers: dict[str, Any] = {}  # noqa: RUF012
        registered = 0

        @classmethod
        def get_supported_resolvers(cls) -> Any:
            return cls.resolvers.keys()

        @classmethod
        def register_resolver(cls, resolver_name: str, resolver: Any) -> None:
            cls.registered += 1
            cls.resolvers[resolver_name] = resolver

        @classmethod
        def get_resolver(cls, resolver_name: str) -> Any:
            return cls.resolvers[resolver_name]

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.resolver", "vllm.lora.request")}
    given = {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": LoRAResolverRegistry}
    vars(modules["vllm.lora.resolver"]).update(given)
    vars(modules["vllm.lora.request"]).update(LoRARequest=LoRARequest)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(**given)


def resolve(lora_name: str, base: str = BASE) -> Any:
    return asyncio.run(RegistryResolver().resolve_lora(base, lora_name))


def weights_at(path: str) -> dict[str, np.ndarray]:
    return load_file(Path(path) / "adapter_model.safetensors")


# -- being a plugin ------------------------------------------------------------------------------


def test_the_entry_point_is_where_vllm_looks() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["vllm.general_plugins"]["lorareg"]
    assert value == f"{vllm_resolver.__name__}:{register.__name__}"
    assert "vllm" in project["optional-dependencies"]


def imported_by(statement: str, **environment: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return set(done.stdout.splitlines()[-1].split())


def test_loading_it_imports_nothing() -> None:
    found = imported_by("import lorareg.compress.serving.vllm_resolver")
    assert found.isdisjoint({"torch", "vllm", "sqlalchemy", "alembic", "numpy", "safetensors", "sqlite3", "typer"})


def test_it_registers_once(vllm: SimpleNamespace) -> None:
    register()
    register()
    resolvers = vllm.LoRAResolverRegistry
    assert (list(resolvers.resolvers), resolvers.registered) == (["lorareg"], 1)
    assert isinstance(resolvers.get_resolver("lorareg"), vllm.LoRAResolver)


def test_a_vllm_without_resolvers_is_not_stopped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    register()
    assert "lorareg is no resolver of this vLLM" in caplog.text


# -- finding -------------------------------------------------------------------------------------


def test_each_kind_of_name_is_found(served: Registry, vllm: SimpleNamespace, tmp_path: Path) -> None:
    found = {name: resolve(name) for name in ("task", "task@2", "task@1", "task@stable")}
    for name, request in found.items():
        source = tmp_path / "adapters" / ("v1" if name in ("task@1", "task@stable") else "v2")
        before, after = weights_at(str(source)), weights_at(request.lora_path)
        assert request.lora_name == name
        assert {key: value.tolist() for key, value in after.items()} == {k: v.tolist() for k, v in before.items()}
    assert found["task"].lora_path == found["task@2"].lora_path != found["task@1"].lora_path
    assert len({request.lora_int_id for request in found.values()}) == 4
    assert all(0 < request.lora_int_id < 2**31 for request in found.values())


def test_it_is_stable_until_the_adapter_changes(
    served: Registry, vllm: SimpleNamespace, make_adapter: MakeAdapter
) -> None:
    first, again = resolve("task"), resolve("task")
    assert (first.lora_path, first.lora_int_id) == (again.lora_path, again.lora_int_id)
    assert first is not again  # vLLM writes into what it gets
    before = (Path(first.lora_path) / "adapter_model.safetensors").stat()
    assert (Path(again.lora_path) / "adapter_model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    served.ingest(read_folder(make_adapter("v3", seed=3)), name="task")
    third = resolve("task")
    assert third.lora_path != first.lora_path
    assert third.lora_int_id != first.lora_int_id
    assert Path(first.lora_path).is_dir()


def test_what_is_coded_is_decoded(
    home: Path,
    vllm: SimpleNamespace,
    add_group: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with Registry.open(home, create=True) as registry:
        add_group(registry, "alpha", "beta", "gamma")
        compress(registry, (), CompressOptions(arch="mean"), Silent())
        encoding = registry.encoding(registry.adapter("alpha").id)
    monkeypatch.setenv("LORAREG_HOME", str(home))
    monkeypatch.setenv("LORAREG_VLLM_CACHE", str(tmp_path / "cache"))
    request = resolve("alpha")
    assert encoding is not None
    assert Path(request.lora_path).parent == tmp_path / "cache"
    assert sorted(path.name for path in Path(request.lora_path).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
    assert (config["r"], config["peft_type"]) == (2, "LORA")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("meta-llama/Llama-3-8B", "/models/llama-3-8b/", True),
        ("Llama-3-8B", "/hub/models--meta-llama--Llama-3-8B/snapshots/0a1b2c", True),
        (r"C:\models\Llama-3-8B", "acme/Llama-3-8B", True),
        ("meta-llama/Llama-3-8B", "meta-llama/Llama-3-70B", False),
        ("", "", False),
        ("/", "x", False),
    ],
)
def test_base_models_are_compared_by_their_last_name(first: str, second: str, same: bool) -> None:
    assert is_same_model(first, second) is same
    assert model_name("A/B") == "b"


def test_another_base_model_is_refused_unless_told(
    served: Registry, vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve("task", "/models/Base-Model") is not None
    assert resolve("task", "tiny/other") is None
    assert "task@2 is for the base model 'tiny/base-model' and not for 'tiny/other'" in caplog.text
    monkeypatch.setenv("LORAREG_VLLM_ANY_BASE", "1")
    assert resolve("task", "tiny/other") is not None


# -- not finding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "task@9", "task@nosuch", "a/b/c", "../../etc", "task\n", "", "task@0"])
def test_what_is_not_there_is_for_another_resolver(
    served: Registry, vllm: SimpleNamespace, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    assert resolve(name) is None
    assert caplog.records == []


def test_no_registry_is_no_error(
    vllm: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORAREG_HOME", str(tmp_path / "nowhere"))
    assert resolve("task") is None
    assert caplog.records == []
    assert not (tmp_path / "nowhere").exists()


def test_a_miss_is_cheap(served: Registry, home: Path, vllm: SimpleNamespace, make_adapter: MakeAdapter) -> None:
    folder = read_folder(make_adapter("many"))
    for number in range(40):
        served.ingest(folder, name=f"task-{number}")
    resolver = RegistryResolver()

    async def quickest() -> float:
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            assert await resolver.resolve_lora(BASE, "task-x") is None
            taken.append(time.perf_counter() - started)
        return min(taken)

    assert asyncio.run(quickest()) < MAX_MISS_S
    statement = (
        "import asyncio\nfrom lorareg.compress.serving.vllm_resolver import RegistryResolver\n"
        "assert asyncio.run(RegistryResolver().resolve_lora('b', 'nobody')) is None"
    )
    assert imported_by(statement, LORAREG_HOME=str(home)).isdisjoint({"numpy", "sqlalchemy", "torch", "safetensors"})


def test_every_error_is_logged_and_none(
    served: Registry,
    vllm: SimpleNamespace,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dora = make_adapter("dora", seed=9, config={"init_lora_weights": "pissa"})
    served.ingest(read_folder(dora), name="pissa")
    assert resolve("pissa") is None
    assert "'pissa' was not resolved: vLLM cannot serve adapter 'pissa@1'" in caplog.text
    monkeypatch.setenv("LORAREG_VLLM_CACHE", "/dev/null/cache")
    assert resolve("task") is None
    assert "/dev/null" in caplog.text
    caplog.clear()

    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(vllm_resolver, "_serve", broken)
    assert resolve("task") is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text


def test_damage_is_an_error_and_not_an_adapter(
    served: Registry, vllm: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    (weights,) = (file for file in served.files(served.adapter("task")) if file.path == "adapter_model.safetensors")
    path = served.blobs.path(weights.sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert resolve("task") is None
    assert "is damaged" in caplog.text


# -- at the same time ----------------------------------------------------------------------------


def test_one_adapter_is_made_once_for_all_who_wait(
    served: Registry, vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = [], threading.Event()

    def slow(*arguments: Any) -> Any:
        made.append(arguments[1].ref)
        assert gate.wait(10)
        return serve(*arguments)

    monkeypatch.setattr(folders, "serve", slow)
    resolver = RegistryResolver()

    async def stampede() -> list[Any]:
        asked = [asyncio.create_task(resolver.resolve_lora(BASE, name)) for name in ("task", "task@2", "task") * 3]
        while not made:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # the event loop is free meanwhile
        asked[0].cancel()
        gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, *others = asyncio.run(stampede())
    assert isinstance(first, asyncio.CancelledError)
    assert made == ["task@2"]
    assert len({request.lora_path for request in others}) == 1
    assert resolver._flights == {}


def test_processes_may_race(served: Registry, home: Path, tmp_path: Path) -> None:
    statement = (
        "import sys, pathlib\nfrom lorareg.registry.reader import Reader\n"
        "from lorareg.compress.serving.folders import serve\n"
        "sys.stdin.readline()\n"
        f"with Reader(pathlib.Path({str(home)!r})) as reader:\n"
        f"    print(serve(reader, reader.adapter('task'), 'vllm', pathlib.Path({str(tmp_path / 'into')!r})).path)\n"
    )
    command = [sys.executable, "-c", statement]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, told
    paths = {out.strip() for out, _ in told}
    assert len(paths) == 1
    assert [str(path) for path in (tmp_path / "into").iterdir()] == list(paths)


def test_who_comes_second_keeps_the_first_ones_folder(
    served: Registry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(home) as reader:
        first = serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")
        kept = (first.path / "adapter_model.safetensors").stat().st_ino
        monkeypatch.setattr(Path, "exists", lambda path: False)  # as if the first came after the look
        second = serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")
    monkeypatch.undo()
    assert (first.is_new, second.is_new, second.path) == (True, False, first.path)
    assert (first.path / "adapter_model.safetensors").stat().st_ino == kept
    assert [path.name for path in (tmp_path / "into").iterdir()] == [first.digest]


def test_a_folder_that_was_changed_is_an_error(served: Registry, home: Path, tmp_path: Path) -> None:
    with Reader(home) as reader:
        path = serve(reader, reader.adapter("task"), "vllm", tmp_path / "into").path
        (path / "adapter_config.json").write_text("{}")
        with pytest.raises(IntegrityError, match=r"adapter_config\.json is damaged.*no engine has it loaded"):
            serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")
        (path / "adapter_config.json").unlink()
        with pytest.raises(IntegrityError, match="found none"):
            serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")


def test_what_was_left_half_written_goes_after_a_day(served: Registry, home: Path, tmp_path: Path) -> None:
    for name in (".old.new", ".young.new"):
        (tmp_path / "into" / name).mkdir(parents=True)
    os.utime(tmp_path / "into" / ".old.new", (0, 0))
    with Reader(home) as reader:
        serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")
        assert len(list((tmp_path / "into").iterdir())) == 2
        assert (tmp_path / "into" / ".young.new").is_dir()


def test_a_full_disk_leaves_nothing(
    served: Registry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_file", full)
    with Reader(home) as reader, pytest.raises(OSError, match="No space left"):
        serve(reader, reader.adapter("task"), "vllm", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
