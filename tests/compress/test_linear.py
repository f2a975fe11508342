"""The linear generator: finding a cohort's subspace, drawing from it, and when it is worth its bytes."""

from __future__ import annotations

import gc
import json
import struct
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.generators import linear_decoder
from lorareg.compress.generators.generator import LATENT_EXPONENT, Generator, pack_generator, predict, unpack_generator
from lorareg.compress.generators.grid import factor_rows
from lorareg.compress.generators.linear_basis import Basis, find_basis, find_components, fit_latent, row_weights
from lorareg.compress.integers.tensors import round_tensor
from lorareg.compress.planning import plan
from lorareg.compress.planning.coordinates import EMPTY, draft_of, latent_of
from lorareg.compress.planning.plan import MAX_LINEAR, Members, Planner
from lorareg.compress.progress import Silent
from lorareg.registry.errors import InvalidContainerError
from lorareg.registry.types import Layout

SHAPES = ((40, 2, 48), (24, 2, 48)) * 2
COUNT = 12
TOLERANCE = 0.2
FINE = -12


def cohort(make: ModuleType, layout: Layout, *, directions: int, noise: float = 0.0) -> list[list[Factors]]:
    """Adapters around a common one: random mixtures of a few directions, and something of their own."""
    common = make.factors(layout, 0)
    planted = [make.factors(layout, 100 + i, size=0.5) for i in range(directions)]
    random = np.random.default_rng(7)
    adapters = []
    for index in range(COUNT):
        weights = random.uniform(-1, 1, directions)
        own = make.factors(layout, 1000 + index)
        adapters.append(
            [
                Factors(
                    b=f.b + sum(w * d[i].b for w, d in zip(weights, planted, strict=True)) + noise * own[i].b,
                    a=f.a + 0.1 * (sum(w * d[i].a for w, d in zip(weights, planted, strict=True)) + noise * own[i].a),
                )
                for i, f in enumerate(common)
            ]
        )
    return adapters


def slots_of(adapters: Sequence[Sequence[Factors]]) -> list[Any]:
    """For every slot, its rows in each adapter, as a planner holds them."""
    return [np.stack(slot).astype(np.float32) for slot in zip(*map(factor_rows, adapters), strict=True)]


def basis_of(adapters: Sequence[Sequence[Factors]], size: int) -> tuple[Basis, list[Float64], list[Any]]:
    slots = slots_of(adapters)
    means = [slot.mean(axis=0, dtype=float) for slot in slots]
    return find_basis(slots, means, find_components(slots, means, row_weights(adapters[0])), size), means, slots


def generator_of(basis: Basis, means: Sequence[Float64], exponent: int = FINE) -> Generator:
    tables = [round_tensor(table.reshape(-1, table.shape[-1]), exponent) for table in basis.tables]
    return Generator(
        arch=linear_decoder.NAME,
        coordinates="raw",
        encoder="",
        latent_size=len(basis.latents[0]),
        condition_size=0,
        config={},
        slot_exponents=(exponent,) * len(means),
        tensors={f"basis.{index}": table for index, table in enumerate(tables)},
        means=tuple(round_tensor(mean, exponent) for mean in means),
    )


# -- the basis -----------------------------------------------------------------------------------


def explained(basis: Basis, means: Sequence[Float64], slots: Sequence[Any]) -> float:
    """The share of the cohort's deviations from its mean that the stored latents and tables draw."""
    latents = np.ldexp(np.stack(basis.latents).astype(float), LATENT_EXPONENT)
    lost = total = 0.0
    for slot, mean, table in zip(slots, means, basis.tables, strict=True):
        wanted = slot - mean
        lost += float(np.sum((wanted - np.tensordot(latents, table, axes=1)) ** 2))
        total += float(np.sum(wanted**2))
    return 1 - lost / total


def test_a_planted_subspace_is_found(make: ModuleType) -> None:
    adapters = cohort(make, make.layout(SHAPES), directions=2)
    one, two, three = (explained(*basis_of(adapters, size)) for size in (1, 2, 3))
    assert one < 0.9
    assert two > 0.9995
    assert three >= two - 1e-4


def test_components_come_strongest_first_and_fill_their_range(make: ModuleType) -> None:
    adapters = cohort(make, make.layout(SHAPES), directions=4, noise=0.05)
    basis, _, _ = basis_of(adapters, 4)
    latents = np.stack(basis.latents)
    assert (latents.dtype, latents.shape) == (np.int8, (COUNT, 4))
    assert np.abs(latents).max(axis=0).tolist() == [125] * 4
    energies = [sum(float(np.sum(table[k] ** 2)) for table in basis.tables) for k in range(4)]
    first, _, _ = basis_of(adapters, 1)
    np.testing.assert_array_equal(np.abs(np.stack(first.latents)[:, 0]), np.abs(latents[:, 0]))
    assert energies[0] > energies[-1]


