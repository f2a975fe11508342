"""Adapters of several layouts that began alike share one cohort's generator."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blob_damage
import numpy as np
import pytest

from lorareg.cli.main import main
from lorareg.compress import pipeline
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import restore_weights
from lorareg.compress.pipeline import CohortSummary, compress
from lorareg.compress.planning.team import train_module
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import check_encodings
from lorareg.compress.tasks.interpolate import interpolate
from lorareg.registry.errors import InterpolationError, MissingExtraError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.report import build_report
from lorareg.registry.store import Registry
from lorareg.registry.types import Adapter, Encoding

MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")
WIDTH = 48

Add = Callable[..., Adapter]


@pytest.fixture
def add(registry: Registry, make_adapter: Callable[..., Path]) -> Add:
    """Ingest an adapter that began where all do: the base model's own directions, strongest first, as in PiSSA."""

    def ingest(
        name: str,
        *,
        rank: int = 4,
        modules: tuple[str, ...] = MODULES,
        init: int = 0,
        dtype: Any = np.float32,
        extra: bool = False,
        **config: Any,
    ) -> Adapter:
        own, tensors = np.random.default_rng(zlib.crc32(name.encode())), {}
        for module in modules:
            start = np.random.default_rng([init, zlib.crc32(module.encode())])
            fall = 0.7 ** np.arange(8)[:, None]
            a, b = fall * start.normal(size=(8, WIDTH)), fall * start.normal(size=(8, WIDTH + 2))
            a = a[:rank] + 0.02 * own.normal(size=(rank, WIDTH))
            b = b[:rank].T + 0.5 * fall[:rank].T * own.normal(size=(WIDTH + 2, rank))
            key = f"base_model.model.{module}.lora_"
            tensors |= {f"{key}A.weight": a.astype(dtype), f"{key}B.weight": b.astype(dtype)}
        if extra:
            tensors["base_model.model.score.weight"] = np.ones((3, 5), np.float32)
            config["modules_to_save"] = ["score"]
        folder = make_adapter(name, modules=(), tensors=tensors, config={"r": rank, "lora_alpha": rank, **config})
        return registry.ingest(read_folder(folder), name=name).adapter

    return ingest


def run(registry: Registry, **options: Any) -> dict[str, CohortSummary]:
    held = {name: options.pop(name) for name in ("tolerance", "budget") if name in options}
    summaries = compress(registry, (), CompressOptions(Contract(**held), **options), Silent())
    assert list(check_encodings(registry)) == []
    assert [found for found in registry.check(read_data=True) if found.severity == "error"] == []
    return {summary.cohort: summary for summary in summaries}


