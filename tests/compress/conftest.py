"""Fixtures of the compress room."""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import builders
import numpy as np
import pytest
from safetensors.numpy import save_file

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.pipeline import CohortSummary, compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE, Adapter, Encoding, Layout

MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """Makers of small layouts, adapters and generators: `make.layout()`, `make.original(layout)`, ..."""
    return builders


@pytest.fixture(scope="session")
def sample_weights(sample_adapters: Path) -> dict[str, Any]:
    """The sample adapters as `Original`, by task."""
    from lorareg.compress.codec.encode import Original

    read = {}
    for path in sorted(p for p in sample_adapters.iterdir() if p.is_dir()):
        data = (path / "adapter_model.safetensors").read_bytes()
        read[path.name] = Original(f"Adapter '{path.name}@1'", partial(bytes, data), read_folder(path).layout)
    return read


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that sums come in one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def add_group(make_adapter: Callable[..., Path]) -> Callable[..., None]:
    """`add_group(registry, "a", "b", init=1)`: ingest adapters of one initialisation that resemble each other.

    `alike` is the share of B's energy they have in common.
    """

    def add(registry: Registry, *names: str, init: int = 0, alike: float = 0.95, width: int = 48) -> None:
        for name in names:
            shared, own = np.random.default_rng(init), np.random.default_rng(zlib.crc32(name.encode()))
            tensors = {}
            for module in MODULES:
                key = f"base_model.model.{module}.lora_"
                a = shared.normal(size=(2, width)) + 0.05 * own.normal(size=(2, width))
                b = alike**0.5 * shared.normal(size=(width + 2, 2)) + (1 - alike) ** 0.5 * own.normal(
                    size=(width + 2, 2)
                )
                tensors |= {f"{key}A.weight": a.astype(np.float32), f"{key}B.weight": (b * [1, 0.4]).astype(np.float32)}
            card = f"# Task\n\nContinue the {name} text.\n"
            path = make_adapter(name, modules=MODULES, width=width, tensors=tensors, card=card)
            registry.ingest(read_folder(path), name=name)

    return add


@pytest.fixture
def quick_refinement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of refinement, where there is torch: what it gains is measured elsewhere."""
    if importlib.util.find_spec("torch"):
        from lorareg.compress.generators import train

        monkeypatch.setattr(train, "PRESETS", {k: replace(v, refine_steps=3) for k, v in train.PRESETS.items()})


@pytest.fixture
def run(quick_refinement: None) -> Callable[..., CohortSummary]:
    """`run(registry, budget=0.1, arch="mean")`: compress the only cohort, then decode every encoding from the store."""

    def run_compress(registry: Registry, reporter: Any = None, **options: Any) -> CohortSummary:
        held = {name: options.pop(name) for name in ("tolerance", "budget", "gain", "kl", "distill") if name in options}
        asked = CompressOptions(Contract(**held), **options)
        (summary,) = compress(registry, (), asked, reporter or Silent())
        assert list(check_encodings(registry)) == []
        return summary

    return run_compress


@pytest.fixture
def encodings() -> Callable[[Registry], dict[str, Encoding]]:
    """`encodings(registry)`: the current encodings of the only cohort, by adapter."""

    def by_ref(registry: Registry) -> dict[str, Encoding]:
        (cohort,) = registry.cohorts()
        by_id = {encoding.adapter_id: encoding for encoding in registry.encodings(cohort.id)}
        return {adapter.ref: by_id[adapter.id] for adapter in registry.adapters() if adapter.id in by_id}

    return by_ref


# -- a base model --------------------------------------------------------------------------------

TINY_SHAPES = ((32, 4, 32), (16, 4, 32)) * 2
"""Modules of the tiny base model, as `builders.layout` takes them."""


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Any:
    """The tiny Llama as a `BaseModel`."""
    from lorareg.compress.base_model import BaseModel

    return BaseModel(tiny_path)


@pytest.fixture(scope="session")
def tiny_layout() -> Layout:
    """Of adapters that fit the tiny Llama."""
    return cast(Layout, builders.layout(TINY_SHAPES))


@pytest.fixture
def add_tiny(make_adapter: Callable[..., Path], tiny_layout: Layout) -> Callable[..., Adapter]:
    """`add_tiny(registry, "a", tokens=..., samples=...)`: ingest an adapter of the tiny Llama."""

    def add(
        registry: Registry, name: str, *, size: float = 0.1, tokens: Any = None, samples: Sequence[str] | None = None
    ) -> Adapter:
        modules = builders.factors(tiny_layout, zlib.crc32(name.encode()), size)
        tensors = {}
        for module, factors in zip(tiny_layout.modules, modules, strict=True):
            key = f"base_model.model.{module}.lora_"
            tensors |= {f"{key}A.weight": factors.a.astype(np.float32), f"{key}B.weight": factors.b.astype(np.float32)}
        path = make_adapter(name, rank=4, modules=tiny_layout.modules, width=32, tensors=tensors)
        if tokens is not None:
            save_file({"input_ids": tokens}, path / EVAL_FILE)
        if samples is not None:
            (path / SAMPLES_FILE).write_text(json.dumps(samples))
        registry.ingest(read_folder(path), name=name)
        return registry.adapter(name)

    return add


@pytest.fixture
def served(
    registry: Registry, make_adapter: Callable[..., Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """A registry with an adapter of two versions, which the environment names."""
    for seed in (1, 2):
        registry.ingest(read_folder(make_adapter(f"v{seed}", seed=seed)), name="task")
    registry.tag(registry.adapter("task@1"), "stable")
    monkeypatch.setenv("LORAREG_HOME", str(home))
    monkeypatch.delenv("LORAREG_VLLM_CACHE", raising=False)
    monkeypatch.delenv("LORAREG_VLLM_ANY_BASE", raising=False)
    return registry