def test_independent_adapters_have_no_small_subspace(make: ModuleType) -> None:
    adapters = cohort(make, make.layout(SHAPES), directions=0, noise=1.0)
    assert explained(*basis_of(adapters, 2)) < 0.5


def test_as_many_components_as_adapters_draw_everything(make: ModuleType) -> None:
    adapters = cohort(make, make.layout(SHAPES), directions=0, noise=1.0)
    assert explained(*basis_of(adapters, COUNT - 1)) > 0.999


def test_equal_adapters_have_an_empty_basis(make: ModuleType) -> None:
    adapters = [make.factors(make.layout(SHAPES), 0)] * 5
    basis, _, _ = basis_of(adapters, 2)
    assert all(np.isfinite(table).all() and np.abs(table).max() < 1e-5 for table in basis.tables)


def test_rows_weigh_what_their_partners_weigh() -> None:
    factors = Factors(b=np.array([[3.0, 0], [4, 1]]), a=np.array([[0.0, 2, 0], [0, 0, 7]]))
    a_weights, b_weights = row_weights([factors])
    assert a_weights[:, 0].tolist() == [5, 1]
    assert b_weights[:, 0].tolist() == [2, 7]


# -- a latent for an adapter that comes later ----------------------------------------------------


def test_a_fitted_latent_is_the_one_an_adapter_was_made_with(make: ModuleType) -> None:
    layout = make.layout(SHAPES)
    adapters = cohort(make, layout, directions=2)
    basis, means, _ = basis_of(adapters, 2)
    generator = generator_of(basis, means)
    for latent, adapter in zip(basis.latents, adapters, strict=True):
        assert np.abs(fit_latent(generator, adapter).astype(int) - latent).max() <= 1


def test_what_a_generator_drew_is_fitted_exactly(make: ModuleType) -> None:
    layout = make.layout(SHAPES)
    basis, means, _ = basis_of(cohort(make, layout, directions=3), 3)
    generator = generator_of(basis, means)
    for latent in ([0, 0, 0], [127, -127, 5], [-40, 3, 90]):
        drawn = predict(generator, layout, np.array(latent, np.int8), EMPTY).factors
        fitted = fit_latent(generator, drawn)
        assert (fitted.dtype, fitted.tolist()) == (np.int8, latent)


def test_a_latent_beyond_its_range_is_clamped(make: ModuleType) -> None:
    layout = make.layout(SHAPES)
    basis, means, _ = basis_of(cohort(make, layout, directions=1), 1)
    generator = generator_of(basis, means)
    pairs = list(zip(generator.means, generator.tensors.values(), strict=True))
    rows = [mean.real + 40 * basis.real for mean, basis in pairs]
    far = [Factors(b=b.T, a=a) for a, b in zip(rows[0::2], rows[1::2], strict=True)]
    assert abs(int(fit_latent(generator, far)[0])) == 127


def test_an_untrained_adapter_has_a_latent(make: ModuleType) -> None:
    layout = make.layout(SHAPES)
    basis, means, _ = basis_of(cohort(make, layout, directions=1), 1)
    nothing = [Factors(b=0 * f.b, a=0 * f.a) for f in make.factors(layout)]
    assert fit_latent(generator_of(basis, means), nothing).tolist() == [0]


# -- the plan ------------------------------------------------------------------------------------


def planner_of(make: ModuleType, tolerance: float = TOLERANCE, **kind: Any) -> tuple[Planner, list[Original]]:
    layout = make.layout(SHAPES)
    originals = [make.original(layout, modules) for modules in cohort(make, layout, **kind)]
    return Planner(Members(layout, originals, [EMPTY] * COUNT, "", tolerance), Silent()), originals


def test_a_trajectory_is_drawn_by_a_linear_generator(make: ModuleType) -> None:
    planner, originals = planner_of(make, directions=1, noise=0.05)
    alone = planner.without_generator()
    mean = planner.mean(alone)
    linear = planner.linear(mean)
    assert linear.estimated_bytes < mean.estimated_bytes < alone.estimated_bytes
    assert linear.metrics["linear"] == 1
    assert linear.loaded is not None
    assert linear.loaded.generator.arch == "linear"
    for original, latent in zip(originals, linear.latents, strict=True):
        encoded = encode(original, draft_of(linear.loaded, original, latent, EMPTY), TOLERANCE, linear.step)
        assert encoded.fidelity.relative_error <= TOLERANCE
        assert encoded.codec.name == "generated-1"


