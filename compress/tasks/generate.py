"""`generate` from end to end: an adapter for a task that has none, from the adapters of tasks that have.

    description --> task vector --> nearest known tasks --> their adapters, decoded --> weights (see `novel`)
    samples ----> checked, cut into rows ---------------------------------------------> weights tuned (see `few_shot`)
                                               sum of w_i ΔW_i at the layout's ranks --> PEFT folder, its card marked

Nothing is recorded in the registry. From a description alone it takes numpy and no torch, unless the registry was given
a sentence model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.factors.weights import Factors, Float64, write_weights
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.materialize import expect_free, write_folder
from lorareg.compress.progress import Reporter
from lorareg.compress.tasks.known import Comparison, compare, decode_all, find_cohort, newest
from lorareg.compress.tasks.merge import inner_products, merged
from lorareg.compress.tasks.novel import Mixture, Novelty, judge_novelty, predict_mixture, similarity_average
from lorareg.registry.card import novel_card, tidy_description
from lorareg.registry.errors import ContractError, MissingBlobError, NothingToDoError, UnrelatedTaskError
from lorareg.registry.reader import Reader
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, Cohort, Layout, sha256_hex

if TYPE_CHECKING:
    from lorareg.compress.tasks.samples import FewShot, Shot

Method = Literal["similarity", "mixture", "network", "nearest", "mean"]

MOST_MEMBERS = 256
"""The nearest tasks that a mixture is of: their factors are in memory together."""
MOST_TUNED = 64
"""The same where the mixture is tuned: it is then one LoRA of all their ranks together."""
SHOWN = 10
"""Known tasks that a card names."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate: a task in words, by samples, or both."""

    description: str = ""
    by: Method = "mixture"
    cohort: str | None = None
    samples: Path | None = None
    base_model: Path | None = None
    tune_steps: int = 24
    anyway: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A known task: how similar, and how much of its adapter is in the mixture."""

    adapter: Adapter
    similarity: float | None  # none without a description
    weight: float


@dataclass(frozen=True, slots=True)
class Made:
    """An adapter for a new task, and all that is known about how good it may be."""

    factors: Sequence[Factors]
    neighbours: Sequence[Neighbour]  # the most similar first, else the heaviest
    novelty: Novelty | None
    mixture: Mixture | None
    few_shot: FewShot | None


@dataclass(frozen=True, slots=True)
class Generated:
    """A written folder."""

    path: Path
    cohort: Cohort
    request: Request
    made: Made
    output_digest: str
    elapsed_s: float


def generate(home: Path, request: Request, out: Path | None, reporter: Reporter, *, force: bool = False) -> Generated:
    """Write an adapter for a task that was never ingested as a PEFT folder at `out` (default: ./novel-...).

    Raises:
        NothingToDoError: there is no task, or there are fewer than two adapters to learn from.
        ContractError: the cohort, the base model or a prior that is needed is not known.
        UnknownCohortError: there is no such cohort.
        UnrelatedTaskError: the description is like no known task, and neither samples nor `anyway` were given.
        SamplesError: the samples are too short, no text, or random.
        BaseModelError: the base model does not load.
        LayoutMismatchError: it is not the one that the adapters are for.
        OutputExistsError: `out` exists and `force` was not given.
        OutputInUseError: `out` holds something else than an adapter, which `force` does not replace.
        IntegrityError: stored bytes are damaged.
    """
    started = time.perf_counter()
    description = tidy_description(request.description)
    if not description and request.samples is None:
        raise NothingToDoError(message="There is no task to generate for: give a --description, --samples, or both.")
    if not description and request.by in ("similarity", "nearest", "network"):
        raise ContractError(option=f"--by {request.by}", reason="it goes by what the task is; give a --description")
    with Reader(home) as reader:
        target = out if out is not None else Path(folder_name(description, request.samples))
        expect_free(target, force)
        run = _Run(reader, find_cohort(reader, request.cohort), request, description, reporter)
        made = run.make()
        weights = write_weights(run.layout, made.factors)
        card = novel_card(description, run.cohort.base_model, _card_lines(made, request, run.cohort))
        config = reader.read_file(made.neighbours[0].adapter, CONFIG_FILE)
    write_folder(target, {CONFIG_FILE: config, WEIGHTS_FILE: weights, CARD_FILE: card.encode()})
    return Generated(target, run.cohort, request, made, sha256_hex(weights), time.perf_counter() - started)


def folder_name(description: str, samples: Path | None) -> str:
    """A short name of the task for its folder: novel-swedish-manual-pages."""
    words = re.findall(r"[a-z0-9]+", (description or (samples.stem if samples else "")).casefold())[:6]
    return "-".join(["novel", *words])[:60].rstrip("-")


class _Run:
    """One request's way from a task to an adapter."""

    def __init__(self, reader: Reader, cohort: Cohort, request: Request, description: str, reporter: Reporter) -> None:
        self.reader, self.cohort, self.request = reader, cohort, request
        self.description, self.reporter = description, reporter
        self.layout = Layout.from_json(cohort.layout)
        self.members, self.comparisons = self._members()

    def make(self) -> Made:
        """The adapter. Whatever was given is checked before anything is decoded."""
        novelty = self._novelty() if self.comparisons else None
        shot = self._shot()
        mixture = None
        if self.request.by == "network":
            weights, factors = np.zeros(len(self.members)), list(self._drawn())
        else:
            adapters = decode_all(self.reader, self.members, self.reporter)
            weights, mixture = self._weights(adapters, novelty)
            if shot is not None and self.request.tune_steps:
                weights = shot.tune(self.layout, adapters, weights, self.request.tune_steps, self.reporter)
            factors = merged(adapters, weights.tolist(), [slot.shape[0] for slot in self.layout.slots[0::2]])
        few_shot = shot.judge(self.layout, factors) if shot is not None else None
        if few_shot is not None and not few_shot.helps:
            self.reporter.note("On the samples held out, the base model does no worse without this adapter.")
        return Made(factors, self._neighbours(weights, novelty), novelty, mixture, few_shot)

    def _members(self) -> tuple[list[Adapter], tuple[Comparison, ...]]:
        """The known tasks to mix, the nearest where there are too many, and how the new one compares with them."""
        adapters = newest(self.reader, self.cohort)
        most = MOST_MEMBERS if self.request.samples is None else MOST_TUNED
        if not self.description:
            chosen = np.linspace(0, len(adapters) - 1, min(len(adapters), most)).astype(int).tolist()
            return [adapters[index] for index in chosen], ()
        comparisons = compare(self.reader, adapters, self.description, self.reporter)
        chosen = sorted(np.argsort(-comparisons[-1].condition.similarities, kind="stable")[:most].tolist())
        return [adapters[index] for index in chosen], tuple(each.part(chosen) for each in comparisons)

    def _novelty(self) -> Novelty:
        """How new the task is; says so where it matters.

        Raises:
            UnrelatedTaskError: too new to tell anything from the description, and nothing else was given.
        """
        encoder, known = self.comparisons[-1].encoder, [adapter.description for adapter in self.members]
        novelty = judge_novelty(self.description, known, lambda text: encoder.encode(text, ()), encoder.name)
        ref = self.members[int(novelty.similarities.argmax())].ref
        if novelty.kinship == "unrelated" and self.request.samples is None and not self.request.anyway:
            raise UnrelatedTaskError(
                description=self.description[:80],
                cohort=self.cohort.name,
                found=f"{novelty.nearest:.2f}",
                nearest=ref,
                expected=f"{novelty.by_chance:.2f}",
            )
        said = {
            "unrelated": "The description is no more like a known task than shuffled letters are.",
            "far": f"The nearest known task, {ref}, is further than any known task is from its own nearest.",
            "known": f"{ref} has this description: `lorareg materialize {ref}` gives the adapter itself.",
            "near": "",
        }[novelty.kinship]
        if said:
            self.reporter.note(said)
        return novelty

    def _shot(self) -> Shot | None:
        """The samples, if there are any.

        Raises:
            SamplesError: they are too short, no text, or random.
            ContractError: no base model is known.
            BaseModelError: it does not load.
        """
        if self.request.samples is None:
            return None
        from lorareg.compress.base_model import BaseModel
        from lorareg.compress.contracts.judge import base_model_path
        from lorareg.compress.tasks.samples import Shot, read_samples

        read_samples(self.request.samples)  # so that what is wrong with the file is told before a model is loaded
        path = base_model_path(self.reader, self.cohort.base_model, self.request.base_model, "--samples")
        return Shot(BaseModel(path), self.request.samples)

    def _weights(
        self, adapters: Sequence[Sequence[Factors]], novelty: Novelty | None
    ) -> tuple[Float64, Mixture | None]:
        """How much of each member to take, (m,)."""
        count = len(adapters)
        if self.request.by == "nearest" and novelty is not None:
            return np.asarray(np.arange(count) == novelty.similarities.argmax(), np.float64), None
        if self.request.by == "similarity" and self.comparisons:
            return similarity_average(self.comparisons[-1].condition.similarities), None  # the best comes last
        if self.request.by == "mean" or not self.comparisons:
            return np.full(count, 1 / count), None
        gram = inner_products(adapters, self.layout.scales).sum(axis=0)
        mixture = predict_mixture([each.condition for each in self.comparisons], gram)
        return mixture.weights, mixture

    def _drawn(self) -> Sequence[Factors]:
        """What the cohort's newest generator with a prior draws for the description.

        Raises:
            ContractError: there is none, or it takes another kind of task vectors.
        """
        option = "--by network"
        for row in reversed(self.reader.generators(self.cohort.id)):
            try:
                data = self.reader.blobs.get(row.sha256)
            except MissingBlobError:
                continue  # `prune` let it go
            loaded = LoadedGenerator.from_bytes(data, row.sha256, self.layout)
            wanted = next((c for c in self.comparisons if c.encoder.name == loaded.generator.encoder), None)
            if wanted is None and "prior" in loaded.generator.tensors:
                reason = f"its generator takes task vectors by {loaded.generator.encoder!r}; train one on descriptions"
                raise ContractError(option=option, reason=reason)
            if wanted is None:
                continue
            latent = prior_latent(loaded.generator, wanted.condition.wanted)
            if latent is not None:
                return loaded.draw(self.layout, latent, wanted.condition.wanted).factors
        reason = "this cohort's generator has no learned prior; run compress --arch slots --mask-latents 30% --retrain"
        raise ContractError(option=option, reason=reason)

    def _neighbours(self, weights: Float64, novelty: Novelty | None) -> tuple[Neighbour, ...]:
        similar = [None] * len(weights) if novelty is None else novelty.similarities.tolist()
        found = [Neighbour(*one) for one in zip(self.members, similar, weights.tolist(), strict=True)]
        return tuple(sorted(found, key=lambda one: (-(one.similarity or 0.0), -one.weight, one.adapter.name)))


