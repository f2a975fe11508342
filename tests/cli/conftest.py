"""Registries to run commands on, made from a few of the sample adapters."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lorareg.registry.certificate import Proof
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding, Layout, NewEncoding, NewGenerator, canonical_json

SAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
TASKS = ("man-de", "man-nl", "src-rust")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with three of the sample adapters."""
    for task in TASKS:
        shutil.copytree(SAMPLES / task, tmp_path / "adapters" / task)
    return tmp_path / "adapters"


@pytest.fixture
def home(tmp_path: Path, folders: Path) -> Path:
    """A registry that has ingested them."""
    home = tmp_path / "home"
    with Registry.open(home, create=True) as registry:
        for task in TASKS:
            registry.ingest(read_folder(folders / task), name=task)
    return home


def record(registry: Registry, task: str, code: bytes, tier: str, error: float, generator_id: int | None) -> Encoding:
    adapter = registry.adapter(task)
    return registry.record_encoding(
        NewEncoding(
            adapter_id=adapter.id,
            generator_id=generator_id,
            codec="fake-1",
            tier=tier,  # type: ignore[arg-type]
            sha256=registry.blobs.put_bytes(code),
            size_bytes=len(code),
            output_digest="0" * 64,
            output_bytes=adapter.original_bytes,
            tolerance={"relative_error": 0.2},
            fidelity={"relative_error": error, "worst_module": "layers.0.q_proj"},
        )
    )


@pytest.fixture
def encoded_home(home: Path) -> Path:
    """The same, with a generator that two adapters use, a third that is lossless, and some history."""
    with Registry.open(home, create=False) as registry:
        cohort = registry.cohorts()[0]
        body = b"generator" * 1000
        generator = registry.record_generator(
            NewGenerator(cohort.id, registry.blobs.put_bytes(body), len(body), "slots", "text:test", {}, {})
        )
        for task in ("man-de", "man-nl"):
            registry.put_task_vector(registry.adapter(task).id, "text:test", b"\0" * 256)
        record(registry, "man-de", b"older" * 50, "residual", 0.15, generator.id)
        record(registry, "man-de", b"d" * 4000, "residual", 0.11, generator.id)
        record(registry, "man-nl", b"n" * 100, "generated", 0.19, generator.id)
        record(registry, "src-rust", b"r" * 200_000, "lossless", 0.0, None)
        registry.blobs.put_bytes(b"nobody's")
    return home


@pytest.fixture
def certify() -> Callable[[Registry, str], None]:
    """Give a task's present encoding a certificate with made-up figures: errors that fall from module to module."""

    def add(registry: Registry, task: str) -> None:
        adapter = registry.adapter(task)
        encoding = registry.encoding(adapter.id)
        assert encoding is not None
        layout = Layout.from_json(registry.cohort(adapter.cohort_id).layout)
        errors = np.linspace(0.3, 0.1, len(layout.modules)) * (encoding.tier != "lossless")
        facts = {
            "lorareg": "0.1.0",
            "measured_at": "2026-01-02T03:04:05+00:00",
            "fidelity": {"least_cosine": 0.95, "max_error": 0.0011, "not_a_number": 0, "infinite": 0},
            "projection_scale": 0.5,
            "original_norm": 3.0,
        }
        projections = np.arange(1024, dtype="<i2").tobytes()
        registry.certify(adapter, encoding, Proof(facts, errors.astype("<f4").tobytes(), projections))

    return add


@pytest.fixture
def certified_home(
    encoded_home: Path, certify: Callable[[Registry, str], None], make_adapter: Callable[..., Path]
) -> Path:
    """The same with certificates, a label, and a second version of man-nl that is stored as it came."""
    with Registry.open(encoded_home, create=False) as registry:
        for task in TASKS:
            certify(registry, task)
        registry.tag(registry.adapter("man-nl"), "stable")
        registry.ingest(read_folder(make_adapter(card="Continue manual pages in Flemish.")), name="man-nl")
    return encoded_home


@pytest.fixture
def fingerprint() -> Callable[[Any], str]:
    """Canonical JSON of the shape of a value: keys and kinds, not values."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shape(value[0])] if value else []
        return type(value).__name__

    return lambda value: canonical_json(shape(value))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A compress pipeline that does nothing, remembers what it was asked, and can be told to fail."""
    fields = "cohort adapters encoded unchanged generator generator_bytes stored_bytes original_bytes by_tier"
    summary = make_dataclass(
        "CohortSummary", [*fields.split(), "worst_relative_error", "mean_gain", "worst_gain", "worst_kl", "message"]
    )
    seen = SimpleNamespace(error=None, options=None, cohorts=None, gains=(None, None, None))

    def compress(
        registry: Any, cohorts: Any, options: Any, reporter: Any, crew: Any = None, damage: Any = None
    ) -> list[Any]:
        seen.options, seen.cohorts = options, list(cohorts)
        reporter.start("train", 2)
        reporter.advance(1, loss=0.5)
        if seen.error:
            raise seen.error
        reporter.advance(1, loss=0.25, adapters_per_s=3.0)
        reporter.finish()
        reporter.note("[red]not markup")
        figures = (3, 2, 1, "slots v1", 9000, 20_000, 1_428_672, {"residual": 3}, 0.19, *seen.gains)
        return [summary("c", *figures, "It pays.")]

    module = ModuleType("lorareg.compress.pipeline")
    module.compress = compress  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lorareg.compress.pipeline", module)
    return seen


@pytest.fixture
def tenants(home: Path, make_adapter: Callable[..., Path]) -> Path:
    """A registry that two tenants share: 55 tasks of `a`, 3 of `b`, one of the latter removed."""
    home = home.with_name("tenants")
    with Registry.open(home, create=True) as registry:
        folder = read_folder(make_adapter("a", card="Continue the novels of anchorites."))
        for number in range(55):
            registry.ingest(folder, name=f"a/task-{number:02}")
        secret = read_folder(make_adapter("b", seed=1, card="Continue secret zebra diaries."))
        for name in ("b/zebra", "b/zulu", "b/gone"):
            registry.ingest(secret, name=name)
        registry.remove(registry.adapter("b/gone"))
    return home