def test_runs_of_several_tasks_are_drawn_though_no_single_table_pays(make: ModuleType) -> None:
    layout, tasks, steps = make.layout(SHAPES), 6, 8
    common, ends = make.factors(layout, 0), [make.factors(layout, 50 + task, size=0.1) for task in range(tasks)]
    originals = [
        make.original(layout, [Factors(b=f.b * step / steps, a=c.a) for c, f in zip(common, end, strict=True)])
        for end in ends
        for step in range(1, steps + 1)
    ]
    planner = Planner(Members(layout, originals, [EMPTY] * len(originals), "", TOLERANCE), Silent())
    mean = planner.mean(planner.without_generator())
    linear = planner.linear(mean)
    assert linear.metrics["linear"] >= tasks - 1
    assert linear.estimated_bytes < 0.6 * mean.estimated_bytes


def test_a_plane_of_adapters_takes_two_tables(make: ModuleType) -> None:
    planner, originals = planner_of(make, directions=2)
    linear = planner.linear(planner.mean(planner.without_generator()))
    assert linear.metrics["linear"] == 2
    assert linear.loaded is not None
    codes = [
        encode(original, draft_of(linear.loaded, original, latent, EMPTY), TOLERANCE, linear.step)
        for original, latent in zip(originals, linear.latents, strict=True)
    ]
    assert float(np.median([len(encoded.code) for encoded in codes])) == 32 + 2


def test_independent_adapters_are_left_to_the_mean(make: ModuleType) -> None:
    planner, _ = planner_of(make, directions=0, noise=1.2)
    mean = planner.mean(planner.without_generator())
    linear = planner.linear(mean)
    assert mean.estimated_bytes < linear.estimated_bytes
    assert linear.metrics["linear"] <= 2


