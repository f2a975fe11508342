"""Fixtures of the compress room."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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
def sample_registry(tmp_path: Path, sample_adapters: Path) -> Iterator[Callable[..., Registry]]:
    """`sample_registry("man-de", "man-nl")`: a new registry with those sample adapters."""
    opened = []

    def build(*tasks: str) -> Registry:
        registry = Registry.open(tmp_path / "home", create=True)
        opened.append(registry)
        for task in tasks:
            registry.ingest(read_folder(sample_adapters / task), name=task)
        return registry

    yield build
    for registry in opened:
        registry.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that sums come in one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