def encoding_of(registry: Registry, adapter: Adapter) -> Encoding:
    found = registry.encoding(adapter.id)
    assert found is not None
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    "another scale": {"lora_alpha": 32},
    "half precision": {"dtype": np.float16},
    "a saved head": {"extra": True},
    "a smaller rank": {"rank": 2},
    "a larger rank": {"rank": 6},
    "fewer modules": {"modules": MODULES[:2]},
    "more modules": {"modules": (*MODULES, "model.layers.2.self_attn.q_proj")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_single_adapter_of_another_layout_takes_less_with_the_cohorts_generator(
    variant: dict[str, Any], registry: Registry, add: Add
) -> None:
    odd = add("odd", **variant)
    for index in range(8):
        add(f"task-{index}")
    summaries = run(registry)
    large, small = (registry.cohort(name) for name in summaries)
    if large.id == odd.cohort_id:
        large, small = small, large
    (generator,) = registry.generators(large.id)
    assert registry.generators(small.id) == []
    with_it = encoding_of(registry, odd)
    assert with_it.generator_id == generator.id
    assert (
        f"1 of 1 encoded against generator {generator.arch} v1 of cohort {large.name}" in summaries[small.name].message
    )

    run(registry, arch="none", retrain=True)
    assert encoding_of(registry, odd).generator_id is None
    assert with_it.size_bytes < encoding_of(registry, odd).size_bytes


def test_what_began_elsewhere_or_for_another_base_model_borrows_nothing(registry: Registry, add: Add) -> None:
    others = [
        add("seed", init=1, lora_alpha=32),
        add("base", lora_alpha=32, base_model_name_or_path="tiny/other"),
        add("far", modules=("model.layers.7.self_attn.q_proj",)),
    ]
    for index in range(8):
        add(f"task-{index}")
    run(registry)
    assert [encoding_of(registry, other).generator_id for other in others] == [None] * 3


def test_it_is_lent_for_the_architecture_asked_for_and_never_for_training_anew(registry: Registry, add: Add) -> None:
    odd = add("odd", lora_alpha=32)
    for index in range(8):
        add(f"task-{index}")
    run(registry)
    lent = encoding_of(registry, odd)
    assert lent.generator_id is not None
    run(registry, retrain=True)
    assert encoding_of(registry, odd).generator_id is None


def test_a_lent_generator_that_is_too_large_now_is_lent_no_more(registry: Registry, add: Add) -> None:
    odd = add("odd", lora_alpha=32)
    for index in range(8):
        add(f"task-{index}")
    run(registry)
    lent = encoding_of(registry, odd).generator_id
    assert lent is not None
    run(registry, generator_budget=registry.generator(lent).size_bytes - 1)
    assert encoding_of(registry, odd).generator_id != lent


@pytest.mark.parametrize("is_there", [True, False], ids=["torch", "no torch"])
def test_a_network_is_lent_where_its_latents_can_be_found(
    is_there: bool, registry: Registry, add: Add, quick_refinement: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    for index in range(4):
        first = add(f"task-{index}")
    summary = run(registry, arch="slots", steps=2)[registry.cohort(first.cohort_id).name]
    odd = add("odd", lora_alpha=32)
    fits: list[int] = []

    def module() -> Any:
        fits.append(1)
        if not is_there:
            raise MissingExtraError(feature="Training a generator", package="torch", extra="train")
        return train_module()

    monkeypatch.setattr(pipeline, "train_module", module)
    run(registry)
    assert summary.generator == "slots v1"
    assert fits
    (lender,) = registry.generators(first.cohort_id)
    assert encoding_of(registry, odd).generator_id == (lender.id if is_there else None)


def test_a_lent_generator_that_is_damaged_is_done_without(registry: Registry, add: Add) -> None:
    odd = add("odd", lora_alpha=32)
    for index in range(8):
        add(f"task-{index}")
    run(registry)
    lent = encoding_of(registry, odd).generator_id
    assert lent is not None
    blob_damage.overwrite(registry.blobs, registry.generator(lent).sha256, b"rot")
    own = registry.cohort(odd.cohort_id).name
    compress(registry, [own], CompressOptions(Contract()), Silent())  # the lender's cohort is not among them
    assert encoding_of(registry, odd).generator_id is None
    compress(registry, [], CompressOptions(Contract()), Silent())
    assert list(check_encodings(registry)) == []


def test_a_lent_generator_goes_where_its_adapters_go(registry: Registry, add: Add, tmp_path: Path) -> None:
    odd = add("odd", rank=2)
    others = [add(f"task-{index}") for index in range(8)]
    run(registry)
    weights = restore_weights(registry, odd, encoding_of(registry, odd))

    with registry.reading() as connection:
        report = build_report(connection, registry)
        shares = [adapter.amortised_bytes for adapter in report.adapters]
    generator_bytes = sum(cohort.generator_bytes for cohort in report.cohorts)
    assert generator_bytes == report.totals.stored["generators"] > 500
    stored = sum(cohort.stored_bytes for cohort in report.cohorts)
    assert sum(shares) == pytest.approx(stored, abs=generator_bytes / 8)  # nine adapters bear it, none of it twice

    for command in (
        ["export", "odd", "--out", tmp_path / "odd.tar", "--home", registry.home],
        ["import", tmp_path / "odd.tar", "--home", tmp_path / "other"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in command])
        assert not stopped.value.code
    with Registry.open(tmp_path / "other", create=False) as elsewhere:
        there = elsewhere.adapter("odd")
        assert restore_weights(elsewhere, there, encoding_of(elsewhere, there)) == weights
        assert [found for found in elsewhere.check(read_data=True) if found.severity == "error"] == []

    for other in others:
        registry.remove(other)
    assert restore_weights(registry, odd, encoding_of(registry, odd)) == weights


def test_nothing_is_interpolated_between_adapters_that_are_drawn_in_part(registry: Registry, add: Add) -> None:
    add("odd", rank=2)
    add("even", rank=2)
    for index in range(8):
        add(f"task-{index}")
    run(registry)
    if registry.generators(registry.adapter("odd").cohort_id):
        pytest.fail("two adapters should not pay for a generator of their own")
    with pytest.raises(InterpolationError, match="of another cohort, which draws them in part"):
        interpolate(registry, "odd", "even", 0.5)
