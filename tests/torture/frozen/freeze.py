"""Makes the registries beside it, each with the lorareg of its time.

    git worktree add --detach OLD COMMIT
    python tests/torture/frozen/freeze.py 0002-first OLD

`MADE_BY` names the commit of each. What it runs are the commands of the checkout OLD alone, on adapters of a kilobyte;
the digests in `NAME.json` are of what that lorareg itself gave back. Run it once for each new schema or format, never
to make a failing test pass: the files stand for what users have. A trained conv1d takes a megabyte, so its codes are
among the golden files of tests/compress alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
WORK = Path("/tmp/frozen")  # paths are in the rows: none of somebody's machine

MADE_BY = {
    "0001-first": "63c31e2",  # the first codecs
    "0001": "c43c856",  # residual-2 and predicted-2, linear generators
    "0002-first": "d2646e5",  # certificates, second copies, pruning, priors
    "0002": "7e3f038",  # lossless-2, extras, adapters of other kinds, bundles
    "0003": "3f5b2d7",  # tokens, audit log
    "0004": "a022eca",  # the ledger, generators lent to other cohorts, adapters of a unet and a text encoder
}
DRAWN = {
    "0001-first": ("mean", "slots"),
    "0001": ("mean", "slots", "linear"),
    "0002-first": ("slots", "prior"),
    "0002": ("linear", "prior"),
    "0003": ("slots", "linear"),
    "0004": ("linear",),
}
"""Cohorts with a generator: its architecture, or `prior` for slots with one. Few: each certificate takes 2 kB."""

RESERVE = "home/reserve"  # a megabyte of nothing, which any command makes anew

WITH_KINDS = ("0002", "0003", "0004")
"""Those that have what is not a plain LoRA."""

COMMON = 7
"""The seed of what adapters of one cohort share."""


class Lorareg:
    """The commands of a checkout, on the registry being made."""

    def __init__(self, checkout: Path) -> None:
        types = checkout / "build" / "types"
        types.mkdir(parents=True, exist_ok=True)
        if not (types / "lorareg").exists():
            (types / "lorareg").symlink_to("../..")
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("LORAREG")}
        self._environment |= {"PYTHONPATH": str(types), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: object) -> Any:
        command = [sys.executable, "-m", "lorareg.cli", *map(str, arguments), "--home", "home", "--json"]
        done = subprocess.run(command, cwd=WORK, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def compress(self, base: str, *arguments: object) -> None:
        """`compress` the cohort of a base model."""
        names = [cohort["name"] for cohort in self("cohorts")["cohorts"] if cohort["base_model"] == f"frozen/{base}"]
        for name in names:
            self("compress", name, *arguments)


def write_adapter(
    name: str,
    seed: int,
    spread: float,
    *,
    dtype: type[np.floating[Any]] = np.float32,
    more: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """An adapter `base/task`: what its cohort shares, and `spread` of its own; in 64ths, which pack well."""
    common, own = np.random.default_rng(COMMON), np.random.default_rng(1000 + seed)
    weights = dict(more or {})
    for layer in range(2):
        for factor, shape in (("A", (2, 12)), ("B", (14, 2))):
            values = common.normal(size=shape) + spread * own.normal(size=shape)
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{factor}.weight"
            weights[key] = (np.round(values * 64) / 64).astype(dtype)
    base, _, task = name.partition("/")
    fields = {"base_model_name_or_path": f"frozen/{base}", "r": 2, "lora_alpha": 4, "bias": "none"}
    write_folder(name, weights, {"peft_type": "LORA", "target_modules": ["q_proj"], **fields, **(config or {})})
    (WORK / "adapters" / name / "README.md").write_text(f"# {task}\n\nContinue texts of {base} like {task}.\n")


def write_folder(name: str, weights: dict[str, np.ndarray], config: Mapping[str, Any]) -> None:
    folder = WORK / "adapters" / name
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_near(bases: tuple[str, ...]) -> None:
    """Adapters that their cohort's generator draws well enough, and others that need a residual."""
    for base in bases:
        for seed in range(2):
            write_adapter(f"{base}/near-{seed}", seed, 0.1)


def write_far(bases: tuple[str, ...]) -> None:
    for base in bases:
        write_adapter(f"{base}/far", 10, 0.4)


def write_borrower() -> None:
    """An adapter that began where those of `linear` did, in a cohort of its own: its scale is another."""
    write_adapter("linear/borrower", 12, 0.1, config={"lora_alpha": 16})


