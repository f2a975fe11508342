"""What the package ships, what it imports, and what it leaves alone at start-up."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("registry", "compress", "cli", "migrations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> set[str]:
    inits = [path for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    return {".".join(["lorareg", *path.parent.relative_to(ROOT).parts]) for path in inits}


def python_files() -> list[Path]:
    return [path for room in (*ROOMS, "tests", "bench") for path in (ROOT / room).rglob("*.py")]


def test_every_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == package_folders()


def test_every_package_is_typed() -> None:
    # A marker holds for the packages below it (PEP 561); `lorareg` itself is no folder that could have one.
    assert all((ROOT / room / "py.typed").exists() for room in ROOMS)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_name_lorareg(path: Path) -> None:
    """`import registry` from the root would make a second copy of every class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            names = [node.module or ""]
        else:
            continue
        assert not [name for name in names if name.split(".")[0] in ROOMS], f"line {node.lineno} imports {names}"


def test_the_version_is_written_once() -> None:
    assert version("lorareg") == PROJECT["project"]["version"]
    assert f"[{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_errors_keep_their_exit_codes_and_the_readme_lists_them() -> None:
    from lorareg.registry import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {cls.exit_code for cls in classes if issubclass(cls, errors.LoraregError)}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)}
    assert codes <= listed


@pytest.mark.slow
def test_the_wheel_holds_every_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"
    source.mkdir()
    for name in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lorareg-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in package_folders():
        folder = package.replace(".", "/")
        assert f"{folder}/__init__.py" in names
    assert {f"lorareg/{room}/py.typed" for room in ROOMS} <= names
    shipped = {name for name in names if name.endswith(".py")}
    expected = {f"lorareg/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert shipped == expected
    pages = [path for kind in ("templates", "static") for path in (ROOT / "cli" / "web" / "pages" / kind).iterdir()]
    assert pages
    assert {f"lorareg/{path.relative_to(ROOT)}" for path in pages} <= names
