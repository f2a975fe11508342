"""Arrays of a whole cohort: the same results on disk and in parts as in memory and whole."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.codec.encode import Original
from lorareg.compress.factors import scratch
from lorareg.compress.factors.canonical import COMPARED, group_by_init
from lorareg.compress.factors.scratch import parts_of, scratch_arrays
from lorareg.compress.factors.weights import Factors, write_weights
from lorareg.compress.generators import linear_basis
from lorareg.compress.generators.group import Group
from lorareg.compress.planning.coordinates import EMPTY, Turned, in_coordinates
from lorareg.compress.planning.plan import Members, Planner
from lorareg.compress.progress import Silent

SHAPES = ((40, 2, 48), (24, 2, 48))
COUNT = 5


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on every array goes to disk, and is read a few rows at a time."""

    def change() -> None:
        monkeypatch.setattr(scratch, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(scratch, "PART_BYTES", 8 * 100)

    return change


def members_of(make: ModuleType, folder: Path) -> Members:
    layout, common = make.layout(SHAPES), make.factors(make.layout(SHAPES), 0)
    originals = []
    for index in range(COUNT):
        own = make.factors(layout, 1 + index, size=0.4)
        moved = [Factors(b=f.b + o.b, a=f.a + 0.1 * o.a) for f, o in zip(common, own, strict=True)]
        originals.append(make.original(layout, moved))
    return Members(layout, originals, [EMPTY] * COUNT, "", 0.2, folder)


def test_large_arrays_are_on_disk_and_leave_no_file(on_disk: Callable[[], None], tmp_path: Path) -> None:
    on_disk()
    first, second = scratch_arrays([(3, 4), (2, 5, 6)], tmp_path)
    assert (first.shape, second.shape, first.dtype) == ((3, 4), (2, 5, 6), np.float32)
    assert not isinstance(first, np.memmap)
    first[:], second[:] = 1.5, 2.5
    assert (first == 1.5).all()
    assert (second == 2.5).all()
    assert np.shares_memory(first.base, second.base)
    assert list(tmp_path.iterdir()) == []


def test_small_arrays_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda **_: pytest.fail("a file was made"))
    assert [array.shape for array in scratch_arrays([(3, 4), (2, 5)], None)] == [(3, 4), (2, 5)]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_a_full_disk_is_an_error_before_anything_is_written(
    on_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    on_disk()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        scratch_arrays([(3, 4)], tmp_path)


@pytest.mark.parametrize(("length", "items"), [(0, 5), (1, 5), (10, 1), (10, 33), (10, 10**9), (7, 0)])
def test_parts_cover_an_axis_once(length: int, items: int, on_disk: Callable[[], None]) -> None:
    on_disk()
    parts = parts_of(length, items)
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    assert all((part.stop - part.start) * items <= 100 or part.stop - part.start == 1 for part in parts)


@pytest.mark.parametrize("kind", ["mean", "linear"])
def test_plans_are_the_same_on_disk(kind: str, make: ModuleType, on_disk: Callable[[], None], tmp_path: Path) -> None:
    def planned() -> Any:
        planner = Planner(members_of(make, tmp_path), Silent())
        mean = planner.mean(planner.without_generator())
        return mean if kind == "mean" or mean is None else planner.linear(mean)

    before = planned()
    on_disk()
    after = planned()
    assert after.file == before.file
    assert after.estimated_bytes == before.estimated_bytes
    assert all(np.array_equal(x, y) for x, y in zip(after.latents, before.latents, strict=True))


def test_a_basis_is_found_in_parts(make: ModuleType, on_disk: Callable[[], None], tmp_path: Path) -> None:
    planner = Planner(members_of(make, tmp_path), Silent())
    weights = [np.ones((2, 1))] * len(planner.slots)

    def found() -> linear_basis.Basis:
        components = linear_basis.find_components(planner.slots, planner.centres, weights)
        return linear_basis.find_basis(planner.slots, planner.centres, components, 2)

    before = found()
    on_disk()
    after = found()
    for x, y in zip(after.tables, before.tables, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ["slots", "conv1d"])
def test_training_is_the_same_on_disk(
    arch: str, make: ModuleType, on_disk: Callable[[], None], one_thread: None, tmp_path: Path
) -> None:
    train = pytest.importorskip("lorareg.compress.generators.train")
    checkpoint = pytest.importorskip("lorareg.compress.generators.checkpoint")

    def trained(name: str) -> Any:
        config = replace(train.PRESETS[arch], steps=2, refine_steps=1, batch_size=3)
        members = replace(members_of(make, tmp_path), conditions=[np.full(3, i, np.int8) for i in range(COUNT)])
        planner = Planner(members, Silent())
        mean = planner.mean(planner.without_generator())
        assert mean is not None
        path = checkpoint.Checkpoint(tmp_path / name)
        return planner.trained(arch, mean, lambda _, group: train.train_generator(group, config, path, Silent()))

    before = trained("before")
    on_disk()
    after = trained("after")
    assert after.file == before.file
    assert all(np.array_equal(x, y) for x, y in zip(after.latents, before.latents, strict=True))


def test_a_cohort_takes_the_memory_of_a_few_adapters(
    make: ModuleType, on_disk: Callable[[], None], tmp_path: Path
) -> None:
    examples = pytest.importorskip("lorareg.compress.generators.examples")
    layout, count = make.layout(((512, 8, 512),) * 4), 64

    def read(index: int) -> bytes:
        common, own = make.factors(layout, 0), make.factors(layout, 1 + index)
        moved = [Factors(b=o.b, a=f.a + 0.1 * o.a) for f, o in zip(common, own, strict=True)]
        return write_weights(layout, moved)

    originals = [Original(f"adapter {index}", partial(read, index), layout) for index in range(count)]
    members = Members(layout, originals, [np.zeros(3, np.int8)] * count, "text:test", 0.2, tmp_path)
    template = make.generator("mean", layout, coordinates="balanced")
    group = Group(
        layout,
        "balanced",
        "text:test",
        Turned(originals, template),
        members.conditions,
        template.means,
        template.slot_exponents,
        0.2,
        tmp_path,
    )
    assert originals[0].factors  # what is imported and cached once
    on_disk()
    tracemalloc.start()
    try:
        planner = Planner(members, Silent())
        blocks = examples.blocks_of(group, "slots")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    cohort = 4 * layout.weight_count * count
    assert sum(slot.nbytes for slot in planner.slots) == cohort
    assert sum(block.numel() * 4 for block in blocks) == cohort
    assert peak < cohort / 3  # both at once; in double precision alone it would be four times `cohort`


def test_turned_adapters_are_read_one_at_a_time(make: ModuleType) -> None:
    layout, read = make.layout(SHAPES), []

    def original(index: int) -> Original:
        data = make.original(layout, seed=index).data

        def look() -> bytes:
            read.append(index)
            return data

        return Original(f"adapter {index}", look, layout)

    originals = [original(index) for index in range(3)]
    generator = make.generator("mean", layout, coordinates="balanced")
    adapters = Turned(originals, generator)
    assert (len(adapters), read) == (3, [])
    for index, modules in enumerate(adapters):
        assert read == list(range(index + 1))
        expected = in_coordinates(make.original(layout, seed=index).factors, generator)
        assert all(np.array_equal(x.b, y.b) for x, y in zip(modules, expected, strict=True))
    assert [len(list(adapters)) for _ in range(2)] == [3, 3]  # as often as wanted


def test_large_adapters_are_told_apart_by_a_part_of_a() -> None:
    def modules(seed: int, size: int) -> Sequence[Factors]:
        return [Factors(b=np.zeros((1, 2)), a=np.random.default_rng(seed).normal(size=(2, size)))]

    adapters = [modules(seed, COMPARED) for seed in (0, 1, 0)]
    assert group_by_init(adapters) == [[0, 2], [1]]
