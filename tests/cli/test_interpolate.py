"""`lorareg interpolate`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorareg.compress import base_model
from lorareg.compress.tasks import interpolate
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry

Run = Callable[..., Any]
NAMES = ("alpha", "beta", "gamma", "delta")
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv")
WIDTH = 48


@pytest.fixture
def between_home(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path], run: Run
) -> Path:
    """A registry of four adapters of one initialisation, coded against a linear generator: made once, then copied."""
    home, kept = tmp_path / "linear", tmp_path_factory.getbasetemp() / "linear-home"
    if kept.exists():
        return Path(shutil.copytree(kept, home))
    with Registry.open(home, create=True) as registry:
        for name in NAMES:
            shared, own = np.random.default_rng(0), np.random.default_rng(zlib.crc32(name.encode()))
            tensors = {}
            for module in MODULES:
                key = f"base_model.model.{module}.lora_"
                a = shared.normal(size=(2, WIDTH)) + 0.05 * own.normal(size=(2, WIDTH))
                b = (shared.normal(size=(WIDTH + 2, 2)) + own.normal(size=(WIDTH + 2, 2))) * [1, 0.4]
                tensors |= {f"{key}A.weight": a.astype(np.float32), f"{key}B.weight": b.astype(np.float32)}
            registry.ingest(read_folder(make_adapter(name, modules=MODULES, width=WIDTH, tensors=tensors)), name=name)
    assert run("compress", "--arch", "linear", "--home", home).exit_code == 0
    shutil.copytree(home, kept)
    return home


def test_interpolate_writes_a_folder(run: Run, between_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("interpolate", "alpha", "beta", "-w", "0.3", "-o", out, "--home", between_home)
    assert result.exit_code == 0, result.err
    assert f"alpha@1 and beta@1 at 0.3 -> {out}" in result.out
    assert "linear v1, shared coordinates" in result.out
    assert "nobody trained these weights, their quality is unproven" in result.out
    assert "Give --base-model to measure losses" in result.out
    assert read_folder(out).base_model == "tiny/base-model"
    again = run("interpolate", "alpha", "beta", "-w", "0.3", "-o", out, "--home", between_home)
    assert (again.exit_code, "exists already" in again.err) == (5, True)
    done = run("interpolate", "alpha", "beta", "-o", out, "--force", "--json", "--home", between_home)
    assert (done.exit_code, done.err) == (0, "")
    assert done.data["weight"] == 0.5
    assert set(done.data["distances"]) == {"alpha@1", "beta@1", "average of delta W", "average of factors"}
    assert done.data["losses"] is None
    quiet = run("interpolate", "alpha", "beta", "-o", out, "--force", "-q", "--home", between_home)
    assert quiet.out.strip() == str(out)


def test_the_ends_are_what_materialize_writes(run: Run, between_home: Path, tmp_path: Path) -> None:
    for weight, task in (("0", "alpha"), ("1", "beta")):
        found, wanted = tmp_path / f"found-{task}", tmp_path / f"wanted-{task}"
        run("interpolate", "alpha", "beta", "--weight", weight, "-o", found, "--home", between_home)
        run("materialize", task, "-o", wanted, "--home", between_home)
        name = "adapter_model.safetensors"
        assert (found / name).read_bytes() == (wanted / name).read_bytes()


def test_the_folder_is_named_after_both(
    run: Run, between_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("interpolate", "alpha", "beta", "--home", between_home).exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["alpha-beta-0.5"]


def test_no_torch_is_needed(between_home: Path, tmp_path: Path) -> None:
    arguments = ["interpolate", "alpha", "beta", "-o", str(tmp_path / "out"), "--home", str(between_home)]
    code = (
        "import sys\nsys.modules.update(torch=None, sqlalchemy=None)\n"
        f"from lorareg.cli.main import main\nmain({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("alpha", "alpha"), 33, "alpha@1 and alpha@1 cannot be interpolated: they are the same adapter"),
        (("alpha", "beta", "--weight", "2"), 30, "--weight 2 is not valid: it is the share of the second task"),
        (("alpha", "omega"), 4, "No adapter 'omega'"),
        (("alpha", "beta", "--base-model", "nowhere"), 13, "there is no model here"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, between_home: Path, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    result = run("interpolate", *arguments, "-o", tmp_path / "out", "--home", between_home)
    assert (result.exit_code, words in result.err) == (exit_code, True), result.err
    assert not (tmp_path / "out").exists()


def test_adapters_without_codes_are_refused(run: Run, home: Path, tmp_path: Path) -> None:
    result = run("interpolate", "man-de", "man-nl", "-o", tmp_path / "out", "--home", home)
    assert result.exit_code == 33
    assert "man-de@1 has no code. Run `lorareg compress --arch linear --retrain`, or --arch slots." in result.err


def test_a_remembered_model_that_is_gone_is_told(run: Run, between_home: Path, tmp_path: Path) -> None:
    with Registry.open(between_home, create=False) as registry:
        registry.remember("base_model:tiny/base-model", str(tmp_path / "gone"))
    result = run("interpolate", "alpha", "beta", "-o", tmp_path / "out", "--home", between_home)
    assert result.exit_code == 0
    assert "Losses were not measured: Base model" in result.out
    assert (tmp_path / "out").exists()


def test_losses_are_a_table_and_the_model_is_remembered(
    run: Run, between_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = {"base model alone": (3.25, 2.5), "interpolation": (2.125, 1.75)}
    found = interpolate.Losses(("evaluation tokens", "samples"), by_name)
    monkeypatch.setattr(base_model, "BaseModel", lambda path: path)
    monkeypatch.setattr(interpolate, "losses_of", lambda between, judge: found)
    model, out = tmp_path / "model", tmp_path / "out"
    result = run("interpolate", "alpha", "beta", "-o", out, "--base-model", model, "--home", between_home)
    assert result.exit_code == 0, result.err
    assert "alpha@1 (evaluation tokens)" in result.out
    assert "beta@1 (samples)" in result.out
    assert "2.1250" in result.out
    model.mkdir()
    again = run("interpolate", "alpha", "beta", "-o", out, "--force", "--json", "--home", between_home)
    assert again.data["losses"] == {name: list(losses) for name, losses in by_name.items()}
    assert again.data["measured_on"] == ["evaluation tokens", "samples"]
