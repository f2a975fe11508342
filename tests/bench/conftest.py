"""The benchmarks are scripts: their folder is put where they find each other, as running one does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))


@pytest.fixture(scope="session")
def study(sample_adapters: Path) -> Any:
    """The shipped adapters, three of them held out."""
    from study import load_study

    return load_study(str(sample_adapters), None)


@pytest.fixture(scope="session")
def whole(sample_adapters: Path) -> Any:
    """The shipped adapters, shared from all of them."""
    from study import load_study

    return load_study(str(sample_adapters), "all")
