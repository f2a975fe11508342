"""Adapters for tasks that were never ingested, from a description."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.compress.factors.weights import read_weights
from lorareg.registry.card import card_description
from lorareg.registry.peft_format import find_adapters, read_folder
from lorareg.registry.store import Registry

Run = Callable[..., Any]

SWEDISH = "Continue Unix manual pages written in Swedish."


def weights(folder: Path) -> tuple[Any, ...]:
    return read_weights((folder / "adapter_model.safetensors").read_bytes(), read_folder(folder).layout)


def contents(home: Path) -> dict[str, bytes]:
    """All that is in a registry, but for SQLite's log and its index, which whoever reads may open."""
    files = [path for path in sorted(home.rglob("*")) if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {str(path): path.read_bytes() for path in files}


def test_a_description_becomes_a_peft_folder(run: Run, home: Path, folders: Path, tmp_path: Path) -> None:
    before, out = contents(home), tmp_path / "out"
    found = run("generate", "-d", SWEDISH, "-o", out, "--by", "mixture", "--home", home, "--json")
    assert found.exit_code == 0, found.err
    assert contents(home) == before
    data = found.data
    assert data["novelty"]["kinship"] == "near"
    assert 0.5 < data["novelty"]["nearest"] < 1
    assert data["mixture"]["encoder"] == "text:hashed-128-1"
    assert data["mixture"]["error"] <= data["mixture"]["error_of_mean"] + 1e-6
    assert data["few_shot"] is None
    assert {one["ref"] for one in data["neighbours"][:2]} == {"man-de@1", "man-nl@1"}
    assert sum(one["weight"] for one in data["neighbours"]) == pytest.approx(1)
    given, made = read_folder(folders / "man-de"), read_folder(out)
    assert (made.layout, made.rank, made.base_model) == (given.layout, given.rank, given.base_model)
    assert made.description == SWEDISH
    card = (out / "README.md").read_text()
    assert "Novel: quality unproven" in card
    assert "| `man-nl@1` | 0." in card
    assert card_description(card) == SWEDISH


def test_a_description_alone_goes_by_similarity(run: Run, home: Path, tmp_path: Path) -> None:
    found = run("generate", "-d", SWEDISH, "-o", tmp_path / "out", "--home", home, "--json").data
    assert found["mixture"] is None
    first, second, third = (one["weight"] for one in found["neighbours"])
    assert first >= second > third > 0
    assert first + second + third == pytest.approx(1)
    assert "weighted by similarity" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_made_can_be_ingested(run: Run, home: Path, tmp_path: Path) -> None:
    run("generate", "-d", SWEDISH, "-o", tmp_path / "new" / "man-sv", "--home", home)
    assert run("ingest", tmp_path / "new", "--home", home).exit_code == 0
    assert run("show", "man-sv", "--home", home, "--json").data["description"] == SWEDISH


@pytest.mark.parametrize("by", ["mean", "nearest"])
def test_the_mean_and_the_nearest(run: Run, home: Path, folders: Path, tmp_path: Path, by: str) -> None:
    data = run("generate", "-d", SWEDISH, "--by", by, "-o", tmp_path / "out", "--home", home, "--json").data
    by_ref = {one["ref"]: one["weight"] for one in data["neighbours"]}
    nearest = data["neighbours"][0]["ref"]
    wanted = {ref: float(ref == nearest) if by == "nearest" else 1 / 3 for ref in by_ref}
    assert by_ref == pytest.approx(wanted)
    adapters = {ref: weights(folders / ref.partition("@")[0]) for ref in by_ref}
    for module, made in enumerate(weights(tmp_path / "out")):
        sums = sum(weight * adapters[ref][module].delta for ref, weight in by_ref.items())
        left = np.linalg.norm(made.delta - sums) / np.linalg.norm(sums)
        assert left < (1e-5 if by == "nearest" else 0.8)  # the mean of three has a rank of up to six


def test_a_random_description_is_refused(run: Run, home: Path, tmp_path: Path) -> None:
    refused = run("generate", "-d", "xqzv jjkw pplm", "-o", tmp_path / "out", "--home", home)
    assert refused.exit_code == 50
    assert "'xqzv jjkw pplm' is like no task of cohort" in refused.err
    assert "--anyway" in refused.err
    assert not (tmp_path / "out").exists()
    forced = run("generate", "-d", "xqzv jjkw pplm", "--anyway", "-o", tmp_path / "out", "--home", home)
    assert forced.exit_code == 0
    assert "no more like a known task than shuffled letters" in forced.err
    assert find_adapters(tmp_path / "out") == [tmp_path / "out"]


def test_output_folders(run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = run("generate", "-d", SWEDISH, "-q", "--home", home)
    assert made.out == "novel-continue-unix-manual-pages-written-in\n"
    again = run("generate", "-d", SWEDISH, "--home", home)
    assert (again.exit_code, "exists already" in again.err) == (5, True)
    assert run("generate", "-d", SWEDISH, "--force", "--home", home).exit_code == 0
    (Path(made.out.strip()) / "thesis.tex").write_text("")
    assert run("generate", "-d", SWEDISH, "--force", "--home", home).exit_code == 5


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ((), 6, "There is no task to generate for"),
        (("-d", " \n"), 6, "There is no task to generate for"),
        (("-d", SWEDISH, "--by", "network"), 30, "this cohort's generator has no learned prior; run compress"),
        (("-d", SWEDISH, "--cohort", "none"), 4, "No cohort 'none'"),
        (("--samples", "nowhere.txt"), 51, "Samples nowhere.txt: it cannot be read"),
        (("--samples", "nowhere.txt", "--by", "nearest"), 30, "it goes by what the task is; give a --description"),
    ],
)
def test_what_is_refused(
    run: Run, home: Path, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    result = run("generate", *arguments, "-o", tmp_path / "out", "--home", home)
    assert (result.exit_code, words in result.err) == (exit_code, True), result.err
    assert not (tmp_path / "out").exists()


def test_samples_without_a_base_model(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("some text")
    result = run("generate", "--samples", tmp_path / "s.txt", "--home", home)
    assert (result.exit_code, "give --base-model too" in result.err) == (30, True)


def test_several_cohorts_and_single_tasks(run: Run, home: Path, make_adapter: Callable[..., Path]) -> None:
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_folder(make_adapter("other")), name="other")
        names = {registry.adapter(ref).cohort_id: ref for ref in ("man-de", "other")}
        cohorts = {names[cohort.id]: cohort.name for cohort in registry.cohorts()}
    result = run("generate", "-d", SWEDISH, "--home", home)
    assert result.exit_code == 30
    assert all(name in result.err for name in cohorts.values())
    result = run("generate", "-d", SWEDISH, "--cohort", cohorts["other"], "--home", home)
    assert (result.exit_code, "has 1 task" in result.err) == (6, True)
    empty = run("generate", "-d", SWEDISH, "--home", home.with_name("none"))
    assert empty.exit_code == 20


def test_a_description_alone_needs_neither_torch_nor_sqlalchemy(home: Path, tmp_path: Path) -> None:
    arguments = ["generate", "-d", SWEDISH, "-o", str(tmp_path / "out"), "--home", str(home)]
    code = (
        f"from lorareg.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        "import sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "README.md").is_file()
    assert {"torch", "transformers", "sqlalchemy"}.isdisjoint(done.stdout.splitlines()[-1].split())
