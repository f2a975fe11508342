"""Samples of a task that somebody hands over: read, cut into rows of tokens, and told apart from noise.

Plain text, `.jsonl` with {"text": ...} a line, or `.json` with a list of texts, as adapters bring it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from lorareg.compress.base_model import BaseModel, Tokens
from lorareg.compress.contracts.judge import MOST_ROWS, ROW_LENGTH
from lorareg.compress.factors.weights import Factors, Float64
from lorareg.compress.progress import Reporter
from lorareg.registry.errors import InvalidAdapterError, SamplesError
from lorareg.registry.files import read_capped
from lorareg.registry.peft_format import MAX_FILE_BYTES
from lorareg.registry.strict_json import parse_json
from lorareg.registry.types import SAMPLES_FILE, Layout

FEWEST_ROWS = 4
HELD_EVERY = 4
"""One row in four is held out, to judge by."""

CHECKED_CHARS, CHECKED_ROWS = 1200, 4
MOST_NOISE = 0.8
"""Nats a character, as a share of those for the same characters in random order.

SmolLM2-135M reads English, Japanese and Ukrainian prose and R code at 0.26 to 0.48 of it, random letters and random
ASCII at 0.95 to 1.00.
"""

_KINDS = 'Give UTF-8 text, .jsonl with {"text": ...} a line, or .json with a list of texts.'


@dataclass(frozen=True, slots=True)
class FewShot:
    """What samples came to: mean losses in nats a token, on the rows held out of the tuning."""

    rows: int
    held_rows: int
    steps: int
    loss_base: float
    loss_untuned: float
    loss: float  # of the adapter as it is written

    @property
    def helps(self) -> bool:
        return self.loss < self.loss_base


class Shot:
    """Samples as rows to tune on and rows held out, and the base model that reads them."""

    def __init__(self, model: BaseModel, path: Path) -> None:
        """Read and check the samples in a file.

        Raises:
            SamplesError: they are too short, no text, or random.
        """
        texts = read_samples(path)
        self.model = model
        self.rows = split_rows(sample_rows(model, texts, path))
        expect_text(model, texts, path)
        self.loss_base = model.loss(self.rows[1])
        self._steps = 0
        self._untuned: float | None = None

    def tune(
        self,
        layout: Layout,
        adapters: Sequence[Sequence[Factors]],
        weights: Float64,
        steps: int,
        reporter: Reporter,
    ) -> Float64:
        """Better weights of a mixture, (m,)."""
        from lorareg.compress.tasks.few_shot import Mixer, tune

        tuned = tune(self.model, Mixer(layout, adapters), weights, self.rows, steps, reporter)
        self._steps, self._untuned = tuned.steps, tuned.loss_before
        return tuned.weights

    def judge(self, layout: Layout, factors: Sequence[Factors]) -> FewShot:
        """What the finished adapter does on the rows held out.

        Raises:
            LayoutMismatchError: it does not fit the base model.
        """
        loss = self.model.loss(self.rows[1], self.model.weights_of(layout, factors))
        untuned = loss if self._untuned is None else self._untuned
        return FewShot(len(self.rows[0]), len(self.rows[1]), self._steps, self.loss_base, untuned, loss)


def read_samples(path: Path) -> list[str]:
    """The texts of a samples file, at least one.

    Raises:
        SamplesError: it cannot be read, or holds no text.
    """
    try:
        data = read_capped(path, MAX_FILE_BYTES[SAMPLES_FILE])
    except InvalidAdapterError as error:
        _refuse(path, str(error.fields["reason"]), _KINDS, error)
    try:
        texts = _texts(path.suffix, data)
    except (ValueError, TypeError, KeyError) as error:
        _refuse(path, f"it is not valid ({error})", _KINDS, error)
    texts = [text for text in texts if text.strip()]
    if not texts:
        _refuse(path, "there is no text in it", _KINDS)
    return texts


def sample_rows(model: BaseModel, texts: Sequence[str], path: Path) -> Tokens:
    """Rows of tokens (rows, length), spread over all of the texts.

    Raises:
        SamplesError: there are too few tokens.
    """
    ids = np.array(model.tokens("\n".join(texts)), np.int64)
    count = len(ids) // ROW_LENGTH
    if count < FEWEST_ROWS:
        wanted = FEWEST_ROWS * ROW_LENGTH
        _refuse(path, f"it has {len(ids)} tokens, and at least {wanted} are needed", "Give more text of the task.")
    chosen = np.linspace(0, count - 1, min(count, MOST_ROWS)).astype(int)
    return np.asarray(ids[: count * ROW_LENGTH].reshape(count, ROW_LENGTH)[chosen])


def split_rows(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """The rows to tune on, and those held out."""
    held = np.arange(len(tokens)) % HELD_EVERY == HELD_EVERY - 1
    return tokens[~held], tokens[held]


def expect_text(model: BaseModel, texts: Sequence[str], path: Path, seed: int = 0) -> None:
    """Text is what has an order: with its letters shuffled, a model reads it much worse, unless it was noise before.

    Raises:
        SamplesError: it was.
    """
    text = "\n".join(texts)[:CHECKED_CHARS]
    letters = np.random.default_rng(seed).permutation(list(text))
    found, shuffled = (_nats_per_character(model, each) for each in (text, "".join(letters)))
    if found > MOST_NOISE * shuffled:
        reason = (
            f"it looks random: the base model needs {found:.2f} nats a character, and {shuffled:.2f} for the same "
            f"characters shuffled; text stays below {MOST_NOISE:.0%} of that"
        )
        _refuse(path, reason, "Give text of the task that the base model can read.")


def _nats_per_character(model: BaseModel, text: str) -> float:
    """By the loss on a few rows, and how many characters a token has."""
    ids = np.array(model.tokens(text), np.int64)
    length = min(ROW_LENGTH, len(ids))
    rows = ids[: len(ids) // length * length].reshape(-1, length)[:CHECKED_ROWS]
    return float(model.loss(rows)) * len(ids) / len(text)


def _texts(suffix: str, data: bytes) -> list[str]:
    """Raises ValueError, TypeError or KeyError where the bytes are not of the kind that the suffix says."""
    if suffix == ".jsonl":
        found = [parse_json(line)["text"] for line in data.splitlines() if line.strip()]
    elif suffix == ".json":
        found = parse_json(data)
    else:
        found = [data.decode("utf-8")]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise TypeError("it holds something else than texts")
    return found


def _refuse(path: Path, reason: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise SamplesError(path=path, reason=reason, remedy=remedy) from cause
