"""Between two adapters: the ends are what is stored, the middle is what the formula says, and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import encode
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.generators.generator import pack_generator, predict
from lorareg.compress.materialize import restore_weights, write_folder
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.tasks.interpolate import (
    BASE,
    DELTA_AVERAGE,
    FACTOR_AVERAGE,
    INTERPOLATION,
    Between,
    added,
    files_of,
    interpolate,
    losses_of,
    merged,
)
from lorareg.registry.errors import ContractError, IntegrityError, InterpolationError, UnknownAdapterError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Layout, NewEncoding, NewGenerator, sha256_hex

AddGroup = Callable[..., None]
NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture
def linear(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, add_group: AddGroup
) -> Iterator[Registry]:
    """Four adapters encoded against a linear generator: made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "interpolated"
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    else:
        with Registry.open(home, create=True) as registry:
            add_group(registry, *NAMES, alike=0.5)
            compress(registry, (), CompressOptions(arch="linear"), Silent())
        shutil.copytree(tmp_path, kept)
    with Registry.open(home, create=False) as registry:
        yield registry


def stored(registry: Registry, task: str) -> bytes:
    adapter = registry.adapter(task)
    return restore_weights(registry, adapter, registry.encoding(adapter.id))


def drawn_between(registry: Registry, between: Between) -> tuple[Factors, ...]:
    """What the generator draws at the rounded mean of two codes' inputs."""
    record, share = between.generator, between.weight
    made = LoadedGenerator.from_bytes(registry.blobs.get(record.sha256), record.sha256, between.layout).generator
    ends = (between.first, between.second)
    inputs = [
        np.rint((1 - share) * x.astype(int) + share * y.astype(int)).astype(np.int8)
        for x, y in ([end.latent for end in ends], [end.condition for end in ends])
    ]
    return predict(made, between.layout, *inputs).factors


def code_near_a_generator(registry: Registry, make: ModuleType, coordinates: str) -> None:
    """Give every adapter of the only cohort a code against a linear generator of random integers."""
    (cohort,) = registry.cohorts()
    layout = Layout.from_json(cohort.layout)
    made = make.generator("linear", layout, coordinates=coordinates)
    file = pack_generator(made, layout)
    record = registry.record_generator(
        NewGenerator(cohort.id, registry.blobs.put_bytes(file), len(file), "linear", "", {}, {})
    )
    for seed, adapter in enumerate(registry.adapters()):
        original, draft = make.near_prediction(layout, make.loaded(layout, made), seed, 0.3)
        encoded = encode(original, draft, 0.1)
        assert encoded.uses_generator
        registry.record_encoding(
            NewEncoding(
                adapter_id=adapter.id,
                generator_id=record.id,
                codec=encoded.codec.name,
                tier=encoded.codec.tier,
                sha256=registry.blobs.put_bytes(encoded.code),
                size_bytes=len(encoded.code),
                output_digest=sha256_hex(encoded.output),
                output_bytes=len(encoded.output),
                tolerance={"relative_error": 0.1},
                fidelity=encoded.fidelity.to_dict(),
            )
        )


def same(first: list[Factors], second: list[Factors], atol: float = 1e-12) -> None:
    for x, y in zip(first, second, strict=True):
        np.testing.assert_allclose(x.b, y.b, atol=atol, rtol=0)
        np.testing.assert_allclose(x.a, y.a, atol=atol, rtol=0)


# -- what comes out ------------------------------------------------------------------------------


def test_the_ends_are_the_stored_adapters(linear: Registry) -> None:
    assert interpolate(linear, "alpha", "beta", 0.0).output == stored(linear, "alpha")
    assert interpolate(linear, "alpha", "beta", 1.0).output == stored(linear, "beta")
    assert interpolate(linear, "alpha", "beta", 1.0).distances["beta@1"] == 0


def test_the_middle_lies_between(linear: Registry) -> None:
    between = interpolate(linear, "alpha", "beta", 0.5)
    found, apart = between.distances, interpolate(linear, "alpha", "beta", 0.0).distances["beta@1"]
    assert 0.2 * apart < found["alpha@1"] < 0.9 * apart
    assert 0.2 * apart < found["beta@1"] < 0.9 * apart
    nearer = interpolate(linear, "alpha", "beta", 0.1).distances
    assert nearer["alpha@1"] < found["alpha@1"]
    assert nearer["beta@1"] > found["beta@1"]


