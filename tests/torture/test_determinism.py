"""The same bytes in every process: threads, BLAS kernels, ways to start processes, Pythons and numpys.

Everything that is frozen, every golden file, and larger adapters, whose matrices BLAS does split and block, are
decoded by `decode_probe.py` in a process of its own for each setting. Frozen and golden ones have pinned digests; for
the larger ones, made here, all settings have to agree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import builders
import pytest
from frozen_registries import NAMES, known, thaw
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

import lorareg.registry.types
from lorareg.compress.codec.encode import encode
from lorareg.compress.generators.generator import pack_generator
from lorareg.registry.store import Registry

PROBE = Path(__file__).parents[1] / "support" / "decode_probe.py"
GOLDEN = Path(__file__).parents[1] / "compress" / "golden"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
PYTHONS_VARIABLE = "LORAREG_TEST_PYTHONS"
"""Further interpreters to try, separated by colons, such as those of environments with another numpy."""

NEEDED = """
import sys, alembic, constriction, ml_dtypes, numpy, rich, safetensors, sqlalchemy, threadpoolctl, typer, zstandard
print(sys.prefix)
"""
KERNELS = ("Haswell", "SkylakeX", "Zen", "Sandybridge", "Nehalem", "Core2", "Prescott")


DISPATCHED = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
"""What numpy uses of this processor beyond what every one has."""


@dataclass(frozen=True)
class Setting:
    """How a process that decodes is started."""

    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # of Python
    start: str = "here"


def threads(number: int) -> Setting:
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return Setting(dict.fromkeys(names, str(number)))


SETTINGS: dict[str, Setting] = {
    "four threads": threads(4),
    "forked processes": Setting(start="fork"),
    "spawned processes": Setting(start="spawn"),
    "the oldest kernels, of BLAS and numpy": Setting(
        {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": " ".join(DISPATCHED)}
    ),
    "AVX2 kernels": Setting({"OPENBLAS_CORETYPE": "Haswell"}),
    "no docstrings, no assertions": Setting(options=("-OO",)),
    "dirty memory, other hashes": Setting({"MALLOC_PERTURB_": "85", "PYTHONHASHSEED": "4", "PYTHONMALLOC": "malloc"}),
    "one thread": threads(1),
    "two threads": threads(2),
    "another language and clock": Setting({"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "PYTHONUTF8": "0"}),
    **{f"{kernel} kernels": Setting({"OPENBLAS_CORETYPE": kernel}) for kernel in KERNELS},
    **{
        f"{kernel} kernels, four threads": Setting({"OPENBLAS_CORETYPE": kernel, **threads(4).environment})
        for kernel in KERNELS
    },
}
"""The first seven are the short form."""
SHORT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is decoded."""
    target = tmp_path_factory.mktemp("decoded")
    for name in NAMES:
        thaw(name, target)
        (target / f"thawed-{name}" / "home").rename(target / name)
        shutil.rmtree(target / f"thawed-{name}")
        Registry.open(target / name, create=False).close()  # of the schema of today
    for name, entry in json.loads((GOLDEN / "index.json").read_text()).items():
        code, generator = f"{name}.code", entry["generator"]
        for file in (code, generator):
            if file:
                shutil.copyfile(GOLDEN / file, target / file)
        write_case(target, f"golden-{name}", entry["layout"], code, generator)
    make_large(target)
    return target


def write_case(target: Path, name: str, layout: str, code: str, generator: str | None) -> None:
    case = {"layout": layout, "code": code, "generator": generator}
    (target / f"{name}.case").write_text(json.dumps(case))


def make_large(target: Path) -> None:
    """Adapters with matrices of the sizes of real ones, with a network, without, and in another dtype."""
    shapes = ((512, 16, 384),) * 3
    for dtype in ("F32", "BF16"):
        layout = builders.layout(shapes=shapes, dtype=dtype)
        made = builders.generator("slots", layout, coordinates="shared")
        file = pack_generator(made, layout)
        (target / f"large-{dtype}.generator").write_bytes(file)
        near, draft = builders.near_prediction(layout, builders.loaded(layout, made), 1, 0.3)
        alone = builders.original(layout)
        for name, code, generator in (
            (f"large-predicted-{dtype}", encode(near, draft, 0.2).code, f"large-{dtype}.generator"),
            (f"large-alone-{dtype}", encode(alone, None, 0.2).code, None),
        ):
            (target / f"{name}.code").write_bytes(code)
            write_case(target, name, layout.to_json(), f"{name}.code", generator)


