"""Taking adapters in: versions, shared blobs, what is refused, many at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.registry import ingest
from lorareg.registry.errors import (
    InvalidAdapterError,
    UnknownAdapterError,
    UnknownFileError,
)
from lorareg.registry.ingest import IngestOutcome, IngestRequest
from lorareg.registry.peft_format import PeftFolder, read_folder
from lorareg.registry.store import Registry

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]
KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def take(registry: Registry, path: Path, name: str = "task", description: str | None = None) -> IngestOutcome:
    return registry.ingest(read_folder(path), name=name, description=description)


def test_ingesting_is_idempotent(registry: Registry, make_adapter: MakeAdapter) -> None:
    path = make_adapter()
    first = take(registry, path)
    assert first.kind == "new"
    assert first.adapter.ref == "task@1"
    assert first.adapter.description == "Continue the text."
    assert first.adapter.source == str(path)
    assert first.adapter.weight_count == 2 * (2 * 6 + 8 * 2)
    again = take(registry, path)
    assert (again.kind, again.adapter) == ("known", first.adapter)
    assert [file.path for file in registry.files(first.adapter)] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    weights = registry.read_file(first.adapter, "adapter_model.safetensors")
    assert weights == (path / "adapter_model.safetensors").read_bytes()
    assert len(weights) == first.adapter.original_bytes
    assert list(registry.check(read_data=True)) == []


def test_other_bytes_under_a_name_are_its_next_version(registry: Registry, make_adapter: MakeAdapter) -> None:
    take(registry, make_adapter("a", seed=1))
    second = take(registry, make_adapter("b", seed=2))
    assert (second.kind, second.adapter.ref) == ("version", "task@2")
    assert take(registry, make_adapter("a", seed=1)).adapter.ref == "task@1"
    assert registry.adapter("task") == second.adapter
    assert registry.adapter("task@1").version == 1
    with pytest.raises(UnknownAdapterError, match="Its versions are 1, 2"):
        registry.adapter("task@3")


def test_the_same_bytes_under_another_name_share_blobs(registry: Registry, make_adapter: MakeAdapter) -> None:
    one, two = take(registry, make_adapter(), "one").adapter, take(registry, make_adapter(), "two").adapter
    assert one.digest == two.digest
    assert one.id != two.id
    assert len(list(registry.blobs)) == 3
    assert registry.adapters(name="one") == [one]


def test_another_card_updates_the_files_and_the_description(registry: Registry, make_adapter: MakeAdapter) -> None:
    before = take(registry, make_adapter()).adapter
    after = take(registry, make_adapter(card="# T\n\nOther words.\n"))
    assert (after.kind, after.adapter.id, after.adapter.description) == ("updated", before.id, "Other words.")
    assert b"Other words" in registry.read_file(after.adapter, "README.md")
    path = make_adapter("without", card=None)
    (path / "samples.json").write_text('["a"]')
    assert take(registry, path).kind == "updated"
    assert {file.path for file in registry.files(before)} >= {"samples.json"}
    with pytest.raises(UnknownFileError, match=r"no file 'README.md'; it has adapter_config.json"):
        registry.read_file(before, "README.md")
    assert [finding.severity for finding in registry.check(read_data=True)] == ["information"] * 2


def test_a_given_description_wins_until_the_card_changes(registry: Registry, make_adapter: MakeAdapter) -> None:
    assert take(registry, make_adapter(), description=" said \n so ").adapter.description == "said so"
    assert take(registry, make_adapter()).kind == "known"
    changed = take(registry, make_adapter(), description="again")
    assert (changed.kind, changed.adapter.description) == ("updated", "again")
    assert take(registry, make_adapter(card="New card.")).adapter.description == "New card."


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_not_finite_are_refused(
    registry: Registry, make_adapter: MakeAdapter, value: float, dtype: type
) -> None:
    weights = np.zeros((2, 6), dtype)
    weights[1, 5] = value
    with pytest.raises(InvalidAdapterError, match=f"tensor {KEY}.lora_A.weight has weights that are NaN"):
        take(registry, make_adapter(tensors={f"{KEY}.lora_A.weight": weights}))
    assert registry.adapters() == []
    assert list(registry.blobs) == []


def test_large_finite_weights_pass(registry: Registry, make_adapter: MakeAdapter) -> None:
    weights = np.full((2, 6), np.finfo(np.float32).max)
    assert take(registry, make_adapter(tensors={f"{KEY}.lora_A.weight": weights})).kind == "new"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
def test_a_file_replaced_after_validation_is_refused(registry: Registry, make_adapter: MakeAdapter, name: str) -> None:
    folder = read_folder(make_adapter())
    shutil.copy(make_adapter("b", width=7, config={"x": 1}, card="Other.") / name, folder.path / name)
    with pytest.raises(InvalidAdapterError, match=f"{name}: it changed while it was read"):
        registry.ingest(folder, name="task")
    assert list(registry.blobs) == []


def test_an_evaluation_file_replaced_after_validation_is_refused(
    registry: Registry, make_adapter: MakeAdapter, sample_adapters: Path
) -> None:
    path = make_adapter()
    shutil.copy(sample_adapters / "man-nl" / "eval.safetensors", path)
    folder = read_folder(path)
    (path / "eval.safetensors").write_bytes(b"nonsense!")
    with pytest.raises(InvalidAdapterError, match="should have"):
        registry.ingest(folder, name="task")


def test_weights_are_the_bytes_hashed_even_if_replaced_by_others_alike(
    registry: Registry, make_adapter: MakeAdapter
) -> None:
    folder = read_folder(make_adapter())
    shutil.copy(make_adapter("b", seed=9) / "adapter_model.safetensors", folder.path)
    adapter = registry.ingest(folder, name="task").adapter
    stored = registry.read_file(adapter, "adapter_model.safetensors")
    assert stored == (folder.path / "adapter_model.safetensors").read_bytes()


def test_a_crash_between_blobs_and_rows_leaves_only_blobs(
    registry: Registry, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "adapter_record", crash)
    with pytest.raises(KeyboardInterrupt):
        take(registry, make_adapter())
    monkeypatch.undo()
    assert registry.adapters() == []
    assert {finding.severity for finding in registry.check(read_data=True)} == {"information"}
    assert take(registry, make_adapter()).kind == "new"


def test_many_folders_keep_their_order_past_refused_ones(registry: Registry, make_adapter: MakeAdapter) -> None:
    requests = [IngestRequest(make_adapter(f"t{number}", seed=number), "task") for number in range(7)]
    requests.insert(2, IngestRequest(make_adapter("bad", config={"r": 9}), "bad"))
    requests.insert(5, IngestRequest(requests[0].path, "no--name"))
    requests.append(IngestRequest(requests[0].path, "task", "Said."))
    outcomes = list(registry.ingest_each(requests))
    assert [outcome.kind if isinstance(outcome, IngestOutcome) else str(outcome)[:5] for outcome in outcomes] == [
        "new", "version", str(make_adapter("bad"))[:5], "version", "version", "Task ", "version", "version", "version",
        "updated",
    ]  # fmt: skip
    with pytest.raises(InvalidAdapterError, match=r"has rank 2, but adapter_config.json says 9"):
        raise outcomes[2]  # type: ignore[misc]
    versions = registry.adapters(name="task")
    assert [(adapter.version, Path(adapter.source).name) for adapter in versions] == [
        (number + 1, f"t{number}") for number in range(7)
    ]
    assert versions[0].description == "Said."
    assert list(registry.ingest_each([])) == []


def test_a_path_that_is_not_utf8_is_recorded_readably(
    registry: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(make_adapter(), odd)
    assert take(registry, odd).adapter.source.endswith("caf\ufffd")


INGEST = """
import sys
from pathlib import Path
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry

