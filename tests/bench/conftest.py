"""The benchmarks are scripts: their folder is put where they find each other, as running one does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that stands in for the base model, with its counts anew.

    Words are tokens. A loss of 2 without an adapter, and less the larger ΔW's first module is.
    """
    import gains

    class FakeModel:
        measured = 0
        stop_after = 10**9

        def __init__(self, path: Path) -> None: ...

        def tokens(self, text: str) -> list[int]:
            return [sum(word.encode()) % 1000 for word in (text * 20).split()]

        def weights_of(self, layout: Any, factors: Any) -> float:
            return float(np.linalg.norm(factors[0].delta))

        def loss(self, tokens: Any, weights: float | None = None) -> float:
            if FakeModel.measured == FakeModel.stop_after:
                raise KeyboardInterrupt
            FakeModel.measured += 1
            return 2.0 - (weights or 0.0)

    monkeypatch.setattr(gains, "BaseModel", FakeModel)
    return FakeModel
