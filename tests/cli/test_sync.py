"""`lorareg sync` through the program's own entrance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Run = Callable[..., Any]
SECRET = "sk-never-printed"


@pytest.fixture
def engine(engines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "*")
    with engines.running(engines.StubVllm(base="/models/SmolLM2-135M-Instruct")) as engine:
        yield engine


def test_it_loads_and_then_has_nothing_to_do(run: Run, home: Path, engine: Any) -> None:
    common = ("--to", engine.url, "--engine", "vllm", "--home", home)
    first = run("sync", "man-de", "man-nl@1", *common)
    assert (first.exit_code, "2 loaded" in first.out) == (0, True), first.err
    assert set(engine.adapters) == {"man-de", "man-nl@1"}
    assert {Path(path).parent for path in engine.adapters.values()} == {home / "serving" / "vllm"}
    again = run("sync", "man-de", *common, "--unload-others", "--json").data
    assert again["counts"] == {"unchanged": 1, "unloaded": 1}
    assert [(entry["name"], entry["adapter"]) for entry in again["adapters"]] == [
        ("man-nl@1", None),
        ("man-de", "man-de@1"),
    ]
    assert again["adapters"][1]["server_needs"].startswith("--max-lora-rank")
    assert run("sync", "man-de", *common, "-q").out == "man-de unchanged\n"


def test_a_new_version_is_a_new_folder(run: Run, home: Path, folders: Path, engine: Any, tmp_path: Path) -> None:
    common = ("--to", engine.url, "--engine", "vllm", "--home", home, "--into", tmp_path / "seen")
    run("sync", "man-de", *common)
    before = engine.adapters["man-de"]
    run("ingest", folders / "man-nl", "--name", "man-de", "--home", home)
    assert run("sync", "man-de", *common, "--json").data["counts"] == {"replaced": 1}
    assert Path(before).parent == tmp_path / "seen" == Path(engine.adapters["man-de"]).parent
    assert engine.adapters["man-de"] != before
    assert Path(before).is_dir()


def test_a_refused_adapter_is_named_and_the_command_fails(
    run: Run, home: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--to", engine.url, "--engine", "vllm", "--home", home)
    run("sync", "man-de", *common)
    engine.broken.add(engine.adapters.pop("man-de"))
    result = run("sync", "man-de", "man-nl", *common)
    assert result.exit_code == 48
    assert "No adapter found" in " ".join(result.out.split())
    assert f"vLLM at {engine.url}: 1 of 2 adapters are not as they should be" in result.err
    assert set(engine.adapters) == {"man-nl"}


def test_nothing_is_asked_of_the_engine_for_a_task_that_is_not_there(run: Run, home: Path, engine: Any) -> None:
    result = run("sync", "man-de", "nobody", "--to", engine.url, "--engine", "vllm", "--home", home)
    assert (result.exit_code, engine.asked) == (4, [])


def test_no_engine_is_an_error_of_its_own(run: Run, home: Path) -> None:
    result = run("sync", "man-de", "--to", "http://127.0.0.1:9", "--engine", "sglang", "--home", home)
    assert result.exit_code == 48
    assert "SGLang at http://127.0.0.1:9: it cannot be reached" in result.err
    unknown = run("sync", "man-de", "--to", "http://127.0.0.1:9", "--engine", "tgi", "--home", home)
    assert (unknown.exit_code, "none of vllm, sglang" in unknown.err) == (2, True)


def test_the_key_comes_from_the_environment_and_stays_there(
    run: Run, home: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.key = SECRET
    common = ("sync", "man-de", "--to", engine.url, "--engine", "vllm", "--home", home)
    refused = run(*common)
    assert (refused.exit_code, "it wants a key" in refused.err) == (48, True)
    monkeypatch.setenv("LORAREG_ENGINE_API_KEY", SECRET)
    for arguments in (common, (*common, "--json"), ("sync", "--help")):
        result = run(*arguments)
        assert result.exit_code == 0, result.err
        assert SECRET not in result.out + result.err
    assert "LORAREG_ENGINE_API_KEY" in result.out
    monkeypatch.setenv("LORAREG_ENGINE_API_KEY", f"{SECRET}\n")
    assert SECRET not in run(*common).err
