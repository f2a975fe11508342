"""The command as its own process: what it loads before it works, and how it is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "transformers", "peft", "sqlalchemy", "alembic", "numpy", "rich", "safetensors", "constriction")


def imported_by(statement: str) -> set[str]:
    """Top-level modules in sys.modules after `statement` in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        "main",
        "ingest",
        "compress",
        "generate",
        "materialize",
        "interpolate",
        "list",
        "check",
        "output",
        "progress",
        "serve",
        "sync",
        "token",
    ],
)
def test_the_command_line_starts_light(module: str) -> None:
    assert imported_by(f"import lorareg.cli.{module}").isdisjoint(HEAVY)


def test_listing_needs_neither_torch_nor_sqlalchemy(home: Path) -> None:
    arguments = ["list", "--home", str(home)]
    statement = f"from lorareg.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit: pass"
    assert imported_by(statement).isdisjoint({"torch", "sqlalchemy", "alembic", "numpy"})


@pytest.mark.parametrize("module", ["cli.web.app", "cli.web.uploads", "cli.web.pages.routes"])
def test_a_server_needs_no_torch(module: str) -> None:
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    assert imported_by(f"import lorareg.{module}").isdisjoint({"torch", "transformers", "peft"})


def test_python_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lorareg.cli", "nosuch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'nosuch'" in done.stderr


def test_giving_an_adapter_back_loads_only_what_decodes(run: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    """numpy.ma, which np.unique loads, and the forms of engines took a tenth of it."""
    assert run("compress", "--arch", "none", "--home", home, "--quiet").exit_code == 0
    arguments = ["materialize", "man-nl", "-o", str(tmp_path / "out"), "--home", str(home), "--quiet"]
    code = (
        f"import sys\nfrom lorareg.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"lorareg.compress.codec.codecs", "constriction"} <= loaded
    assert not loaded & {"numpy.ma", "lorareg.compress.serving.adapt", "torch", "sqlalchemy", "rich"}
