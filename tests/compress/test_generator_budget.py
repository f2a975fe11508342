"""`--generator-budget`: tables that get coarser, networks that grow, and what happens where nothing is small enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import unpack_generator
from lorareg.compress.pipeline import CohortSummary
from lorareg.compress.planning import choose
from lorareg.compress.planning.choose import GeneratorChoice
from lorareg.compress.planning.coordinates import EMPTY
from lorareg.compress.planning.plan import Members, Plan, Planner
from lorareg.compress.progress import Silent
from lorareg.registry.errors import ContractError
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding, Layout

Run = Callable[..., CohortSummary]
SHAPES = ((40, 2, 48), (24, 2, 48))
NAMES = ("a", "b", "c", "d", "e", "f")


def members_of(make: ModuleType, count: int = 8) -> Members:
    """Adapters that are much alike: the mean table pays."""
    layout, common = make.layout(SHAPES), make.factors(make.layout(SHAPES), 0)
    originals = []
    for index in range(count):
        own = make.factors(layout, 1 + index, size=0.2)
        moved = [Factors(b=f.b + o.b, a=f.a + 0.02 * o.a) for f, o in zip(common, own, strict=True)]
        originals.append(make.original(layout, moved))
    return Members(layout, originals, [EMPTY] * count, "", 0.2)


def planned(members: Members, most_bytes: float = math.inf) -> tuple[Planner, Plan | None]:
    planner = Planner(members, Silent(), most_bytes)
    return planner, planner.mean(planner.without_generator())


def choice_of(members: Members, tmp_path: Path, arch: str = "auto", cap: int | None = None) -> GeneratorChoice:
    options = CompressOptions(arch=arch, generator_budget=cap)
    return GeneratorChoice(members, ["digest"] * len(members.originals), options, tmp_path / "checkpoints", Silent())


# -- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_tables_get_coarser_until_they_fit(share: float, make: ModuleType) -> None:
    members = members_of(make)
    planner, free = planned(members)
    assert free is not None
    low = planner.smallest_bytes()
    cap = low + share * (len(free.file) - low)
    _, capped = planned(members, cap)
    assert capped is not None
    assert low <= len(capped.file) <= cap
    assert capped.estimated_bytes > free.estimated_bytes
    assert capped.metrics["precision"] > free.metrics["precision"]
    assert len(unpack_generator(capped.file, members.layout).means) == len(members.layout.slots)


def test_a_cap_that_does_not_bind_changes_nothing(make: ModuleType) -> None:
    members = members_of(make)
    _, free = planned(members)
    assert free is not None
    _, capped = planned(members, len(free.file) * 3)
    assert capped is not None
    assert (capped.file, capped.estimated_bytes, capped.metrics) == (free.file, free.estimated_bytes, free.metrics)


@pytest.mark.parametrize("size", [0, 1])
def test_the_smallest_tables_fit_and_one_byte_less_does_not(size: int, make: ModuleType) -> None:
    members = members_of(make, 4)
    planner = Planner(members, Silent())
    hint = planner.without_generator()
    smallest = planner.smallest_bytes(size)

    def within(most_bytes: int) -> Plan | None:
        mean = planner.mean(hint)
        assert mean is not None
        capped = planner.within(most_bytes)
        return capped.linear(mean) if size else capped.mean(hint)

    found = within(smallest)
    assert found is not None
    assert len(found.file) <= smallest
    assert unpack_generator(found.file, members.layout).latent_size == size
    assert within(smallest - 1) is None


# -- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["mean", "linear", "auto"])
def test_a_chosen_generator_keeps_the_cap(arch: str, make: ModuleType, tmp_path: Path) -> None:
    members = members_of(make)
    free = choice_of(members, tmp_path, arch).best()
    cap = int(0.8 * len(free.file))
    choice = choice_of(members, tmp_path, arch, cap)
    plan = choice.best()
    assert 0 < len(plan.file) <= cap
    assert f"with a generator of at most {cap / 1e3:g} kB: no generator " in choice.message
    assert f"kB (its file {len(plan.file) / 1e3:.1f} kB)" in choice.message


@pytest.mark.parametrize(("arch", "extra"), [("mean", 0), ("linear", 1)])
def test_a_cap_that_nothing_keeps_is_refused(arch: str, extra: int, make: ModuleType, tmp_path: Path) -> None:
    members = members_of(make)
    smallest = Planner(members, Silent()).smallest_bytes(extra)
    message = (
        f"--generator-budget 100 is not valid: the smallest {arch} generator of these 8 adapters takes {smallest} bytes"
    )
    with pytest.raises(ContractError, match=re.escape(message)):
        choice_of(members, tmp_path, arch, 100).best()
    assert len(choice_of(members, tmp_path, arch, smallest).best().file) <= smallest


def test_auto_does_without_where_nothing_is_small_enough(make: ModuleType, tmp_path: Path) -> None:
    choice = choice_of(members_of(make), tmp_path, "auto", 100)
    plan = choice.best()
    assert (plan.loaded, plan.file) == (None, b"")
    assert choice.message.endswith("stored with no generator, as no generator is small enough")


# -- networks ------------------------------------------------------------------------------------


class FakeTraining:
    """Stands for the training room: networks whose totals and files are as a test says, by width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, saved: Mapping[int, float], bits: int = 6) -> None:
        self.widths: list[int] = []
        self.means: list[int] = []  # bytes of the mean table beside each

        def trained(planner: Planner, arch: str, mean: Plan, train: Any) -> Plan:
            (sizes,) = train.args
            width = sizes["hidden"]
            self.widths.append(width)
            self.means.append(len(mean.file))
            assert mean.loaded is not None
            loaded = replace(mean.loaded, generator=replace(mean.loaded.generator, arch=arch))
            return replace(mean, loaded=loaded, estimated_bytes=mean.estimated_bytes * (1 - saved[width]))

        train = pytest.importorskip("lorareg.compress.generators.train")
        monkeypatch.setattr(Planner, "trained", trained)
        monkeypatch.setattr(train, "bits_of", lambda name, config: bits)
        monkeypatch.setattr(choose, "NETWORK_WORTH_TRYING", 3)