def test_a_linear_generator_gives_the_average_of_factors(linear: Registry) -> None:
    between = interpolate(linear, "alpha", "beta", 0.3)
    assert between.coordinates == "shared"
    assert between.distances[FACTOR_AVERAGE] < 0.01  # what rounding a latent to int8 leaves


def test_a_network_bends_between_its_latents(registry: Registry, run: Callable[..., Any], add_group: AddGroup) -> None:
    pytest.importorskip("torch")
    add_group(registry, *NAMES, alike=0.5)
    run(registry, arch="slots", steps=40)
    between = interpolate(registry, "alpha", "beta", 0.5)
    assert between.generator.arch == "slots"
    parts = [drawn_between(registry, between), between.first.drawn, between.second.drawn]
    halves = added([between.first.factors, between.second.factors], (0.5, 0.5))
    same(between.factors, added([halves, *parts], (1.0, 1.0, -0.5, -0.5)))
    assert between.distances[FACTOR_AVERAGE] > 1e-4


def test_without_a_shared_gauge_updates_are_added(
    registry: Registry, make: ModuleType, make_adapter: Callable[..., Path]
) -> None:
    for name in NAMES[:2]:
        registry.ingest(read_folder(make_adapter(name)), name=name)
    code_near_a_generator(registry, make, "balanced")
    between = interpolate(registry, "alpha", "beta", 0.25)
    assert between.coordinates == "balanced"
    first, second, drawn = between.first, between.second, drawn_between(registry, between)
    parts = zip(first.factors, second.factors, drawn, first.drawn, second.drawn, strict=True)
    for found, (a, b, p, p_a, p_b) in zip(between.factors, parts, strict=True):
        wanted = 0.75 * (a.delta - p_a.delta) + 0.25 * (b.delta - p_b.delta) + p.delta
        u, s, vt = np.linalg.svd(wanted)
        rank = found.rank
        np.testing.assert_allclose(found.delta, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-9)
    assert between.distances[DELTA_AVERAGE] > 0.01
    assert interpolate(registry, "alpha", "beta", 0.0).output == stored(registry, "alpha")


def test_merged_is_the_nearest_of_its_rank(make: ModuleType) -> None:
    layout = make.layout()
    adapters = [make.factors(layout, seed) for seed in range(3)]
    ranks, weights = [slot.shape[0] for slot in layout.slots[0::2]], (0.5, 1.5, -0.7)
    for index, found in enumerate(merged(adapters, weights, ranks)):
        whole = sum(w * modules[index].delta for w, modules in zip(weights, adapters, strict=True))
        u, s, vt = np.linalg.svd(whole)
        best = (u[:, : ranks[index]][:, : len(s)] * s[: ranks[index]]) @ vt[: ranks[index]][: len(s)]
        np.testing.assert_allclose(found.delta, best, atol=1e-10)
        assert (found.b.shape, found.a.shape) == (layout.slots[2 * index + 1].shape, layout.slots[2 * index].shape)


def test_added_sums_factors(make: ModuleType) -> None:
    first, second = (make.factors(make.layout(), seed) for seed in (1, 2))
    for total, x, y in zip(added([first, second], (0.25, 0.75)), first, second, strict=True):
        np.testing.assert_allclose(total.b, 0.25 * x.b + 0.75 * y.b)
        np.testing.assert_allclose(total.a, 0.25 * x.a + 0.75 * y.a)


def test_the_folder_is_an_adapter_that_says_what_it_is(linear: Registry, tmp_path: Path) -> None:
    between = interpolate(linear, "alpha", "beta", 0.5)
    assert between.folder == Path("alpha-beta-0.5")
    files = files_of(linear, between)
    write_folder(tmp_path / "out", files)
    assert read_folder(tmp_path / "out").layout == between.layout
    assert files[CONFIG_FILE] == linear.read_file(linear.adapter("alpha"), CONFIG_FILE)
    card = files[CARD_FILE].decode()
    assert "nobody trained these weights, and their quality is unproven" in card
    assert "`alpha@1` and `beta@1` at a weight of 0.5" in card
    assert "generator linear v1" in card
    restored = read_weights(files[WEIGHTS_FILE], between.layout)
    same(list(restored), between.factors, atol=1e-6)


# -- losses --------------------------------------------------------------------------------------


