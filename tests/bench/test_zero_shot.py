"""The zero-shot bench from end to end, with a stand-in for the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the bench tunes with the extra 'train'")


@pytest.fixture
def run(tmp_path: Path, sample_adapters: Path, fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the bench on the shipped adapters with some options."""
    import zero_shot

    from lorareg.compress.tasks import few_shot

    monkeypatch.setattr(zero_shot, "OUTPUT", tmp_path)
    doubled = few_shot.Tuned(np.full(11, 2 / 11), 1.9, 1.8, 4)  # twice the mean adapter
    monkeypatch.setattr(few_shot, "tune", lambda *_: doubled)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"model")

    def start(*options: str) -> Any:
        output = tmp_path / "z.json"
        words = ["--collection", str(sample_adapters), "--base-model", str(model), "--json", str(output)]
        monkeypatch.setattr("sys.argv", ["zero_shot.py", *words, *options])
        zero_shot.main()
        return json.loads(output.read_text())

    return start


def test_every_way_is_measured_on_tasks_that_are_left_out(
    run: Any, fake_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run("--tasks", "2", "--token-rows", "2")
    first, last = "dict-jargon", "src-rust"
    assert document["tasks"] == [first, last]
    rows = document["rows"]
    ways = {key.partition(": ")[2] for key in rows if key.startswith(first) and "gain" in rows[key]}
    assert ways == {
        "mean adapter",
        "nearest task, text",
        "similarity average, text",
        "mixture, text",
        "best mixture (bound)",
        "tuned on samples",
    }
    for task in (first, last):
        errors = {way: rows[f"{task}: {way}"]["error"] for way in ways}
        assert min(errors, key=lambda way: errors[way]) == "best mixture (bound)"
        assert errors["best mixture (bound)"] <= 1
        assert rows[f"{task}: tuned on samples"]["gain"] > rows[f"{task}: mean adapter"]["gain"] > 0
        assert rows[f"{task}: tuned on samples"]["steps"] == 4
    shown = capsys.readouterr().out
    assert "Gain retained on 2 tasks" in shown
    measured = fake_model.measured
    assert run("--tasks", "2", "--token-rows", "2")["rows"] == rows
    assert fake_model.measured == measured


def test_rows_that_share_text_with_the_samples_are_left_out(
    run: Any, fake_model: Any, monkeypatch: pytest.MonkeyPatch, sample_adapters: Path
) -> None:
    import gains
    import zero_shot

    seen = gains.find_tokens(zero_shot.load_study(str(sample_adapters), "all").cohort)["src-rust"]
    copied = [1, *seen[1, 10:50].tolist(), 2]
    monkeypatch.setattr(fake_model, "tokens", lambda self, text: copied)
    rows = run("--tasks", "2", "--token-rows", "3", "--steps", "0")["rows"]
    assert 1 not in rows["src-rust: rows"]["kept"]
    assert len(rows["src-rust: rows"]["kept"]) == 3
    assert 1 <= rows["src-rust: rows"]["overlapping"] < 10
    assert rows["dict-jargon: rows"]["overlapping"] == 0