@pytest.mark.parametrize(
    ("saved", "widths"),
    [
        ({16: 0.1, 32: 0.2, 64: 0.3, 128: 0.4, 256: 0.5}, [16, 32, 64, 128, 256]),
        ({16: 0.1, 32: 0.2, 64: 0.1}, [16, 32, 64]),
        ({16: -0.1}, [16]),
    ],
)
def test_auto_widens_a_network_while_it_pays(
    saved: dict[int, float], widths: list[int], make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training = FakeTraining(monkeypatch, saved)
    choice = choice_of(members_of(make), tmp_path)
    best = choice.best()
    assert training.widths == widths
    assert (choose._arch(best) == "slots") == (saved[16] > 0)
    named = ["slots", *(f"slots ({width} wide)" for width in widths[1:])]
    assert all(f", {name} " in choice.message for name in named)
    most = max(saved, key=lambda width: saved[width])
    if saved[most] > 0:
        assert choice.message.endswith(f"stored with {named[widths.index(most)]}")


def test_the_preset_alone_is_trained_on_request(
    make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training = FakeTraining(monkeypatch, {16: 0.1, 32: 0.2})
    choice_of(members_of(make), tmp_path, "slots").best()
    assert training.widths == [16]


def test_a_network_grows_within_its_cap(make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    members = members_of(make)
    training = FakeTraining(monkeypatch, {16: 0.1, 32: 0.2, 64: 0.3})
    _, mean = planned(members)
    assert mean is not None
    room = choice_of(members, tmp_path)._network_bytes("slots", {"hidden": 32, "inner": 32})
    choice = choice_of(members, tmp_path, "slots", len(mean.file) + room)
    choice.best()
    assert training.widths == [16, 32, *([64] if 64 in training.widths else [])]
    assert training.means[:2] == [len(mean.file)] * 2


def test_the_mean_table_makes_room_for_a_network(
    make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    members = members_of(make)
    training = FakeTraining(monkeypatch, {16: 0.1, 32: -1.0})
    planner, mean = planned(members)
    assert mean is not None
    network = choice_of(members, tmp_path)._network_bytes("slots", {"hidden": 16, "inner": 16})
    spare = (len(mean.file) - planner.smallest_bytes()) // 2
    choice_of(members, tmp_path, "slots", len(mean.file) + network - spare).best()
    assert training.means[0] <= len(mean.file) - spare


def test_a_network_that_cannot_be_small_enough_is_refused(
    make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    members = members_of(make)
    training = FakeTraining(monkeypatch, {})
    choice = choice_of(members, tmp_path, "slots", 1000)
    smallest = Planner(members, Silent()).smallest_bytes() + choice._network_bytes("slots", {"hidden": 16, "inner": 16})
    with pytest.raises(ContractError, match=f"the smallest slots generator of these 8 adapters takes {smallest} bytes"):
        choice.best()
    assert training.widths == []


def test_real_networks_keep_the_cap_and_leave_no_checkpoint(
    registry: Registry, run: Run, add_group: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(choose, "WIDEST", 32)
    add_group(registry, *NAMES[:3])
    summary = run(registry, arch="slots", steps=2, generator_budget=20_000)
    (record,) = registry.generators(registry.cohorts()[0].id)
    assert record.size_bytes <= 20_000
    assert re.search(r"slots \d+ kB \(its file [\d.]+ kB\), slots \(32 wide\)", summary.message)
    assert not list((registry.home / "checkpoints").glob("*"))


# -- a generator that exists ---------------------------------------------------------------------


def test_a_larger_generator_is_not_used_within_a_smaller_cap(
    registry: Registry, run: Run, encodings: Callable[[Registry], dict[str, Encoding]], add_group: Callable[..., None]
) -> None:
    add_group(registry, *NAMES[:4])
    run(registry, arch="mean", tolerance=0.1)
    (first,) = registry.generators(registry.cohorts()[0].id)
    add_group(registry, "later")
    unbound = run(registry, arch="mean", generator_budget=first.size_bytes)
    assert (unbound.encoded, unbound.unchanged) == (1, 4)
    assert "encoded against generator mean v1" in unbound.message
    summary = run(registry, arch="mean", generator_budget=first.size_bytes - 1)
    assert (summary.encoded, summary.unchanged) == (5, 0)
    assert f"generator mean v1 is not used: its file takes {first.size_bytes} bytes" in summary.message
    used = {encoding.generator_id for encoding in encodings(registry).values()} - {None}
    by_id = {record.id: record for record in registry.generators(registry.cohorts()[0].id)}
    assert all(by_id[one].size_bytes < first.size_bytes for one in used if one is not None)
    assert summary.worst_relative_error <= 0.1  # nobody asked for a coarser contract


def test_adapters_without_a_large_generator_are_left_alone(
    registry: Registry, run: Run, add_group: Callable[..., None]
) -> None:
    add_group(registry, *NAMES[:3])
    run(registry, arch="none")
    summary = run(registry, generator_budget=10)
    assert (summary.encoded, summary.unchanged) == (0, 3)


@pytest.mark.parametrize("size", [0, -5])
def test_a_generator_takes_at_least_a_byte(size: int) -> None:
    message = f"--generator-budget {size} is not valid: a generator takes at least one byte"
    with pytest.raises(ContractError, match=re.escape(message)):
        CompressOptions(generator_budget=size)


def test_layouts_name_what_a_network_takes(make: ModuleType, tmp_path: Path) -> None:
    """Twice the width takes about twice the bytes: the heads are most of it."""
    pytest.importorskip("torch")
    layout: Layout = make.layout(SHAPES)
    members = Members(layout, [make.original(layout)] * 2, [np.zeros(4, np.int8)] * 2, "text:x", 0.2)
    choice = choice_of(members, tmp_path)
    sizes = [choice._network_bytes("slots", {"hidden": h, "inner": h}) for h in (16, 32, 64)]
    assert 1.8 < sizes[1] / sizes[0] < 3 < sizes[2] / sizes[0]
