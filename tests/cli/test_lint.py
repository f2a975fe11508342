"""`lorareg lint` and `materialize --profile` as a person meets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def broken(folders: Path) -> Path:
    """One adapter of the folder has a config that is no JSON, one is DoRA by its config."""
    (folders / "man-de" / "adapter_config.json").write_text("{")
    config = folders / "man-nl" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    return folders


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Where a registry may be made."""
    return tmp_path / "registry"


def test_lint_looks_at_folders_that_ingest_refuses(run: Run, broken: Path) -> None:
    done = run("lint", broken, "--json")
    assert done.exit_code == 46
    found = {Path(one["adapter"]).name: [f["rule"] for f in one["findings"]] for one in done.data["adapters"]}
    assert found["man-de"] == ["cannot-be-read"]
    assert found["man-nl"] == ["not-for-vllm", "not-for-sglang", "not-for-lorax"]
    assert found["src-rust"] == []
    assert done.data["counts"] == {"error": 1, "warning": 0, "note": 3}
    assert "1 of 3 adapters would not work as they are" in done.err


def test_lint_looks_at_tasks_and_archives(run: Run, empty: Path, folders: Path, tmp_path: Path) -> None:
    assert run("ingest", folders, "--home", empty).exit_code == 0
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folders / "man-nl")
    done = run("lint", "man-de", archive, "--home", empty, "--profile", "vllm", "--json")
    assert done.exit_code == 0
    assert [(one["adapter"], one["findings"]) for one in done.data["adapters"]] == [("man-de@1", []), (archive, [])]


def test_lint_names_what_it_does_not_know(run: Run, empty: Path, folders: Path) -> None:
    assert run("ingest", folders, "--home", empty).exit_code == 0
    assert run("lint", "nobody", "--home", empty).exit_code == 4
    done = run("lint", folders, "--profile", "tgi")
    assert done.exit_code == 2
    assert "'tgi' is none of vllm, sglang, lorax" in done.err


def test_materialize_writes_the_form_of_an_engine(run: Run, empty: Path, folders: Path, tmp_path: Path) -> None:
    config = folders / "man-de" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    assert run("ingest", folders, "--home", empty).exit_code == 0
    plain = run("materialize", "man-nl", "-o", tmp_path / "plain", "--profile", "vllm", "--home", empty, "--json").data
    assert (plain["rewritten"], plain["rounding_error"], plain["server_needs"]) == ([], 0.0, "--max-lora-rank 8")
    scaled = run("materialize", "man-de", "-o", tmp_path / "out", "--profile", "sglang", "--home", empty)
    assert scaled.exit_code == 0
    assert "rslora" in scaled.out
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (2, 2, False)


def test_materialize_refuses_what_an_engine_cannot_compute(run: Run, empty: Path, broken: Path, tmp_path: Path) -> None:
    run("ingest", broken, "--home", empty)
    done = run("materialize", "man-nl", "-o", tmp_path / "out", "--profile", "vllm", "--home", empty)
    assert done.exit_code == 45
    assert "vLLM cannot serve adapter 'man-nl@1': it does not support DoRA magnitudes (use_dora)" in done.err
    assert not (tmp_path / "out").exists()
    done = run("materialize", "man-nl", "-o", tmp_path / "out", "--profile", "tgi", "--home", empty)
    assert done.exit_code == 2
    assert "'tgi' is none of peft, vllm, sglang, lorax" in done.err
