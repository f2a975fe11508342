"""Measuring how close two adapters are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lorareg.compress.factors.fidelity import compare_folders, energy, measure
from lorareg.compress.factors.weights import Factors
from lorareg.registry.errors import InvalidAdapterError, LayoutMismatchError
from lorareg.registry.types import Layout


def rank_one(b: list[float], a: list[float]) -> Factors:
    return Factors(b=np.array(b)[:, None], a=np.array(a)[None])


@pytest.fixture
def layout(make: ModuleType) -> Layout:
    made: Layout = make.layout(((2, 1, 2), (2, 1, 2)), scale=3.0)
    return made


ORIGINAL = [rank_one([1, 0], [3, 0]), rank_one([0, 1], [0, 4])]


def test_the_same_adapter_is_exact(layout: Layout) -> None:
    found = measure(layout, ORIGINAL, ORIGINAL)
    assert (found.relative_error, found.cosine, found.worst_module_error, found.exact) == (0.0, 1.0, 0.0, True)


def test_another_gauge_is_close_but_not_exact(layout: Layout) -> None:
    found = measure(layout, ORIGINAL, [rank_one([3, 0], [1, 0]), rank_one([0, -2], [0, -2])])
    assert found.relative_error == pytest.approx(0, abs=1e-7)
    assert found.cosine == pytest.approx(1)
    assert not found.exact


def test_errors_of_a_hand_made_pair(layout: Layout) -> None:
    # ΔW energies are 9·9 and 9·16; the first module loses all of it, the second keeps it.
    found = measure(layout, ORIGINAL, [rank_one([0, 0], [0, 0]), ORIGINAL[1]])
    assert found.relative_error == pytest.approx(3 / 5)
    assert found.cosine == pytest.approx(4 / 5)
    assert found.worst_module == layout.modules[0]
    assert found.worst_module_error == pytest.approx(1)


def test_the_worst_module_is_relative_to_itself(layout: Layout) -> None:
    found = measure(layout, ORIGINAL, [ORIGINAL[0], rank_one([0, 1], [0, -4])])
    assert found.worst_module == layout.modules[1]
    assert found.worst_module_error == pytest.approx(2)
    assert found.relative_error == pytest.approx(8 / 5)


def test_scales_weigh_modules(make: ModuleType) -> None:
    made = make.layout(((2, 1, 2), (2, 1, 2)))
    layout = Layout(made.slots, (4.0, 0.0))
    nothing = rank_one([0, 0], [0, 0])
    assert measure(layout, ORIGINAL, [ORIGINAL[0], nothing]).relative_error == 0
    assert measure(layout, ORIGINAL, [nothing, ORIGINAL[1]]).relative_error == pytest.approx(1)


def test_zero_adapters(layout: Layout) -> None:
    zero = [rank_one([0, 0], [1, 2])] * 2
    assert measure(layout, zero, zero).exact
    other = measure(layout, zero, [rank_one([0, 0], [5, 5])] * 2)
    assert (other.relative_error, other.exact) == (0.0, False)
    assert measure(layout, zero, ORIGINAL).relative_error == np.inf
    assert measure(layout, ORIGINAL, zero).relative_error == pytest.approx(1)


def test_energy_is_the_squared_norm_of_the_product() -> None:
    random = np.random.default_rng(0)
    factors = Factors(b=random.normal(size=(7, 3)), a=random.normal(size=(3, 5)))
    assert energy(factors) == pytest.approx(np.linalg.norm(factors.b @ factors.a) ** 2)


# -- folders -------------------------------------------------------------------------------------


def test_folders_compare(make_adapter: Callable[..., Path]) -> None:
    first, second = make_adapter("one", seed=1), make_adapter("two", seed=2)
    assert compare_folders(first, first).exact
    assert compare_folders(first, second).relative_error > 0.5


def test_real_folders_compare(sample_adapters: Path) -> None:
    found = compare_folders(sample_adapters / "man-nl", sample_adapters / "man-de")
    assert 0.1 < found.relative_error < 3
    assert 0 < found.cosine < 1
    assert json.loads(json.dumps(found.to_dict()))["worst_module"].endswith("_proj")


def test_folders_of_other_layouts_are_refused(make_adapter: Callable[..., Path]) -> None:
    first, second = make_adapter("one"), make_adapter("two", width=8)
    with pytest.raises(LayoutMismatchError, match=rf"{second} has layout [0-9a-f]{{16}}, but [0-9a-f]{{16}} is needed"):
        compare_folders(first, second)


def test_what_is_no_folder_is_refused(make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError, match="missing"):
        compare_folders(make_adapter("one"), tmp_path / "missing")
