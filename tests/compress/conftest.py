"""Fixtures of the compress room."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry


def _load_builders() -> ModuleType:
    """`builders.py`, which lies beside the tests and in no package."""
    spec = importlib.util.spec_from_file_location("compress_builders", Path(__file__).with_name("builders.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_BUILDERS = _load_builders()
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """Makers of small layouts, adapters and generators: `make.layout()`, `make.original(layout)`, ..."""
    return _BUILDERS


@pytest.fixture(scope="session")
def sample_weights(sample_adapters: Path) -> dict[str, Any]:
    """The sample adapters as `Original`, by task."""
    from lorareg.compress.encode import Original

    read = {}
    for path in sorted(p for p in sample_adapters.iterdir() if p.is_dir()):
        data = (path / "adapter_model.safetensors").read_bytes()
        read[path.name] = Original.read(f"Adapter '{path.name}@1'", data, read_folder(path).layout)
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
