"""Packages that are compared with, where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what other packages warn of is theirs
]
REASON = "a package of the extra 'bench' is not installed"


def test_zipnn_gives_everything_back(study: Any) -> None:
    pytest.importorskip("zipnn", reason=REASON)
    from packages import ZipNN
    from study import Stored

    lossless, rounded = (Stored(ZipNN(as_bf16=flag), study).measure() for flag in (False, True))
    assert max(lossless["errors"]) == 0
    assert 0 < max(rounded["errors"]) < 0.005
    assert max(rounded["code_bytes"]) < 0.4 * len(study.stored.originals[0].data) < min(lossless["code_bytes"])


@pytest.mark.parametrize("packed", [False, True])
def test_vlora_gives_its_own_adapters_back(packed: bool, whole: Any) -> None:
    pytest.importorskip("vlora", reason=REASON)
    from packages import VLora
    from study import Stored

    row = Stored(VLora(32, packed), whole).measure()
    assert max(row["errors"]) < (0.4 if packed else 1e-3)


def test_the_bytes_of_vlora_are_those_of_its_files(study: Any, tmp_path: Path) -> None:
    vlora = pytest.importorskip("vlora", reason=REASON)
    from packages import TASK, VLora, _load_vlora
    from study import Stored

    method = VLora(8, False)
    stored = Stored(method, study)
    code = stored.code(study.stored.names[0])
    subspace = _load_vlora(stored.shared, method._names())
    subspace.save(tmp_path / "empty")
    assert stored.shared == b"".join((tmp_path / "empty" / name).read_bytes() for name in method._names())
    subspace.add_task(subspace.project(vlora.load_adapter(study.stored.folders[0]), TASK))
    subspace.save(tmp_path / "full")
    subspace.tasks.clear()
    assert code == (tmp_path / "full" / f"task_{TASK}.safetensors").read_bytes()


@pytest.mark.slow
def test_lorashare_projects_and_gives_back(study: Any) -> None:
    pytest.importorskip("lorashare", reason=REASON)
    from packages import LoraShare
    from study import Stored

    row = Stored(LoraShare(32), study).measure()
    assert max(row["errors"]) < 1
    assert row["shared_bytes"] > 32 * 4 * 2 * 30 * 192  # at least the bases of 30 layers
    assert min(row["code_bytes"]) > 32 * 2 * 4 * 120  # a coefficient for each direction and row of 120 factors


def test_a_package_that_is_missing_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import packages

    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "vlora" else sys)
    absent = [method for method in packages.package_methods() if isinstance(method, packages.Absent)]
    assert [method.name for method in absent] == ["vlora-dev"]
    assert "vlora not installed" in absent[0].reason
    assert "[train,bench]" in absent[0].reason


def test_weights_of_another_shape_are_refused(study: Any) -> None:
    from packages import _factors

    layout = study.cohort.layout
    with pytest.raises(ValueError, match=rf"{layout.slots[0].key} came back as \(1, 2\)"):
        _factors(layout, [np.zeros((1, 2))] * len(layout.slots))