def _card_lines(made: Made, request: Request, cohort: Cohort) -> list[str]:
    """What a card says of where the adapter is from."""
    how = {
        "similarity": f"{len(made.neighbours)} adapters of cohort `{cohort.name}`, weighted by similarity",
        "mixture": f"A mixture of {len(made.neighbours)} adapters of cohort `{cohort.name}`",
        "mean": f"The mean of {len(made.neighbours)} adapters of cohort `{cohort.name}`",
        "nearest": f"The adapter of the nearest task in cohort `{cohort.name}`",
        "network": f"Drawn by the generator of cohort `{cohort.name}`",
    }[request.by]
    lines = [f"**Generated by lorareg for a task that it has no adapter of. Novel: quality unproven.** {how}."]
    if made.mixture is not None:
        lines.append(
            f"Known tasks, each told from the others in this way, missed {made.mixture.error:.3f} of the squared norm "
            f"of their weight updates; their mean adapter missed {made.mixture.error_of_mean:.3f}."
        )
    if made.few_shot is not None:
        shot = made.few_shot
        lines.append(
            f"Weights tuned for {shot.steps} steps on {shot.rows} rows of samples. Loss on {shot.held_rows} others, in "
            f"nats a token: {shot.loss_base:.3f} without the adapter, {shot.loss_untuned:.3f} before tuning, "
            f"{shot.loss:.3f} with it."
        )
    if made.novelty is not None:
        lines.append(
            f"Similarity with the nearest known task {made.novelty.nearest:.2f}; known tasks have "
            f"{made.novelty.median_known:.2f} with theirs (median), shuffled letters {made.novelty.by_chance:.2f}."
        )
    lines += ["", "| known task | similarity | weight |", "|---|---|---|"]
    for one in made.neighbours[:SHOWN]:
        similarity = "-" if one.similarity is None else f"{one.similarity:.3f}"
        lines.append(f"| `{one.adapter.ref}` | {similarity} | {one.weight:.3f} |")
    return lines