def probe(folder: Path, setting: Setting, work: Path, python: str = sys.executable) -> dict[str, Any]:
    """What the probe prints under a setting."""
    root = Path(lorareg.registry.types.__file__).parents[1]
    work.mkdir(exist_ok=True)
    if not (work / "lorareg").exists():
        (work / "lorareg").symlink_to(root)
    cleared = ("OPENBLAS", "OMP_", "MKL_", "LORAREG", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(cleared)}
    environment |= {"PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1", **setting.environment}
    command = [python, *setting.options, str(PROBE), str(folder), setting.start]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pinned() -> dict[str, str]:
    """Digests of decoded weights that were written down once."""
    frozen = {
        f"{name} {ref}": next(digest for path, digest in files.items() if path.endswith(".safetensors"))
        for name in NAMES
        for ref, files in known(name)["given_back"].items()
    }
    golden = json.loads((GOLDEN / "index.json").read_text())
    return frozen | {f"golden-{name}": entry["output"] for name, entry in golden.items()}


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What everything has to decode to: the pinned digests, and for large ones what they decode to by default."""
    found: dict[str, str] = probe(folder, Setting(), tmp_path_factory.mktemp("first"))["digests"]
    fixed = pinned()
    newest = {name: digest for name, digest in found.items() if not name.startswith("large-")}
    assert newest == {name: fixed[name] for name in newest}
    assert len(newest) > 80
    assert len(found) == len(newest) + 4
    return found


def test_every_setting_decodes_to_the_same_bytes(
    folder: Path, expected: dict[str, str], tmp_path: Path, torture: Any
) -> None:
    torture.promise("The same bytes whatever the threads, BLAS kernels, ways to start a process", fixed=0)
    chosen = list(SETTINGS)[: torture.runs(SHORT, len(SETTINGS))]
    wrong = {}
    for name in chosen:
        found = probe(folder, SETTINGS[name], tmp_path / "probe")
        if found["digests"] != expected:
            differ = {key for key in expected if found["digests"].get(key) != expected[key]}
            wrong[name] = (found["setting"], sorted(differ))
    assert wrong == {}
    torture.held(len(chosen) * len(expected))


def interpreters() -> dict[str, str]:
    """Other Pythons of this machine that have what decoding needs, by path; else why not."""
    asked = [path for path in os.environ.get(PYTHONS_VARIABLE, "").split(":") if path]
    here = [path for name in PYTHONS if (path := shutil.which(name))]
    answers = {}
    for path in dict.fromkeys(asked + here):
        done = subprocess.run([path, "-c", NEEDED], capture_output=True, text=True, check=False)
        if done.returncode:
            answers[path] = (done.stderr.strip().splitlines() or ["it does not run"])[-1]
        else:
            answers[path] = "it is the one that runs this" if done.stdout.strip() == sys.prefix else ""
    return answers


def test_other_pythons_and_numpys_decode_to_the_same_bytes(
    folder: Path, expected: dict[str, str], tmp_path: Path, torture: Any
) -> None:
    torture.promise("The same bytes whatever the Python and numpy")
    found = interpreters()
    usable = [path for path, problem in found.items() if not problem]
    if not usable:
        torture.held(len(expected))  # by this one
        pytest.skip(f"no other Python here has what decoding needs ({found}); {PYTHONS_VARIABLE} names more")
    seen = {}
    for path in usable:
        answer = probe(folder, Setting(), tmp_path / "probe", path)
        seen[path] = answer["setting"]
        assert answer["digests"] == expected, (path, answer["setting"])
    print(seen)
    torture.held(len(usable) * len(expected))


def test_without_docstrings_an_error_still_says_what_was_found(tmp_path: Path) -> None:
    work = tmp_path / "lorareg-only"
    work.mkdir()
    (work / "lorareg").symlink_to(Path(lorareg.registry.types.__file__).parents[1])
    command = [sys.executable, "-OO", "-m", "lorareg.cli", "list", "--home", str(tmp_path / "nowhere")]
    environment = {**os.environ, "PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 20, done.stderr
    assert "there is no registry here" in done.stderr
    assert "`lorareg ingest PATH` makes one" in done.stderr
