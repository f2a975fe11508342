"""A registry of a few tiny adapters that has rows in every table and blobs of every kind."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.tokens import create_token

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
WIDTH = 16


def write_alike(folder: Path, name: str, *, saved: float | None = None, base_model: str = "tiny/base") -> Path:
    """A small adapter that resembles the others, with a tensor beside its factors if `saved`."""
    shared, own = np.random.default_rng(1), np.random.default_rng(zlib.crc32(name.encode()))
    tensors, base = {}, "base_model.model."
    for module in MODULES:
        a = shared.normal(size=(2, WIDTH)) + 0.05 * own.normal(size=(2, WIDTH))
        b = shared.normal(size=(WIDTH, 2)) + 0.2 * own.normal(size=(WIDTH, 2))
        tensors |= {f"{base}{module}.lora_A.weight": a, f"{base}{module}.lora_B.weight": b}
    if saved is not None:
        tensors[f"{base}{MODULES[0]}.lora_B.bias"] = np.full(WIDTH, saved)
    folder.mkdir(parents=True)
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": base_model, "r": 2, "lora_alpha": 4}
    config |= {"target_modules": ["q_proj", "v_proj"], "bias": "none", "lora_bias": saved is not None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(f"# {name}\n\nContinue the {name} text.\n")
    return folder


def fill(registry: Registry, folder: Path) -> None:
    """Versions, labels, codes old and new, with a generator and without, without loss, and no code at all.

    `one` has two versions, `three` and `four` have a tensor beside their factors, `exact` a lossless code, `raw` none,
    and `gone` was removed.
    """
    pairs = {"one-1": "one", "one-2": "one", "two": "two", "gone": "gone", "three": "three", "four": "four"}
    for name, task in pairs.items():
        path = write_alike(folder / name, name, saved=0.5 if name in ("three", "four") else None)
        registry.ingest(read_folder(path), name=task)
    registry.tag(registry.adapter("one@1"), "old")
    registry.tag(registry.adapter("one@2"), "stable")
    for tolerance in (0.3, 0.1):
        compress(registry, (), CompressOptions(Contract(tolerance=tolerance), arch="mean"), Silent())
    exact = registry.ingest(read_folder(write_alike(folder / "exact", "exact", base_model="tiny/other")), name="exact")
    (cohort,) = (cohort for cohort in registry.cohorts() if cohort.id == exact.adapter.cohort_id)
    compress(registry, (cohort.name,), CompressOptions(Contract(tolerance=0.0), arch="none"), Silent())
    registry.ingest(read_folder(write_alike(folder / "raw", "raw")), name="raw")
    registry.put_pin(registry.adapter("two"), "dear")
    registry.remember("x", {"y": 1})
    registry.remove(registry.adapter("gone"))
    create_token(registry, "ci", "read", "*")
