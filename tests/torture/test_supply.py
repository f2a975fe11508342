"""Supply chain: what is stored, sent or installed runs nothing, and what is secret is written nowhere."""

from __future__ import annotations

import ast
import io
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pickle_trap import PickleLoadedError

ROOMS = ("registry", "compress", "cli", "migrations")

LOADERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Modules whose reading runs what was written."""

CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("torch.jit", "load"),
    ("numpy", "load"),
    ("np", "load"),
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("dist", "broadcast_object_list"),
    ("dist", "all_gather_object"),
    ("dist", "gather_object"),
    ("dist", "scatter_object_list"),
}
"""Calls by the name of their module, or what it is called here."""

OPTIONS = {("allow_pickle", True), ("shell", True), ("trust_remote_code", True), ("weights_only", False)}


def installed_sources() -> list[Path]:
    """Every module of the package, where it is imported from."""
    sources = []
    for room in ROOMS:
        spec = find_spec(f"lorareg.{room}")
        assert spec is not None
        assert spec.origin is not None
        sources += sorted(Path(spec.origin).parent.rglob("*.py"))
    return sources


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is nothing else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(source: str) -> list[str]:
    """What a module has that could run what it reads, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in LOADERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            found.append((node.lineno, str(node.module)))
        elif isinstance(node, ast.Call):
            module, _, name = dotted(node.func).rpartition(".")
            if (not module and name in CALLS) or (module, name) in ATTRIBUTES:
                found.append((node.lineno, dotted(node.func)))
            options = [(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)]
            found += [(node.lineno, f"{name}={value}") for name, value in options if (name, value) in OPTIONS]
    return [f"{line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert dangers(source)


def test_nothing_in_the_package_can_run_what_it_reads(torture: Any) -> None:
    torture.promise("No module of the package can load a pickle, or run what it reads")
    sources = installed_sources()
    found = {path.name: dangers(path.read_text("utf-8")) for path in sources}
    assert {name: lines for name, lines in found.items() if lines} == {}
    torture.held(len(sources))


def as_lorareg(source: str) -> Any:
    """Run source as a module of lorareg's would be."""
    module = ModuleType("lorareg.made_up")
    exec(compile(source, "made_up.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    "load",
    [
        "pickle.loads(data)",
        "pickle.load(io.BytesIO(data))",
        "pickle.Unpickler(io.BytesIO(data)).load()",
        "pickle._Unpickler(io.BytesIO(data)).load()",
        "_pickle.loads(data)",
    ],
)
def test_the_trap_of_all_tests_catches_a_pickle(load: str, loaded_pickles: list[str]) -> None:
    module = as_lorareg(f"import _pickle, io, pickle\n\ndef read(data):\n    try:\n        return {load}\n"
                        "    except Exception:\n        return None\n")  # fmt: skip
    data = pickle.dumps({"a": 1})
    with pytest.raises(PickleLoadedError, match=r"from lorareg\.made_up:5"):
        module.read(data)
    assert len(loaded_pickles) == 1
    assert "made_up" in loaded_pickles.pop()


def test_the_trap_leaves_others_alone(loaded_pickles: list[str]) -> None:
    data = pickle.dumps([1, 2])
    assert pickle.loads(data) == pickle.load(io.BytesIO(data)) == pickle.Unpickler(io.BytesIO(data)).load() == [1, 2]
    assert loaded_pickles == []
    assert "lorareg" in sys.modules or find_spec("lorareg.registry") is not None
