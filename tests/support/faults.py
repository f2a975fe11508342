"""A file system that fails on purpose, for tests: `faults.c` built, and lorareg run under it; see tests/torture."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

SHIM = Path(__file__).parents[1] / "torture" / "shim"

# As in faults.c.
PASS, KILL, TEAR, FAIL = range(4)
OPEN, WRITE, SYNC, NAME, SIZE, SEND = (1 << bit for bit in range(6))
FILES = OPEN | WRITE | SYNC | NAME | SIZE

MODULES = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qv")


@dataclass(frozen=True)
class Ended:
    """How a run ended: an exit code, or minus the number of the signal that killed it."""

    exit: int
    steps: int
    elapsed_s: float
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.exit == -9


class Faults:
    """Runs lorareg under the shim."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def ask(self, do: str, **asked: Any) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked | {"do": do, "output": str(self._folder)}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("out", "err"))
        assert not answer["late"], f"{do} {asked} did not end: {err}"
        return Ended(answer["exit"], answer["steps"], answer["elapsed_s"], out, err)

    def look(self, home: Path) -> dict[str, Any]:
        """What a registry holds; see `look` in server.py."""
        return parsed(self.ask("look", home=str(home)))

    def look_at_each(self, homes: Sequence[Path]) -> list[dict[str, Any]]:
        """What several hold; `refused` says why one cannot be read."""
        ended = self.ask("looks", homes=[str(home) for home in homes])
        assert ended.exit == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]


def parsed(looked: Ended) -> dict[str, Any]:
    """What a look found."""
    assert looked.exit == 0, looked.err
    found: dict[str, Any] = json.loads(looked.out)
    return found


@dataclass(frozen=True)
class Doing:
    """Something lorareg is asked to do in an area: a folder that has its home and all else that it may change."""

    what: str
    do: str
    asked: dict[str, Any]

    def run(self, faults: Faults, area: Path, **fault: Any) -> Ended:
        """Do it, with a fault: `action=KILL, nth=3`; without one, steps are counted and nothing happens."""
        place = {"area": str(area), "action": PASS, "nth": 0, "error": 0, "kinds": FILES, "persists": False}
        asked = json.loads(json.dumps(self.asked).replace("{area}", str(area)))
        return faults.ask(self.do, **(place | {"syncs": False, "chance": 0} | fault), **asked)


def command(what: str, *argv: object, **environment: str) -> Doing:
    """A command of lorareg on the registry `home` of the area; "{area}" stands for the area in arguments."""
    return Doing(
        what,
        "run",
        {"argv": [*map(str, argv), "--home", "{area}/home", "--json", "--quiet"], "environment": environment},
    )


@contextmanager
def running(folder: Path, rehearsal: Sequence[Mapping[str, Any]] = ()) -> Iterator[Faults]:
    """The shim, built, and a process under it, which has done the rehearsal first; see server.py."""
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected by a library made with a C compiler on Linux")
    library = folder / "faults.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM / "faults.c", "-ldl", "-lpthread"], check=True
    )
    environment = os.environ | {"LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    process = subprocess.Popen(
        [sys.executable, str(SHIM / "server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(rehearsal) + "\n")
    try:
        yield Faults(process, folder)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


def write_adapters(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """Small adapters of one initialisation, which a mean table covers."""
    for number, name in enumerate(names):
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, number])
        tensors = {}
        for module in MODULES:
            key, a, b = f"base_model.model.{module}.lora_", shared.normal(size=(2, 32)), shared.normal(size=(34, 2))
            tensors[f"{key}A.weight"] = (a + 0.05 * own.normal(size=a.shape)).astype(np.float32)
            tensors[f"{key}B.weight"] = ((b + 0.2 * own.normal(size=b.shape)) * [1, 0.4]).astype(np.float32)
        path = folder / name
        path.mkdir(parents=True)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "base_model_name_or_path": "tiny/base-model", "r": 2, "lora_alpha": 4}
        targets = {"bias": "none", "target_modules": ["q_proj", "v_proj"]}
        (path / "adapter_config.json").write_text(json.dumps(config | targets))
        (path / "README.md").write_text(f"# Task\n\nContinue the {name} text.\n")


def commit_of(folder: Path) -> bytes:
    """The files of a folder as a commit that a client of the Hugging Face Hub sends."""
    told: list[tuple[str, Any]] = [("header", {"summary": "Upload", "description": ""})]
    for path in sorted(folder.iterdir()):
        content = base64.b64encode(path.read_bytes()).decode()
        told.append(("file", {"path": path.name, "encoding": "base64", "content": content}))
    return "\n".join(json.dumps({"key": key, "value": value}) for key, value in told).encode()
