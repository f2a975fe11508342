"""Verifying at all three levels: with the original, without it, and with another base model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.contracts.judge import Judge, Judges
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import Verdict, prove_again, verify
from lorareg.registry.errors import MissingBlobError, NoCertificateError, OriginalGoneError
from lorareg.registry.prune import plan
from lorareg.registry.store import Registry
from lorareg.registry.sweep import retire, sweep
from lorareg.registry.types import WEIGHTS_FILE, Adapter

TOKENS = np.random.default_rng(0).integers(0, 64, (6, 20))
LEVELS = ("kl", "gain")


@pytest.fixture
def task(registry: Registry, tiny_path: Path, add_tiny: Callable[..., Adapter]) -> Adapter:
    """An adapter of the tiny model that is held to its weights, divergence and gain."""
    pytest.importorskip("torch")
    adapter = add_tiny(registry, "a", size=0.2, tokens=learned(tiny_path, registry, add_tiny))
    held = Contract(tolerance=0.3, kl=0.5, gain=0.5)
    compress(registry, (), CompressOptions(held, "none", tiny_path), Silent())
    return adapter


def learned(tiny_path: Path, registry: Registry, add_tiny: Callable[..., Adapter]) -> Any:
    """Tokens on which the adapter gains something: those it writes itself."""
    from lorareg.compress.contracts.distill import self_written
    from lorareg.compress.factors.weights import read_weights
    from lorareg.registry.types import Layout

    judge = Judges(registry, tiny_path, 0, Silent()).of("tiny/base-model", "--gain")
    adapter = add_tiny(registry, "a", size=0.2)
    layout = Layout.from_json(registry.cohort(adapter.cohort_id).layout)
    factors = read_weights(registry.read_file(adapter, WEIGHTS_FILE), layout)
    return self_written(judge.model, judge.model.weights_of(layout, factors), 6, 20, 0)


@pytest.fixture
def judge(registry: Registry, tiny_path: Path) -> Judge:
    return Judges(registry, tiny_path, 0, Silent()).of("tiny/base-model", "--gain")


def drop_original(registry: Registry) -> None:
    assert len(retire(registry, {blob.sha256: blob.proof for blob in plan(registry.fetch).fresh})) == 1
    sweep(registry, timedelta(0))


def recorded(registry: Registry, task: Adapter) -> dict[str, Any]:
    encoding = registry.encoding(task.id)
    assert encoding is not None
    return dict(json.loads(encoding.fidelity))


def test_all_levels_are_measured_anew(registry: Registry, task: Adapter, judge: Judge) -> None:
    verdict = verify(registry, task, judge, LEVELS)
    assert (verdict.problems, verdict.original) == ([], "kept")
    then = recorded(registry, task)
    for name in ("relative_error", "kl_divergence", "gain_retained"):
        assert verdict.measured[name] == pytest.approx(then[name], rel=1e-6)
    assert then["base_model_sha256"] == judge.model.digest
    assert {"worst_module", "max_error", "not_a_number", "infinite", "least_cosine"} <= verdict.measured.keys()
    assert len(verdict.modules) == 4


def test_without_the_original_gain_is_measured_and_the_error_estimated(
    registry: Registry, task: Adapter, judge: Judge
) -> None:
    drop_original(registry)
    verdict = verify(registry, task, judge, LEVELS)
    assert (verdict.problems, verdict.original) == ([], "pruned")
    then = recorded(registry, task)
    assert verdict.measured["gain_retained"] == pytest.approx(then["gain_retained"], rel=1e-6)
    assert "kl_divergence" not in verdict.measured
    assert verdict.estimated["low"] <= then["relative_error"] <= verdict.estimated["high"]
    with pytest.raises(OriginalGoneError, match="a@1 was pruned"):
        prove_again(registry, task)


@pytest.mark.parametrize("gone", [False, True])
def test_another_base_model_is_noticed(registry: Registry, task: Adapter, judge: Judge, gone: bool) -> None:
    if gone:
        drop_original(registry)
    judge.model.digest = "f" * 64
    (problem,) = verify(registry, task, judge, LEVELS).problems
    assert problem.endswith("and this one is ffffffffffff")


def test_what_no_longer_holds_is_said(registry: Registry, task: Adapter, judge: Judge, monkeypatch: Any) -> None:
    worse = {"kl_divergence": 0.9, "gain_retained": 0.2, "kl_measured_on": "x"}
    monkeypatch.setattr(Judge, "divergence", lambda *_: dict(worse))
    monkeypatch.setattr(Judge, "gain", lambda *_: dict(worse))
    problems = verify(registry, task, judge, LEVELS).problems
    then = recorded(registry, task)
    assert f"its kl_divergence was recorded as {then['kl_divergence']:.6g}, and is 0.9 now" in problems
    assert "kl=0.5 was asked for, and it is 0.9 now" in problems
    assert "gain=0.5 was asked for, and it is 0.2 now" in problems


def test_a_contract_that_was_never_held_is_said(registry: Registry, task: Adapter, judge: Judge) -> None:
    encoding = registry.encoding(task.id)
    assert encoding is not None
    with registry.writing() as session:
        from lorareg.registry.schema import EncodingRow

        row = session.get(EncodingRow, encoding.id)
        assert row is not None
        row.tolerance = json.dumps({"relative_error": 0.001})
    verdict = verify(registry, task)
    assert "its certificate is stale: its rows say something else now" in verdict.problems
    assert any("does not hold its contract: relative_error is" in problem for problem in verdict.problems)


def test_what_has_no_code_has_nothing_to_prove(registry: Registry, add_tiny: Callable[..., Adapter]) -> None:
    adapter = add_tiny(registry, "a")
    verdict: Verdict = verify(registry, adapter)
    assert (verdict.holds, verdict.encoding_id) == (True, None)
    with pytest.raises(NoCertificateError, match="a@1 has no certificate: it is stored as it came"):
        prove_again(registry, adapter)
    path = registry.blobs.path(registry.files(adapter)[2].sha256)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert verify(registry, adapter).problems != []


def test_an_original_that_was_lost_is_not_taken_for_pruned(registry: Registry, task: Adapter, tiny_path: Path) -> None:
    weights = next(file for file in registry.files(task) if file.path == WEIGHTS_FILE)
    registry.blobs.path(weights.sha256).unlink()
    verdict = verify(registry, task)
    assert (verdict.original, verdict.problems) == ("missing", ["its original is missing, and was not pruned"])
    with pytest.raises(MissingBlobError, match=weights.sha256):
        compress(registry, (), CompressOptions(Contract(tolerance=0.5), "none"), Silent())


def test_without_a_certificate_nothing_is_made_of_a_code_alone(registry: Registry, task: Adapter) -> None:
    drop_original(registry)
    with registry.writing() as session:
        session.connection().exec_driver_sql("DELETE FROM certificate")
    (summary,) = compress(registry, (), CompressOptions(Contract(tolerance=0.9), "none"), Silent())
    assert "a@1 stays as it is: its original is gone, and its code was never certified" in summary.message
    assert verify(registry, task).problems == ["its original is pruned and it has no certificate"]
