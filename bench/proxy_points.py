"""Points for `bench/proxies.py`: one adapter at one rate, what was lost of its weights, and what of its behaviour.

Each is a production code, decoded. Few rows of tokens stand for all, so that hundreds of points are
affordable; what a point says of behaviour is exact for those rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cohort import BenchCohort
from numpy.typing import NDArray
from ours import Workshop
from results import Row

from lorareg.compress.base_model import PEFT_PREFIX, BaseModel, Tokens, Weights
from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.codec.encode import Draft, Encoded, encode
from lorareg.compress.contracts.judge import ROW_LENGTH
from lorareg.compress.factors.fidelity import energy
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.planning.coordinates import EMPTY, draft_of, latent_of
from lorareg.compress.probe import PROBE_TEXTS
from lorareg.registry.types import Layout

TABLE_TOLERANCE = 0.4
"""That the mean table is planned at, for all rates."""
BATCH = 4
INPUT_ROWS = 8
"""Of the built-in text, for the inputs that errors are weighted with."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rate:
    """How an adapter is encoded."""

    arch: str  # "none" or "mean"
    tolerance: float

    @property
    def name(self) -> str:
        return f"{self.arch} {self.tolerance:g}"


RATE_BLOCKS = (
    (Rate("none", 0.2), Rate("mean", 0.45), Rate("none", 0.65), Rate("mean", 0.8)),
    (Rate("mean", 0.1), Rate("none", 0.35), Rate("mean", 0.3), Rate("none", 0.5), Rate("mean", 0.6)),
)
"""A block at a time over all adapters, so that a stopped run covers them evenly."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What one adapter is tried on: rows of tokens, (rows, length) each."""

    evaluation: Tokens
    samples: Tokens
    probe: Tokens


@dataclass(frozen=True, slots=True)
class Said:
    """Log-probabilities of the model on each text, a torch tensor (rows, length, vocabulary) a batch."""

    evaluation: list[Any]
    samples: list[Any]
    probe: list[Any]


class Measurer:
    """Encodes adapters of one cohort at any rate, and measures what came back."""

    def __init__(self, cohort: BenchCohort, table: LoadedGenerator, model: BaseModel) -> None:
        """`table` is the cohort's mean table."""
        self.cohort, self.table, self.model = cohort, table, model
        self._step: dict[str, float | None] = {}

    def rates(self, index: int, texts: Texts, rates: Sequence[Rate]) -> list[Row]:
        """A row for each of some rates of one adapter."""
        factors = self.cohort.originals[index].factors
        base, before = self._say({}, texts), self._say(self._weights(factors), texts)
        alone = {
            "loss_base": float(_losses(base.evaluation, texts.evaluation).mean()),
            "loss_original": float(_losses(before.evaluation, texts.evaluation).mean()),
            "kl_samples_base": _divergence(before.samples, base.samples),
            "kl_probe_base": _divergence(before.probe, base.probe),
        }
        del base
        return [{**self._point(index, rate, texts, before, alone), **alone} for rate in rates]

    def _point(self, index: int, rate: Rate, texts: Texts, before: Said, alone: Row) -> Row:
        original, started = self.cohort.originals[index], time.monotonic()
        encoded = self._encode(index, rate)
        encoded_at = time.monotonic()
        restored = read_weights(encoded.output, original.layout)
        figures = weight_figures(original.layout, original.factors, restored, self._inputs)
        compared_at = time.monotonic()
        after = self._say(self._weights(restored), texts)
        lost = _losses(after.evaluation, texts.evaluation) - _losses(before.evaluation, texts.evaluation)
        gained = alone["loss_base"] - alone["loss_original"]
        return {
            "adapter": original.what,
            "rate": rate.name,
            "tier": encoded.codec.tier,
            "code_bytes": len(encoded.code),
            "original_bytes": len(original.data),
            "relative_error": encoded.fidelity.relative_error,
            "worst_module_error": encoded.fidelity.worst_module_error,
            "cosine": encoded.fidelity.cosine,
            **figures,
            "kl_samples": _divergence(before.samples, after.samples),
            "kl_probe": _divergence(before.probe, after.probe),
            "kl_evaluation": _divergence(before.evaluation, after.evaluation),
            "gain": 1 - float(lost.mean()) / gained,
            "gain_noise": float(lost.std()) / math.sqrt(lost.size) / gained,  # standard error, from token to token
            "encode_s": encoded_at - started,
            "compare_s": compared_at - encoded_at,
            "model_s": time.monotonic() - compared_at,
        }

    def _encode(self, index: int, rate: Rate) -> Encoded:
        encoded = encode(
            self.cohort.originals[index], self._draft(index, rate), rate.tolerance, self._step.get(rate.name)
        )
        self._step[rate.name] = encoded.step or self._step.get(rate.name)
        return encoded

    def _draft(self, index: int, rate: Rate) -> Draft | None:
        if rate.arch == "none":
            return None
        original = self.cohort.originals[index]
        return draft_of(self.table, original, latent_of(self.table.generator, original.factors), EMPTY)

    @cached_property
    def _inputs(self) -> list[Matrix]:
        return input_moments(self.model, self.cohort.layout, probe_rows(self.model, INPUT_ROWS))

    def _weights(self, factors: Sequence[Factors]) -> Weights:
        return self.model.weights_of(self.cohort.layout, factors)

    def _say(self, weights: Weights, texts: Texts) -> Said:
        import torch

        def read(tokens: Tokens) -> list[Any]:
            batches = torch.as_tensor(tokens).split(BATCH)  # type: ignore[no-untyped-call]
            return [self.model.logits(batch).log_softmax(-1) for batch in batches]

        with torch.no_grad(), self.model.adapted(weights):
            return Said(read(texts.evaluation), read(texts.samples), read(texts.probe))


