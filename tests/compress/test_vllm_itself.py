"""The plugin of vLLM, and `sync`, on vLLM's own files, where they can be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from lorareg.registry.store import Registry

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("vllm_probe.py")
VLLM = os.environ.get("LORAREG_TEST_VLLM", "0.33.0")

VLLM_FILES = (
    "lora/resolver.py",
    "lora/request.py",
    "lora/peft_helper.py",
    "plugins/__init__.py",
    "exceptions.py",
    "utils/counter.py",
    "v1/engine/exceptions.py",
    "entrypoints/openai/models/protocol.py",
    "entrypoints/openai/models/serving.py",
    "entrypoints/serve/engine/protocol.py",
    "entrypoints/serve/lora/protocol.py",
    "entrypoints/serve/exception_handling/error_response.py",
    "entrypoints/serve/exception_handling/utils.py",
)
"""What the probe runs; none of it needs a GPU or torch once the stand-ins below take the place of what it imports."""

STAND_INS = {
    "logger.py": "import logging\n\ndef init_logger(name):\n    return logging.getLogger(name)\n",
    "envs.py": "VLLM_PLUGINS = None\n",
    "config/__init__.py": "class ModelConfig: ...\n",
    "config/lora.py": "class LoRAConfig: ...\n",
    "engine/protocol.py": "class EngineClient: ...\n",
    "utils/__init__.py": "def random_uuid():\n    return '0' * 16\n",
    "entrypoints/serve/__init__.py": "from .exception_handling.error_response import create_error_response\n",
}


def pip(*arguments: str) -> None:
    """Run pip, or skip the test where it cannot reach what it is asked for."""
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip {arguments[0]} took over ten minutes")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot {arguments[0]} {arguments[-1]}: {error.stderr.strip().splitlines()[-1]}")


@pytest.fixture
def vllm_site(tmp_path: Path) -> Path:
    """A folder for the path, with vLLM's own files, stand-ins for the rest of it, and lorareg's entry point."""
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip("install", "--quiet", "--target", str(site), "msgspec", "pydantic", "regex")
    platform = ("--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:")
    pip("download", "--quiet", "--no-deps", *platform, "--dest", str(wheels), f"vllm=={VLLM}")
    (wheel,) = wheels.glob("vllm-*.whl")
    for name, text in STAND_INS.items():
        (site / "vllm" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "vllm" / name).write_text(text)
    with zipfile.ZipFile(wheel) as archive:
        for name in VLLM_FILES:
            archive.extract(f"vllm/{name}", site)
    wheel.unlink()
    for folder in (site / "vllm", *(path for path in (site / "vllm").rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"lorareg-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lorareg\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.mark.slow
def test_vllm_itself_resolves_and_takes_adapters(served: Registry, vllm_site: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(vllm_site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(PROBE), str(tmp_path / "into")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["registered"], told["is_resolver"]) == (["lorareg"], True)
    assert told["resolved"]["nobody"] == 404
    assert [request[0] for name, request in told["resolved"].items() if name != "nobody"] == ["task", "task@1"]
    assert told["resolved"]["task"][2] != told["resolved"]["task@1"][2]
    assert told["steps"] == [
        [["a", "loaded"], ["b", "loaded"]],
        [["a", "unchanged"], ["b", "replaced"]],
        [["b", "unloaded"], ["task", "unloaded"], ["task@1", "unloaded"], ["a", "unchanged"]],
    ]
    assert "conflicts with a served base model" in told["refused"]
    assert [name for name, _, in_place in told["added"] if in_place] == ["b"]
