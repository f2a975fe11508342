"""Proxies of gain: the statistics against known answers, and the points on a stand-in for the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def test_correlations_of_a_monotone_figure() -> None:
    from proxy_statistics import pearson, spearman

    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, 2 * x + 1) == pytest.approx(1.0)
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert pearson(x, np.ones(4)) == 0.0


def test_equal_values_share_their_rank() -> None:
    from proxy_statistics import ranks

    assert ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_the_area_is_the_chance_to_rank_a_bad_one_above_a_good_one() -> None:
    from proxy_statistics import auc

    x = np.array([1.0, 2.0, 2.0, 3.0])
    bad = np.array([False, False, True, True])
    assert auc(x, bad) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert np.isnan(auc(x, np.ones(4, bool)))


def test_the_monotone_fit_pools_what_falls() -> None:
    from proxy_statistics import isotonic

    x, fit = isotonic(np.array([3.0, 1.0, 2.0, 4.0]), np.array([2.0, 0.0, 4.0, 5.0]))
    assert x.tolist() == [1, 2, 3, 4]
    assert fit.tolist() == [0, 3, 3, 5]


def test_a_group_is_predicted_from_the_others_alone() -> None:
    from proxy_statistics import left_out

    x, groups = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), np.array(list("aaabbb"))
    found = left_out(x, np.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]), groups)
    assert found.tolist() == [10, 20, 30, 1, 2, 3]


def test_skips_are_counted_apart() -> None:
    from proxy_statistics import skips

    forecast, lost = np.array([0.5, 0.1, 0.02, 0.001]), np.array([0.2, 0.005, 0.05, 0.0])
    found = skips(forecast, lost, 0.99, 3.0)
    assert (found.failing, found.skipped, found.passing, found.wrongly) == (2, 1, 2, 1)


def test_a_power_law_is_found_again() -> None:
    from proxy_statistics import power_law

    x = np.array([0.1, 0.2, 0.4, 0.8])
    assert power_law(x, 0.5 * x**2) == pytest.approx((0.5, 2.0), rel=1e-6)


def searched(lost_at_half: float, power: float) -> list[dict[str, Any]]:
    """Points of one adapter whose losses are a power of the error."""
    return [
        {
            "adapter": "a",
            "relative_error": error,
            "gain": 1 - lost_at_half * (2 * error) ** power,
            "kl_samples": (2 * error) ** 4,
            "kl_samples_base": 10.0,
        }
        for error in (0.1, 0.2, 0.4, 0.8)
    ]


@pytest.mark.parametrize("forecasts", [False, True])
def test_a_replayed_search_finds_what_holds(forecasts: bool) -> None:
    from searches import SIZE_SLOPE, replay

    found = replay(searched(0.05, 3.0), 0.97, forecasts=forecasts)
    assert (found.unheld, found.skipped_wrongly) == (0, 0)
    assert 1 <= found.measured <= found.encoded <= 5
    coarsest = 0.5 * (0.03 / 0.05) ** (1 / 3)
    assert coarsest**SIZE_SLOPE <= found.size <= (0.8 * coarsest) ** SIZE_SLOPE


def test_what_holds_nothing_is_counted() -> None:
    from searches import replay

    assert replay(searched(1e6, 0.0), 0.9, forecasts=False).unheld == 1


def test_strength_is_what_is_left_along_the_original(study: Any) -> None:
    from proxy_points import weight_figures
    from proxy_statistics import PROXIES

    from lorareg.compress.factors.weights import Factors

    layout = study.cohort.layout
    original = study.cohort.originals[0].factors
    halved = [Factors(b=0.5 * f.b, a=f.a) for f in original]
    moments = [np.eye(f.a.shape[1], dtype=np.float32) for f in original]
    row = weight_figures(layout, original, halved, moments)
    assert PROXIES["strength lost, 1 - <ΔW, ΔW'> / |ΔW|²"](row) == pytest.approx(0.5)
    assert PROXIES["strength lost, mean logarithm over modules"](row) == pytest.approx(np.log(2))
    assert row["module_errors"] == pytest.approx([0.5] * len(original))
    assert row["input_error"] == pytest.approx(0.5)  # inputs of no direction feel the norm
    assert sum(row["module_shares"]) == pytest.approx(1)


def test_rows_are_spread_over_a_text() -> None:
    from proxy_points import spread

    rows = np.arange(10)[:, None]
    assert spread(rows, 2).ravel().tolist() == [0, 9]
    assert spread(rows, 4).ravel().tolist() == [0, 3, 6, 9]
    assert spread(rows, 20).ravel().tolist() == list(range(10))


def test_points_are_shown_as_they_were_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import proxies
    from proxy_statistics import PROXIES
    from results import Results

    results = Results(tmp_path / "p.json", {}, fresh=True, sources=())
    for adapter in range(4):
        for error in (0.1, 0.3, 0.6):
            results.rows[f"{adapter} {error}"] = {
                "adapter": str(adapter),
                "rate": f"none {error}",
                "gain": 1 - 0.2 * error**2 * (1 + 0.1 * adapter),
                "gain_noise": 0.001,
                "relative_error": error,
                "worst_module_error": 1.2 * error,
                "cosine": 1 - error**2,
                "input_error": error,
                "module_shares": [0.5, 0.5],
                "module_errors": [error, error],
                "module_strengths": [1 - error**2] * 2,
                **{f"kl_{text}": error**2 for text in ("samples", "probe", "evaluation")},
                "kl_samples_base": 2.0,
                "kl_probe_base": 1.0,
                "loss_base": 3.0,
                "loss_original": 2.0,
                **{f"{key}_s": 1.0 for key in ("encode", "compare", "model")},
            }
    proxies.show("four", results, tmp_path / "p.png")
    out = capsys.readouterr().out
    assert "four: 12 points of 4 adapters" in out
    assert all(proxy in out for proxy in PROXIES)
    told = {one["proxy"]: one for one in json.loads((tmp_path / "p.json").read_text())["telling"]}
    assert told["KL, samples"]["spearman"] > 0.9
    assert told["KL, samples"]["error"] < 0.01


# -- the gate's bench ----------------------------------------------------------------------------


def test_a_collection_is_held_to_a_tolerance(tmp_path: Path, sample_adapters: Path) -> None:
    import gate

    from lorareg.compress.contracts.contract import Contract

    folders = gate.folders_of(sample_adapters)
    row = gate.Job(sample_adapters, Contract(0.3), adapters=2).run()
    assert [one["adapter"] for one in row["adapters"]] == [folder.name for folder in folders[:2]]
    line = dict(zip(gate.COLUMNS, gate.line_of(row), strict=True))
    assert (line["held to"], line["residual"], line["lossless"]) == ("relative_error 0.3", "2", "0")
    assert 0.28 < float(line["worst error"]) <= 0.3
    assert float(line["worst module's"]) > 0.3
    assert row["trials"] == {}


def test_contracts_are_read_from_words() -> None:
    import gate

    from lorareg.compress.contracts.contract import Contract

    assert gate.read_contract("weight=0.5,kl=0.02,gain=0.97") == Contract(0.5, kl=0.02, gain=0.97)
    with pytest.raises(SystemExit, match=r"budget=0\.01: a contract names weight, kl and gain"):
        gate.read_contract("budget=0.01")


def test_measurements_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import gate

    from lorareg.compress.contracts.judge import Judge

    judge = Judge(SimpleNamespace(), SimpleNamespace(), 0)  # type: ignore[arg-type]
    monkeypatch.setattr(Judge, "gain", lambda self, case, restored: {"gain_retained": 1.0})
    with gate.counted_judge() as counts:
        assert [judge.gain(case, []) for case in ({}, {})] == [{"gain_retained": 1.0}] * 2  # type: ignore[arg-type]
    assert len(counts["gain"]) == 2
    judge.gain({}, [])  # type: ignore[arg-type]
    assert len(counts["gain"]) == 2