def mean_table(workshop: Workshop) -> LoadedGenerator:
    """The cohort's mean table, planned once for all rates."""
    loaded = workshop.plan("mean", TABLE_TOLERANCE).loaded
    assert loaded is not None
    return loaded


def weight_figures(
    layout: Layout, original: Sequence[Factors], restored: Sequence[Factors], inputs: Sequence[Matrix]
) -> Row:
    """Of every module: share of the energy, error, strength <ΔW, ΔW'> / ||ΔW||²; and the error as inputs feel it.

    Args:
        layout: of both.
        original: factors.
        restored: factors.
        inputs: second moments (d_in, d_in) of what each module is given.
    """
    energies, errors, strengths, felt, lost = [], [], [], 0.0, 0.0
    for scale, x, y, moment in zip(layout.scales, original, restored, inputs, strict=True):
        difference = Factors(b=np.concatenate([x.b, -y.b], axis=1), a=np.concatenate([x.a, y.a]))
        whole = energy(x)
        inner = float(np.sum((x.b.T @ y.b) * (x.a @ y.a.T)))
        energies.append(scale**2 * whole)
        errors.append(math.sqrt(energy(difference) / whole) if whole else 0.0)
        strengths.append(inner / whole if whole else 1.0)
        felt += scale**2 * _felt(x, moment)
        lost += scale**2 * _felt(difference, moment)
    total = math.fsum(energies)
    return {
        "module_shares": [one / total for one in energies],
        "module_errors": errors,
        "module_strengths": strengths,
        "input_error": math.sqrt(max(lost, 0.0) / felt) if felt else 0.0,
    }


def _felt(factors: Factors, moment: Matrix) -> float:
    """E||b a x||² over inputs x of a second moment: trace((b'b)(a M a'))."""
    return float(np.sum((factors.b.T @ factors.b) * (factors.a @ moment @ factors.a.T)))


def input_moments(model: BaseModel, layout: Layout, tokens: Tokens) -> list[Matrix]:
    """E[x x'] of what each module is given while the base model reads some tokens."""
    import torch

    known = dict(model.model.named_modules())
    sums: dict[str, Any] = {}
    handles = []
    for module in layout.modules:

        def add(_: Any, inputs: Any, module: str = module) -> None:
            x = inputs[0].flatten(0, -2)
            sums[module] = sums.get(module, 0) + x.T @ x

        handles.append(known[module.removeprefix(PEFT_PREFIX)].register_forward_pre_hook(add))
    with torch.no_grad():
        for batch in torch.as_tensor(tokens).split(BATCH):  # type: ignore[no-untyped-call]
            model.model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return [np.asarray(sums[module].numpy() / tokens.size, np.float32) for module in layout.modules]


def probe_rows(model: BaseModel, count: int) -> Tokens:
    """Rows of the built-in text, spread over it."""
    return spread(_rows(model, "\n".join(PROBE_TEXTS)), count)


def sample_rows(model: BaseModel, texts: Sequence[str], count: int) -> Tokens:
    """Rows of an adapter's samples, spread over them."""
    return spread(_rows(model, "\n".join(texts)), count)


def spread(rows: Tokens, count: int) -> Tokens:
    """Some rows at equal distances, or all where there are no more."""
    chosen = sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(count, len(rows)))})
    return rows[chosen]


def _rows(model: BaseModel, text: str) -> Tokens:
    ids = model.tokens(text)
    count = len(ids) // ROW_LENGTH
    return np.array(ids[: count * ROW_LENGTH], np.int64).reshape(count, ROW_LENGTH)


def _losses(said: Sequence[Any], tokens: Tokens) -> NDArray[np.float64]:
    """Cross-entropy of every token after the first of its row, in nats."""
    import torch

    rows = torch.as_tensor(tokens)[:, 1:, None]
    return np.asarray(-torch.cat(list(said))[:, :-1].gather(2, rows).numpy().ravel(), np.float64)


def _divergence(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Mean KL divergence of log-probabilities, nats a token."""
    import torch

    total = sum(
        float(torch.nn.functional.kl_div(y, x, reduction="sum", log_target=True))
        for x, y in zip(first, second, strict=True)
    )
    return total / sum(x.shape[0] * x.shape[1] for x in first)