home, *paths = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
with Registry.open(home, create=True) as registry:
    for path in paths:
        registry.ingest(read_folder(path), name=path.name)
        registry.ingest(read_folder(path), name="shared")
"""


def test_four_processes_ingest_at_once_into_a_registry_that_none_had_made(
    home: Path, make_adapter: MakeAdapter
) -> None:
    paths = [make_adapter(f"t{number}", seed=number) for number in range(8)]
    commands = [[sys.executable, "-c", INGEST, home, *paths[k::2]] for k in (0, 1, 0, 1)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    workers = [subprocess.Popen(list(map(str, command)), text=True, **pipes) for command in commands]  # type: ignore[call-overload]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    with Registry.open(home, create=False) as registry:
        assert len(registry.adapters()) == 16
        assert [adapter.version for adapter in registry.adapters(name="shared")] == list(range(1, 9))
        assert list(registry.check(read_data=True)) == []


def test_the_shipped_adapters_ingest(registry: Registry, sample_adapters: Path) -> None:
    folders: list[PeftFolder] = [read_folder(path) for path in sorted(sample_adapters.iterdir()) if path.is_dir()]
    assert [registry.ingest(folder, name=folder.path.name).kind for folder in folders] == ["new"] * len(folders)
    assert registry.cohorts()[0].name.startswith("smollm2-135m-instruct-r2-qv-")
    samples = json.loads(registry.read_file(registry.adapter("man-nl"), "samples.json"))
    assert all(isinstance(text, str) for text in samples)