def write_pipeline() -> None:
    """A file as diffusers writes it, of a unet and a text encoder."""
    own, weights = np.random.default_rng(50), {}
    for module in ("unet.mid_block.attentions.0.to_q", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"):
        for factor, shape in (("A", (2, 12)), ("B", (14, 2))):
            values = np.round(own.normal(size=shape) * 64) / 64
            weights[f"{module}.lora_{factor}.weight"] = values.astype(np.float32)
    folder = WORK / "adapters" / "pipeline" / "style"
    folder.mkdir(parents=True)
    save_file(weights, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text("---\nbase_model: frozen/pipeline\n---\n\nA style.\n")


def make(name: str, lorareg: Lorareg) -> dict[str, Any]:
    """Fill `home`; what tests need to know beside the registry itself."""
    schema, drawn, known = name[:4], DRAWN[name], {}
    write_near(drawn)
    if schema < "0004":
        write_adapter("lossless/f32", 20, 1.0)
    write_adapter("lossless/f16", 21, 1.0, dtype=np.float16)
    write_adapter("alone/one", 22, 1.0)
    write_adapter("alone/gone", 23, 1.0)
    if name in WITH_KINDS:
        write_kinds()
    if schema > "0003":
        write_pipeline()
    lorareg("ingest", "adapters")
    lorareg.compress("lossless", "--arch", "none", "--tolerance", "0.0")
    lorareg.compress("alone", "--arch", "none", "--tolerance", "0.3")
    for base in drawn:
        options = ("--arch", "slots", "--mask-latents", "0.3") if base == "prior" else ("--arch", base)
        lorareg.compress(base, *options, "--steps", "3", "--tolerance", "0.2")
        lorareg.compress(base, "--tolerance", "0.9")  # the same generator, and what it draws is enough
    write_far(drawn)
    shutil.rmtree(WORK / "adapters" / "alone")
    write_adapter("alone/one", 24, 1.0)
    lorareg("ingest", "adapters")
    if schema > "0003":
        write_borrower()
        lorareg("ingest", "adapters")
        lorareg.compress("pipeline", "--arch", "none", "--tolerance", "0.3")
    for base in drawn:
        lorareg.compress(base)
    lorareg.compress("alone", "--tolerance", "0.1")
    lorareg("tag", "alone/one@1", "first")
    lorareg("rm", "alone/gone")
    if name in WITH_KINDS:
        lorareg.compress("extras", "--arch", "none", "--tolerance", "0.3")
    if schema > "0001":
        lorareg("pin", f"{drawn[0]}/far", "--reason", "frozen")
        lorareg("replicate", "second-copy")
        lorareg("prune", "--apply")
        lorareg("prune", "--sweep", "--grace-days", "0")
        lorareg("pin", f"{drawn[-1]}/far")
        lorareg("certificate", "alone/one@1", "-o", "certificate.json")
    if schema > "0002":
        known["token"] = lorareg("token", "create", "ci", "--scope", "write")["token"]
    if schema > "0003":
        lorareg("export", "linear/borrower", "pipeline/style", "-o", "bundle.tar", "--no-originals")
    elif name in WITH_KINDS:
        chosen = ("alone/one@1", "extras/0", "extras/1", "lossless/f16", "linear/near-0", "linear/far", "whole/ia3")
        lorareg("export", *chosen, "-o", "bundle.tar", "--no-originals")
    return known


def write_kinds() -> None:
    """What formats say beside factors: extras small, large and as a difference, and a peft_type kept whole."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    head = (np.arange(20_000) % 251).astype(np.float32)
    for seed in range(2):
        more = {f"{module}.lora_magnitude_vector": np.full(14, 1.5 + seed, np.float32)}
        more["base_model.model.lm_head.weight"] = (head + (np.arange(20_000) == 40 + seed)).reshape(100, 200)
        config = {"use_dora": True, "modules_to_save": ["lm_head"]}
        write_adapter(f"extras/{seed}", 30 + seed, 0.1, more=more, config=config)
    scale = {f"{module}.ia3_l": np.full((14, 1), 0.25, np.float32)}
    config = {"peft_type": "IA3", "base_model_name_or_path": "frozen/whole", "target_modules": ["q_proj"]}
    write_folder("whole/ia3", scale, {**config, "feedforward_modules": []})


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def given_back(lorareg: Lorareg) -> dict[str, dict[str, str]]:
    """What every version of every adapter is given back as."""
    found = {}
    for adapter in lorareg("list")["adapters"]:
        for version in range(1, adapter["version"] + 1):
            ref = f"{adapter['name']}@{version}"
            shutil.rmtree(WORK / "out", ignore_errors=True)
            lorareg("materialize", ref, "-o", "out")
            found[ref] = digests(WORK / "out")
    return found


def main(name: str, checkout: Path) -> None:
    """Make one registry, and write down what it gives back."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    if not commit.stdout.startswith(MADE_BY[name]):
        sys.exit(f"{name} is made by {MADE_BY[name]}, and {checkout} is at {commit.stdout}")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    lorareg = Lorareg(checkout)
    known = make(name, lorareg)
    known["given_back"] = given_back(lorareg)
    with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
        for made in ("home", "certificate.json", "bundle.tar"):
            if (WORK / made).exists():
                archive.add(WORK / made, made, filter=lambda file: None if file.name == RESERVE else file)
    (HERE / f"{name}.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
