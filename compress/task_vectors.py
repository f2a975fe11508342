"""Task vectors: what a generator is conditioned on.

Two encoders, told apart by the name stored with each vector:

- `text:...`: from the task description alone, with no model at hand. Words and character trigrams
  are hashed to signed coordinates (feature hashing, Weinberger et al. 2009), each weighted by the
  square root of its count. Deterministic: the hash is BLAKE2, not Python's.
- `hidden:...`: the last layer's hidden state at the last token of a base model, averaged over the
  task's samples, as in ICM-LoRA. The name holds a digest of the model's files.

Either is standardised (mean 0, deviation 1), clamped to ±4 and stored as int8 in units of 2^-5.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lorareg.compress.base_model import load_pretrained
from lorareg.compress.generator import CONDITION_EXPONENT, Int8
from lorareg.compress.weights import Float64
from lorareg.registry.types import TEXT_ENCODER_PREFIX

TEXT_SIZE = 128
MAX_SAMPLES = 32
MAX_TOKENS = 256
_CLAMP_DEVIATIONS = 3.97  # 127 / 32


class TaskEncoder(Protocol):
    """Makes task vectors. `name` is stored with each and never changes its meaning."""

    name: str

    def encode(self, description: str, samples: Sequence[str]) -> Int8:
        """The vector of a task, int8."""


class TextEncoder:
    """Hashed words and character trigrams of the description."""

    name = f"{TEXT_ENCODER_PREFIX}hashed-{TEXT_SIZE}-1"

    def encode(self, description: str, samples: Sequence[str]) -> Int8:
        """The vector of a description; samples are not used."""
        text = description.casefold()
        words = re.findall(r"\w+", text)
        features = Counter(f"w:{word}" for word in words)
        features.update(f"c:{text[i : i + 3]}" for i in range(len(text) - 2))
        vector = np.zeros(TEXT_SIZE)
        for feature in sorted(features):
            hashed = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
            vector[hashed % TEXT_SIZE] += np.sqrt(features[feature]) * (1 if hashed >> 63 else -1)
        return standardised(vector)


class HiddenStateEncoder:
    """The last-layer, last-token hidden state of a base model."""

    def __init__(self, path: Path) -> None:
        """Load the model in a Hugging Face folder, or in a GGUF file (or a folder holding one).

        Raises:
            MissingExtraError: torch or transformers is not installed.
            BaseModelError: there is no model at `path`, or it does not load.
        """
        self._tokenizer, self._model, digest = load_pretrained(path, "AutoModel")
        self.name = f"hidden:{self._model.config.model_type}-{digest[:12]}-1"

    def encode(self, description: str, samples: Sequence[str]) -> Int8:
        """The mean hidden state over the samples, or of the description where there are none."""
        import torch

        texts = [text for text in samples if text.strip()][:MAX_SAMPLES] or [description or "."]
        states = []
        with torch.no_grad():
            for text in texts:
                tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
                states.append(self._model(input_ids=tokens["input_ids"]).last_hidden_state[0, -1].double().numpy())
        return standardised(np.mean(states, axis=0))


def standardised(vector: Float64) -> Int8:
    """Standard deviations from the mean, clamped, as int8; zeros for a vector without variance."""
    deviation = float(vector.std())
    if deviation == 0:
        return np.zeros(len(vector), np.int8)
    clamped = np.clip((vector - vector.mean()) / deviation, -_CLAMP_DEVIATIONS, _CLAMP_DEVIATIONS)
    return np.asarray(np.rint(np.ldexp(clamped, -CONDITION_EXPONENT)), dtype=np.int8)
