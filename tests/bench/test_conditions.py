"""Drawing adapters from conditions alone: the rows are what they say, and a stopped run goes on."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import conditions


@pytest.fixture
def arguments(sample_adapters: Path, tmp_path: Path) -> Namespace:
    return Namespace(
        folder=sample_adapters,
        adapters=5,
        held_out=2,
        masks=[0.5],
        base_model=None,
        kl_weight=1e-6,
        steps=2,
        json=tmp_path / "conditions.json",
        fresh=False,
    )


def test_rows_are_of_known_tasks_and_of_those_left_out(
    arguments: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, row = conditions.measured(arguments)
    assert (table["name"], row["name"]) == ("mean table", "text, 50% masked")
    assert table["held_out"] == table["held_out_others"]
    assert 0 < table["known"] < table["held_out"] < 1.5
    assert len(row["errors"]) == 5
    assert row["held_out"] != row["held_out_others"]
    assert row["mask_share"] == 0.5

    def trained(*_: Any) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr(conditions, "train_generator", trained)
    assert conditions.measured(arguments) == [table, row]
    conditions.print_rows([table, row])
    assert "text, 50% masked" in capsys.readouterr().out


def test_too_few_left_out_is_told(arguments: Namespace) -> None:
    arguments.held_out = 1
    with pytest.raises(SystemExit, match="hold out 2 or more"):
        conditions.measured(arguments)