def test_no_more_tables_than_adapters_are_tried(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, originals = planner_of(make, directions=2)
    planner.members = Members(planner.layout, originals[:3], [EMPTY] * 3, "", TOLERANCE)
    planner = Planner(planner.members, Silent())
    mean = planner.mean(planner.without_generator())
    assert 1 <= planner.linear(mean).metrics["linear"] <= 2 <= MAX_LINEAR


def test_no_more_tables_are_tried_than_a_generator_may_have(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, _ = planner_of(make, directions=4)
    mean = planner.mean(planner.without_generator())
    assert planner.linear(mean).metrics["linear"] == 4
    monkeypatch.setattr(plan, "MAX_WEIGHTS", 3 * planner.layout.weight_count - 1)
    assert planner.linear(mean).metrics["linear"] <= 2
    monkeypatch.setattr(plan, "MAX_WEIGHTS", planner.layout.weight_count - 1)
    assert planner.linear(mean) is None


def test_only_the_best_trial_is_held(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, _ = planner_of(make, directions=4)
    mean = planner.mean(planner.without_generator())
    alive: list[weakref.ref[Float64]] = []
    most = 0

    def trial(*arguments: Any) -> Any:
        nonlocal most
        made = Planner._trial(planner, *arguments)
        alive.append(weakref.ref(made.loaded.generator.means[0].values))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(planner, "_trial", trial)
    planner.linear(mean)
    assert len(alive) > 4
    assert most <= 3  # the best, the one before it, and the one just made


def test_a_later_adapter_of_the_subspace_fits_the_generator(make: ModuleType) -> None:
    planner, originals = planner_of(make, directions=2)
    linear = planner.linear(planner.mean(planner.without_generator()))
    assert linear.loaded is not None
    generator = linear.loaded.generator
    for original in originals:
        latent = latent_of(generator, original.factors)
        encoded = encode(original, draft_of(linear.loaded, original, latent, EMPTY), TOLERANCE)
        alone = encode(original, None, TOLERANCE)
        assert encoded.uses_generator
        assert len(encoded.code) < len(alone.code) / 2


def test_a_generator_without_a_latent_needs_no_fit(make: ModuleType) -> None:
    layout = make.layout()
    assert latent_of(make.generator("mean", layout), make.factors(layout)).size == 0


def test_another_tolerance_plans_anew_and_keeps_what_was_read(make: ModuleType) -> None:
    planner, _ = planner_of(make, directions=1, noise=0.05)
    looser = planner.at(0.5)
    assert (planner.members.tolerance, looser.members.tolerance) == (TOLERANCE, 0.5)
    assert looser.slots is planner.slots
    assert looser.without_generator().estimated_bytes < planner.without_generator().estimated_bytes
    again, _ = planner_of(make, 0.5, directions=1, noise=0.05)
    assert again.without_generator().estimated_bytes == looser.without_generator().estimated_bytes


# -- the decoder ---------------------------------------------------------------------------------


def test_a_drawing_is_the_mean_and_the_mixture_to_the_last_bit(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("linear", layout)
    latent, condition = make.inputs(made, 4)
    for index, factors in enumerate(predict(made, layout, latent, condition).factors):
        for offset, rows in ((0, factors.a), (1, factors.b.T)):
            slot = 2 * index + offset
            basis = made.tensors[f"basis.{slot}"]
            tables = basis.real.reshape(made.latent_size, *rows.shape)
            expected = made.means[slot].real.copy()
            for weight, table in zip(latent.tolist(), tables, strict=True):
                expected += weight / 32 * table
            np.testing.assert_array_equal(rows, expected)


def test_a_drawing_does_not_depend_on_the_order_of_tables(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("linear", layout, latent=64)
    latent = np.random.default_rng(1).integers(-127, 128, 64).astype(float) * 32
    order = np.random.default_rng(2).permutation(64)
    tensors = {
        name: round_tensor(t.real.reshape(64, -1)[order].reshape(t.values.shape), t.exponent)
        for name, t in made.tensors.items()
    }
    drawn, turned = (
        linear_decoder.decode(layout, of, z, np.zeros(0))
        for of, z in ((made.tensors, latent), (tensors, latent[order]))
    )
    for rows, other in zip(drawn, turned, strict=True):
        np.testing.assert_array_equal(rows, other)


def test_extreme_tables_stay_exact_integers(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("linear", layout, latent=4096)
    tensors = {
        name: round_tensor(np.full(t.values.shape, 1e9 * (-1) ** index), 0)
        for index, (name, t) in enumerate(made.tensors.items())
    }
    for rows in linear_decoder.decode(layout, tensors, np.full(4096, 127.0 * 32), np.zeros(0)):
        assert np.abs(rows).max() == 1 << 30


def test_a_generator_of_no_tables_draws_its_mean(make: ModuleType) -> None:
    layout = make.layout()
    made = make.generator("linear", layout, latent=0)
    back = unpack_generator(pack_generator(made, layout), layout)
    for module, a, b in zip(
        predict(back, layout, EMPTY, EMPTY).factors, back.means[0::2], back.means[1::2], strict=True
    ):
        np.testing.assert_array_equal(module.a, a.real)
        np.testing.assert_array_equal(module.b, b.real.T)


# -- hostile files -------------------------------------------------------------------------------

START = struct.Struct("<4sB3xI")
WIDE = ((2000, 8, 2000),)


def edited(file: bytes, make: ModuleType, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with another header and a seal that fits."""
    _, _, length = START.unpack_from(file)
    header = json.loads(file[START.size : START.size + length])
    change(header)
    text = json.dumps(header).encode()
    return bytes(make.reseal(START.pack(b"LORG", 1, len(text)) + text + file[START.size + length :]))


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (4096, "a network of 131072000 weights is more than the 67108864 that are read"),
        (4097, "sizes 4097, 0"),
        (1 << 60, "sizes 1152921504606846976, 0"),
        (-1, "sizes -1, 0"),
    ],
)
def test_absurd_sizes_take_no_memory(latent: int, message: str, make: ModuleType) -> None:
    layout = make.layout(WIDE)
    file = edited(
        pack_generator(make.generator("linear", layout, latent=1), layout), make, lambda h: h.update(latent_size=latent)
    )
    tracemalloc.start()
    try:
        with pytest.raises(InvalidContainerError, match=message):
            unpack_generator(file, layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("latent", [0, 1, 2])
def test_fewer_tables_than_a_file_holds_are_refused(latent: int, make: ModuleType) -> None:
    layout = make.layout()
    file = edited(
        pack_generator(make.generator("linear", layout), layout), make, lambda h: h.update(latent_size=latent)
    )
    with pytest.raises(InvalidContainerError, match="symbol"):
        unpack_generator(file, layout)


def test_slots_far_from_their_means_are_refused(make: ModuleType) -> None:
    layout = make.layout()
    file = edited(
        pack_generator(make.generator("linear", layout), layout),
        make,
        lambda h: h.update(slot_exponents=[40] * len(layout.slots)),
    )
    with pytest.raises(InvalidContainerError, match="exponents -6 and 40 are too far apart"):
        unpack_generator(file, layout)
