"""Adapters with more than factors in all that a registry does: counted, checked, pruned, copied, ingested again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from variants import VARIANTS

from lorareg.cli.main import main
from lorareg.registry.report import build_report
from lorareg.registry.store import Registry
from lorareg.registry.types import EXTRAS_FOLDER, WEIGHTS_FILE

pytestmark = pytest.mark.filterwarnings("ignore")  # what the other libraries warn of is theirs

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lorareg` and give what it printed as JSON."""

    def command(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in (*arguments, "--json")])
        out, err = capsys.readouterr()
        assert not stopped.value.code, err
        return json.loads(out)

    return command


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """Two adapters that save the same head, one that is no LoRA, a style of kohya-ss."""
    by_name = {one.name: one for family in VARIANTS.values() for one in family}
    made = {"one": "modules_to_save", "two": "modules_to_save", "whole": "ia3", "style": "kohya_dora"}
    for task, name in made.items():
        folder = tmp_path / "adapters" / task
        folder.mkdir(parents=True)
        by_name[name].make(folder)
    weights = tmp_path / "adapters" / "two" / WEIGHTS_FILE
    tensors = {key: value * 2 if "lora_A" in key else value for key, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    return tmp_path / "adapters"


def test_what_rides_along_goes_all_the_way(run: Run, adapters: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    taken = run("ingest", adapters, *home)
    assert taken["counts"] == {"new": 4}
    assert [line["note"] for line in taken["adapters"] if line["note"]] == ["kept exactly: peft_type is IA3"]
    run("compress", "--tolerance", "0.2", *home)

    with Registry.open(tmp_path / "home", create=False) as registry:
        files = {name: registry.files(registry.adapter(name)) for name in ("one", "two", "style/style", "whole")}
        kept = {name: [f for f in all_of if f.path.startswith(EXTRAS_FOLDER)] for name, all_of in files.items()}
        extras = {name: {file.path: file.sha256 for file in some} for name, some in kept.items()}
        assert extras["one"] == extras["two"]  # one blob each for what is equal
        assert extras["one"]
        assert "extras/metadata" in extras["style/style"]
        assert not extras["whole"]

    with Registry.open(tmp_path / "home", create=False) as registry, registry.reading() as connection:
        report = build_report(connection, registry)
        adapters_told = list(report.adapters)
    blobs = sum(path.stat().st_size for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file())
    database = (tmp_path / "home" / "registry.sqlite").stat().st_size
    assert report.totals.on_disk_bytes == blobs + database + report.totals.beside["reserve"]
    for cohort in report.cohorts:
        members = [adapter for adapter in adapters_told if adapter.cohort == cohort.name]
        assert sum(adapter.amortised_bytes for adapter in members) == pytest.approx(cohort.stored_bytes, abs=3)
    assert not run("check", "--read-data", *home)["findings"]
    assert not [one for one in run("verify", "--all", *home)["adapters"] if one["problems"]]
    assert {one["outcome"] for one in run("ingest", adapters, *home)["adapters"]} == {"known"}

    run("replicate", tmp_path / "copy", *home)
    run("prune", "--apply", *home)
    run("prune", "--sweep", "--grace-days", "0", *home)
    with Registry.open(tmp_path / "home", create=False) as registry:
        assert registry.original(registry.adapter("one")) == "pruned"
    for home_now in (tmp_path / "home", tmp_path / "copy"):
        out = tmp_path / f"out-{home_now.name}"
        run("materialize", "one", "-o", out, "--home", home_now)
        run("materialize", "style/style", "-o", out / "style", "--home", home_now)
        assert (out / WEIGHTS_FILE).exists()
        assert (out / "style" / "style.safetensors").exists()
    for name in (WEIGHTS_FILE, "style/style.safetensors"):
        assert (tmp_path / "out-home" / name).read_bytes() == (tmp_path / "out-copy" / name).read_bytes()


@pytest.mark.parametrize("option", [("--gain", "0.9"), ("--tolerance", "kl=0.1"), ("--budget", "5%", "--distill")])
def test_what_a_model_does_with_more_than_factors_is_not_promised(
    option: tuple[str, ...], run: Run, adapters: Path, tmp_path: Path
) -> None:
    home = ("--home", tmp_path / "home")
    run("ingest", adapters, *home)
    done = {one["cohort"]: one for one in run("compress", *option, *home)["cohorts"]}
    coded = [one for name, one in done.items() if "opaque" not in name]
    assert all(one["encoded"] == 0 and "only their error can be promised" in one["message"] for one in coded)
    (whole,) = (one for name, one in done.items() if "opaque" in name)
    assert whole["by_tier"] == {"lossless": 1}
