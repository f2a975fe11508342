"""The paper's protocol from end to end, on a tiny model and texts of its few words."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="fine-tuning needs the extra 'train'")
pytest.importorskip("peft", reason="fine-tuning needs the extra 'train'")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it

TASKS = ["man-it", "src-go"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two domains, as if they had been made from packages."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "texts").mkdir()
    for number, task in enumerate(TASKS):
        chosen = random.Random(number).choices(range(1 + 8 * number, 9 + 8 * number), k=128 * 52)
        (folder / "texts" / f"{task}.txt").write_text(" ".join(f"w{word}" for word in chosen))
    return folder


@pytest.fixture(scope="module")
def rows(work: Path, tiny_path: Path) -> Any:
    """What a smoke run measures, at rank 1."""
    import paper

    with pytest.MonkeyPatch.context() as patch:
        output = work / "paper.json"
        patch.setattr(paper, "OUTPUT", work)
        words = ["--size", "smoke", "--work", str(work), "--ranks", "1", "--tasks", *TASKS]
        patch.setattr("sys.argv", ["paper.py", *words, "--base-model", str(tiny_path), "--json", str(output)])
        paper.main()
        return json.loads(output.with_suffix(".rank-1.json").read_text())["rows"]


def test_every_way_is_measured_on_every_task(rows: Any) -> None:
    from paper_ways import ICM, PUBLIC

    assert {f"{ICM}, z drawn", f"{ICM}, z stored", f"{PUBLIC}, z drawn", "ours, latent alone"} <= rows.keys()
    for row in rows.values():
        assert row["losses"].keys() == set(TASKS)
        assert all(math.isfinite(loss) and loss > 0 for loss in row["losses"].values())
        assert row["perplexity"][TASKS[0]] == pytest.approx(math.exp(row["losses"][TASKS[0]]))


def test_ours_is_as_close_as_it_says(rows: Any) -> None:
    for name in ("ours, all checkpoints, error 0.2", "ours, one adapter a task, error 0.2"):
        assert max(rows[name]["errors"].values()) <= 0.2
    assert max(rows["original"]["errors"].values()) == 0
    assert min(rows["mean of the checkpoints"]["errors"].values()) > 0


def test_bytes_count_what_decoding_needs(rows: Any) -> None:
    from paper_ways import ICM, PUBLIC

    drawn, stored, own = rows[f"{ICM}, z drawn"], rows[f"{ICM}, z stored"], rows[f"{PUBLIC}, z drawn"]
    assert stored["code_bytes"][0] - drawn["code_bytes"][0] == 256  # the latent
    assert drawn["code_bytes"][0] == 32  # the condition: the tiny model's hidden size
    assert own["shared_bytes"] > 1.5 * drawn["shared_bytes"]  # a network for each of two tasks
    assert own["side_bytes"] == 2 * 4 * 2 * 4  # mean and deviation of A and B of four modules
    assert len(rows["ours, one adapter a task, error 0.2"]["code_bytes"]) == len(TASKS)


def test_bits_per_character_count_predicted_tokens(rows: Any, work: Path) -> None:
    run = json.loads((work / "runs-smoke" / "rank-1" / TASKS[0] / "run.json").read_text())
    loss = rows["original"]["losses"][TASKS[0]]
    expected = loss * 127 / math.log(2) / run["characters"][0]
    assert rows["original"]["bits_per_character"][TASKS[0]] == pytest.approx(expected)


def test_a_second_run_trains_and_measures_nothing(
    work: Path, rows: Any, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import finetune
    import gains
    import paper

    def refuse(*arguments: Any) -> None:
        raise AssertionError("it is all there")

    monkeypatch.setattr(paper, "OUTPUT", work)
    monkeypatch.setattr(finetune, "load_pretrained", refuse)
    monkeypatch.setattr(gains.Evaluator, "measure", refuse)
    words = ["--size", "smoke", "--work", str(work), "--ranks", "1", "--tasks", *TASKS]
    output = ["--json", str(work / "paper.json")]
    monkeypatch.setattr("sys.argv", ["paper.py", *words, "--base-model", str(tiny_path), *output])
    paper.main()
    printed = capsys.readouterr().out
    assert "ours, latent alone" in printed
    assert f"{rows['original']['perplexity'][TASKS[0]]:.2f} /" in printed


def test_moments_are_the_originals() -> None:
    import paper_ways

    from lorareg.compress.factors.weights import Factors, read_weights, write_weights

    layout, originals = _originals()
    drawn = write_weights(layout, [Factors(b=f.b * 3, a=f.a - 1) for f in originals[0].factors])
    moved = read_weights(paper_ways.with_moments_of(originals[1], drawn, originals[:1]), layout)
    for mine, own, first in zip(moved, originals[1].factors, originals[0].factors, strict=True):
        assert mine.b.std() == pytest.approx(3 * own.b.std(), rel=1e-5)
        expected = (first.a - 1 - first.a.mean()) / first.a.std() * own.a.std() + own.a.mean()
        np.testing.assert_allclose(mine.a, expected, atol=1e-5)


def _originals() -> Any:
    from cohort import FOLDERS, load_cohort

    cohort = load_cohort(sorted(path.parent for path in FOLDERS[1].glob("*/adapter_config.json"))[:2])
    return cohort.layout, cohort.originals