def test_losses_are_of_both_tasks(
    registry: Registry, make: ModuleType, add_tiny: Callable[..., Any], tiny_model: Any
) -> None:
    from lorareg.compress.contracts.judge import Judge

    random = np.random.default_rng(0)
    for name in NAMES[:2]:
        add_tiny(registry, name, tokens=random.integers(1, 64, (2, 24)).astype(np.int32))
    code_near_a_generator(registry, make, "shared")
    first, second = "alpha@1", "beta@1"
    between = interpolate(registry, first, second, 0.5)
    judge = Judge(tiny_model, registry, 0)
    found = losses_of(between, judge)
    assert list(found.by_name) == [BASE, first, second, INTERPOLATION, DELTA_AVERAGE, FACTOR_AVERAGE]
    assert found.measured_on == ("evaluation tokens", "evaluation tokens")
    for column, end in enumerate((between.first, between.second)):
        case = judge.case(end.adapter, end.original(between.layout))
        assert found.by_name[BASE][column] == pytest.approx(case.loss_base)
        assert found.by_name[end.adapter.ref][column] == pytest.approx(case.loss_original)
    assert len({losses[0] for losses in found.by_name.values()}) == 6
    at_end = losses_of(interpolate(registry, first, second, 0.0), judge)
    assert at_end.by_name[INTERPOLATION] == pytest.approx(at_end.by_name[first])


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_weight_outside_its_range_is_refused(weight: float, linear: Registry) -> None:
    with pytest.raises(ContractError, match=f"--weight {weight:g} is not valid: it is the share of the second task"):
        interpolate(linear, "alpha", "beta", weight)


def test_one_adapter_twice_is_refused(linear: Registry) -> None:
    with pytest.raises(InterpolationError, match="alpha@1 and alpha@1 cannot be interpolated: they are the same"):
        interpolate(linear, "alpha", "alpha@1", 0.5)


def test_an_unknown_task_is_named(linear: Registry) -> None:
    with pytest.raises(UnknownAdapterError, match="No adapter 'omega'"):
        interpolate(linear, "alpha", "omega", 0.5)


def test_adapters_of_two_cohorts_are_refused(linear: Registry, make_adapter: Callable[..., Path]) -> None:
    linear.ingest(read_folder(make_adapter("small")), name="small")
    cohorts = [linear.cohort(linear.adapter(name).cohort_id).name for name in ("alpha", "small")]
    with pytest.raises(InterpolationError, match=f"one is of cohort {cohorts[0]}, the other of {cohorts[1]}"):
        interpolate(linear, "alpha", "small", 0.5)


def test_an_adapter_without_a_code_is_refused(linear: Registry, add_group: AddGroup) -> None:
    add_group(linear, "late")
    with pytest.raises(
        InterpolationError, match=r"late@1 has no code\. Run `lorareg compress --arch linear --retrain`"
    ):
        interpolate(linear, "alpha", "late", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "none"}, r"late@1 has a code without a generator \(tier residual\)"),
        ({"tolerance": 0.0}, r"late@1 has a code without a generator \(tier lossless\)"),
    ],
)
def test_a_code_without_a_generator_is_refused(
    options: dict[str, Any], message: str, linear: Registry, run: Callable[..., Any], add_group: AddGroup
) -> None:
    add_group(linear, "late", init=3)
    run(linear, **options)
    with pytest.raises(InterpolationError, match=message):
        interpolate(linear, "late", "alpha", 0.5)


def test_codes_against_two_generators_are_refused(
    linear: Registry, run: Callable[..., Any], add_group: AddGroup
) -> None:
    add_group(linear, "p", "q", "r", init=5)
    run(linear, arch="linear")
    with pytest.raises(InterpolationError, match="one is coded against generator linear v1, the other against linear"):
        interpolate(linear, "alpha", "p", 0.5)


def test_a_mean_table_has_nothing_to_go_between(
    registry: Registry, run: Callable[..., Any], add_group: AddGroup
) -> None:
    add_group(registry, *NAMES)
    run(registry, arch="mean")
    with pytest.raises(InterpolationError, match=r"generator mean v1 has neither latents nor conditions"):
        interpolate(registry, "alpha", "beta", 0.5)


def test_damage_is_never_interpolated(linear: Registry) -> None:
    encoding = linear.encoding(linear.adapter("beta").id)
    assert encoding is not None
    path = linear.blobs.path(encoding.sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        interpolate(linear, "alpha", "beta", 0.5)


def test_a_weight_too_large_for_its_dtype_is_refused(linear: Registry) -> None:
    between = interpolate(linear, "alpha", "beta", 0.5)
    huge = [Factors(b=f.b * 1e39, a=f.a) for f in between.factors]
    with pytest.raises(InterpolationError, match=r"a weight does not fit F32\. Choose a weight nearer"):
        _ = replace(between, factors=huge).output
