"""Ingesting, versions, tags, quarantine, generators and encodings."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.registry import ingest
from lorareg.registry import sqlite as sqlite_module
from lorareg.registry.certificate import Proof, Subject, is_stale
from lorareg.registry.errors import (
    IntegrityError,
    InvalidAdapterError,
    InvalidNameError,
    LayoutMismatchError,
    MissingBlobError,
    RegistryError,
    UnknownAdapterError,
    UnknownCohortError,
    UnknownFileError,
    UnknownGeneratorError,
)
from lorareg.registry.home import resolve_home
from lorareg.registry.ingest import IngestOutcome, IngestRequest
from lorareg.registry.peft_format import PeftFolder, read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import Adapter, Layout, NewEncoding, NewGenerator

Raw = Callable[..., Any]
MakeAdapter = Callable[..., Path]
KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def take(registry: Registry, path: Path, name: str = "task", description: str | None = None) -> IngestOutcome:
    return registry.ingest(read_folder(path), name=name, description=description)


def new_encoding(
    registry: Registry, adapter: Adapter, generator_id: int | None = None, code: bytes = b"c"
) -> NewEncoding:
    digest = registry.blobs.put_bytes(code)
    return NewEncoding(
        adapter.id, generator_id, "residual", "residual", digest, len(code), "0" * 64, 9, {"max": 0.2}, {"error": 0.1}
    )


def new_generator(registry: Registry, cohort_id: int, body: bytes = b"gen") -> NewGenerator:
    return NewGenerator(cohort_id, registry.blobs.put_bytes(body), len(body), "slots", "text:v1", {"k": 8}, {"loss": 1})


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


def test_removing_restoring_and_reviving(registry: Registry, make_adapter: MakeAdapter) -> None:
    adapter = take(registry, make_adapter()).adapter
    removed = registry.remove(adapter)
    assert removed.removed_at
    assert registry.remove(adapter).removed_at == removed.removed_at
    with pytest.raises(UnknownAdapterError, match="was removed; `lorareg restore task`"):
        registry.adapter("task")
    assert registry.adapters() == []
    assert registry.adapters(include_removed=True) == [removed]
    assert registry.restore("task@1").adapter == adapter
    with pytest.raises(UnknownAdapterError, match="Nothing removed or in quarantine goes by that name"):
        registry.restore("task")
    registry.tag(adapter, "stable")
    registry.remove(adapter)
    assert registry.restore("task@stable").adapter == adapter
    registry.remove(adapter)
    revived = take(registry, make_adapter())
    assert (revived.kind, revived.adapter) == ("revived", adapter)


def test_tags_move_within_a_name(registry: Registry, make_adapter: MakeAdapter) -> None:
    first = take(registry, make_adapter("a", seed=1)).adapter
    second = take(registry, make_adapter("b", seed=2)).adapter
    registry.tag(first, "stable")
    assert registry.adapter("task@stable") == first
    assert registry.tag(first, "stable") == registry.tags(first)[0]
    registry.tag(second, "stable")
    assert registry.adapter("task@stable") == second
    assert registry.tags(first) == []
    assert not registry.untag(first, "stable")
    assert registry.untag(second, "stable")
    with pytest.raises(UnknownAdapterError, match="task@stable"):
        registry.adapter("task@stable")
    with pytest.raises(InvalidNameError, match="is a number"):
        registry.tag(first, "7")


def test_unknown_things_are_named(registry: Registry, make_adapter: MakeAdapter) -> None:
    adapter = take(registry, make_adapter(), "man-nl").adapter
    stranger = replace(adapter, id=99)
    with pytest.raises(UnknownAdapterError, match=r"'man-n' in .*Did you mean 'man-nl'"):
        registry.adapter("man-n")
    for act in (lambda: registry.tag(stranger, "x"), lambda: registry.remove(stranger)):
        with pytest.raises(UnknownAdapterError, match="'man-nl@1'"):
            act()
    with pytest.raises(UnknownAdapterError, match="with id 99"):
        registry.put_task_vector(99, "text:v1", b"")
    with pytest.raises(UnknownAdapterError, match="with id 99"):
        registry.record_encoding(new_encoding(registry, stranger))
    with pytest.raises(UnknownGeneratorError, match="No generator 7"):
        registry.generator(7)
    with pytest.raises(UnknownGeneratorError, match="No generator 7"):
        registry.record_encoding(new_encoding(registry, adapter, generator_id=7))
    with pytest.raises(UnknownCohortError, match="'nothing'"):
        registry.cohort("nothing")
    with pytest.raises(UnknownCohortError, match="No cohort 9"):
        registry.record_generator(new_generator(registry, 9))
    with pytest.raises(InvalidNameError, match=r"'\.\./x'"):
        take(registry, make_adapter(), "../x")


def test_cohorts_gather_the_same_base_and_layout(
    registry: Registry, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = take(registry, make_adapter("a", seed=1), "one").adapter
    two = take(registry, make_adapter("b", seed=2), "two").adapter
    monkeypatch.setattr(ingest, "sha256_hex", lambda data: "abcdef0123")  # every cohort's short digest collides
    other = take(registry, make_adapter("c", config={"lora_alpha": 8}), "three").adapter
    third = take(registry, make_adapter("d", config={"lora_alpha": 2}), "four").adapter
    assert one.cohort_id == two.cohort_id != other.cohort_id
    cohort = registry.cohort(one.cohort_id)
    assert cohort.name.startswith("base-model-r2-qv-")
    assert registry.cohort(cohort.name) == cohort
    assert Layout.from_json(cohort.layout).digest == cohort.layout_digest
    assert registry.adapters(cohort_id=cohort.id) == [one, two]
    assert registry.cohort(other.cohort_id).name == "base-model-r2-qv-abcdef"
    assert registry.cohort(third.cohort_id).name == "base-model-r2-qv-abcdef01"
    assert len(registry.cohorts()) == 3


def test_task_vectors_are_replaced(registry: Registry, make_adapter: MakeAdapter) -> None:
    adapter = take(registry, make_adapter()).adapter
    assert registry.task_vector(adapter.id, "text:v1") is None
    first = registry.put_task_vector(adapter.id, "text:v1", b"\x00\x01")
    assert registry.put_task_vector(adapter.id, "text:v1", b"\x00\x01") == first
    second = registry.put_task_vector(adapter.id, "text:v1", b"\x02")
    assert registry.task_vector(adapter.id, "text:v1") == second
    assert second.vector == b"\x02"


def test_generators_count_versions(registry: Registry, make_adapter: MakeAdapter) -> None:
    cohort_id = take(registry, make_adapter()).adapter.cohort_id
    first = registry.record_generator(new_generator(registry, cohort_id))
    assert registry.record_generator(new_generator(registry, cohort_id)) == first
    second = registry.record_generator(new_generator(registry, cohort_id, b"other"))
    assert (first.version, second.version) == (1, 2)
    assert registry.generators(cohort_id) == [first, second]
    assert registry.generator(first.id) == first


def test_an_encoding_supersedes_the_one_before(registry: Registry, make_adapter: MakeAdapter) -> None:
    adapter = take(registry, make_adapter()).adapter
    assert registry.encoding(adapter.id) is None
    generator = registry.record_generator(new_generator(registry, adapter.cohort_id))
    registry.record_encoding(new_encoding(registry, adapter))
    second = registry.record_encoding(new_encoding(registry, adapter, generator.id, b"second"))
    assert registry.encoding(adapter.id) == second
    assert registry.encodings(adapter.cohort_id) == [second]
    assert list(registry.check(read_data=True)) == []


def test_an_encoding_comes_with_its_certificate_or_not_at_all(registry: Registry, make_adapter: MakeAdapter) -> None:
    adapter = take(registry, make_adapter()).adapter
    broken = Proof({"fidelity": {}}, b"", b"")  # says no version: it cannot be certified
    with pytest.raises(KeyError, match="lorareg"):
        registry.record_encoding(new_encoding(registry, adapter), broken)
    assert registry.encoding(adapter.id) is None
    modules = len(Layout.from_json(registry.cohort(adapter.cohort_id).layout).modules)
    facts = {"lorareg": "0.1.0", "measured_at": "2026-01-02T03:04:05+00:00", "fidelity": {}}
    encoding = registry.record_encoding(new_encoding(registry, adapter), Proof(facts, bytes(4 * modules), b""))
    certificate = registry.certificate(encoding.id)
    assert certificate is not None
    assert not is_stale(Subject.of(registry, adapter, encoding), certificate)


def test_an_encoding_needs_its_blob_and_a_generator_for_its_base_model(
    registry: Registry, make_adapter: MakeAdapter
) -> None:
    adapter = take(registry, make_adapter()).adapter
    encoding = new_encoding(registry, adapter)
    with pytest.raises(MissingBlobError, match=r"f{64} is missing"):
        registry.record_encoding(replace(encoding, sha256="f" * 64))
    with pytest.raises(IntegrityError, match="expected 5 bytes, found 1"):
        registry.record_encoding(replace(encoding, size_bytes=5))
    elsewhere = {"base_model_name_or_path": "tiny/other"}
    other = take(registry, make_adapter("c", width=9, config=elsewhere), "other").adapter
    generator = registry.record_generator(new_generator(registry, other.cohort_id))
    with pytest.raises(
        LayoutMismatchError, match="task@1 has layout of base model tiny/base-model, but one of tiny/other"
    ):
        registry.record_encoding(replace(encoding, generator_id=generator.id))
    assert registry.encoding(adapter.id) is None
    wider = take(registry, make_adapter("d", width=9), "wider").adapter
    lent = registry.record_generator(new_generator(registry, wider.cohort_id))
    assert registry.record_encoding(replace(encoding, generator_id=lent.id)).generator_id == lent.id


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


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LORAREG_HOME", raising=False)
    assert resolve_home() == Path(".lorareg")
    monkeypatch.setenv("LORAREG_HOME", str(tmp_path))
    assert resolve_home() == tmp_path
    assert resolve_home(Path("x")) == Path("x")


def test_homes_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry here"):
        Registry.open(tmp_path, create=False)
    with pytest.raises(RegistryError, match="there is no registry here"):
        Registry.migrate(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="not a folder"):
        Registry.open(tmp_path / "file", create=True)
    (tmp_path / "registry.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 9)
    with pytest.raises(RegistryError, match="file is not a database"):
        Registry.open(tmp_path, create=True)
    (tmp_path / "registry.sqlite").unlink()
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as other:
        other.execute("CREATE TABLE songs (id)")
    with pytest.raises(RegistryError, match="is not a lorareg database"):
        Registry.open(tmp_path, create=True)


@pytest.mark.sqlite_alone
def test_durability_settings(registry: Registry) -> None:
    with registry.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


@pytest.mark.sqlite_alone
def test_a_writer_waits_and_then_says_who_it_waited_for(
    home: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)
    with Registry.open(home, create=True) as registry, closing(sqlite3.connect(home / "registry.sqlite")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        assert registry.adapters() == []
        with pytest.raises(RegistryError, match="another process kept its database busy all the while"):
            take(registry, make_adapter())
        other.execute("ROLLBACK")
        assert take(registry, make_adapter()).kind == "new"


def test_tampering_with_a_row_is_noticed_and_not_signed_over(
    registry: Registry, home: Path, raw: Raw, make_adapter: MakeAdapter
) -> None:
    adapter = take(registry, make_adapter()).adapter
    raw("UPDATE adapter SET description = 'tampered'")
    for act in (
        lambda: registry.adapter("task"),
        lambda: registry.remove(adapter),
        lambda: take(registry, make_adapter()),
    ):
        with pytest.raises(IntegrityError, match="Row 1 of table 'adapter' is damaged"):
            act()


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


def test_settings_are_remembered_and_forgotten(registry: Registry) -> None:
    assert registry.setting("base_model:tiny") is None
    registry.remember("base_model:tiny", "/models/tiny")
    registry.remember("base_model:tiny", {"path": "/models/other"})
    assert registry.setting("base_model:tiny") == {"path": "/models/other"}
    registry.remember("base_model:tiny", None)
    registry.remember("base_model:tiny", None)
    assert registry.setting("base_model:tiny") is None
