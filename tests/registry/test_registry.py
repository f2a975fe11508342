"""Tags, quarantine, cohorts, generators, encodings, settings; where a registry is and how it is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry import ingest
from lorareg.registry import sqlite as sqlite_module
from lorareg.registry.certificate import Proof, Subject, is_stale
from lorareg.registry.errors import (
    IntegrityError,
    InvalidNameError,
    LayoutMismatchError,
    MissingBlobError,
    RegistryError,
    UnknownAdapterError,
    UnknownCohortError,
    UnknownGeneratorError,
)
from lorareg.registry.home import resolve_home
from lorareg.registry.ingest import IngestOutcome
from lorareg.registry.peft_format import read_folder
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


def test_settings_are_remembered_and_forgotten(registry: Registry) -> None:
    assert registry.setting("base_model:tiny") is None
    registry.remember("base_model:tiny", "/models/tiny")
    registry.remember("base_model:tiny", {"path": "/models/other"})
    assert registry.setting("base_model:tiny") == {"path": "/models/other"}
    registry.remember("base_model:tiny", None)
    registry.remember("base_model:tiny", None)
    assert registry.setting("base_model:tiny") is None
