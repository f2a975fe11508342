"""The ways in which ICM-LoRA's protocol stores a rank's checkpoints: the paper's, its null model, and ours.

Each gives bytes (shared, a checkpoint, and what decoding needs beside them) and the weights files it
gives back for the last checkpoint of each task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cohort import BenchCohort
from methods import MeanAdapter, compare
from ours import CONV1D, Workshop, drawn_code, random_latent
from results import Row

from lorareg.compress.codec.codecs import decode
from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.generators.grid import factor_rows
from lorareg.compress.planning.coordinates import draft_of
from lorareg.compress.planning.plan import Plan
from lorareg.compress.progress import Reporter

if TYPE_CHECKING:
    from paper import RankStudy

ICM, PUBLIC = "conv1d, one network", "conv1d, a network a task"
TOLERANCE = 0.2
TINY = 1e-12
REFINE_STEPS = 1
"""Of conv1d's latents, after their posterior mean: the paper has none, and each costs a pass over all checkpoints."""


class Ways:
    """All ways for one rank. Plans are made once."""

    def __init__(self, study: RankStudy, folder: Path, seed: int, reporter: Reporter) -> None:
        """`folder` is where training keeps checkpoints, so that it goes on after a stop."""
        self.study, self.folder, self.seed, self.reporter = study, folder, seed, reporter
        self.workshop = self._workshop(study.cohort)

    def originals(self) -> Row:
        """The files as they are."""
        originals = self.study.cohort.originals
        restored = {task: originals[index].data for task, index in self.study.last.items()}
        return self._row(0, [len(original.data) for original in originals], restored)

    def mean_checkpoints(self) -> Row:
        """One adapter a task: the mean of its checkpoints' factors (a model soup), in float16."""
        shared, restored, layout = 0, {}, self.study.cohort.layout
        for task in self.study.tasks:
            cohort = self._part(self.study.of(task))
            data = MeanAdapter().share(cohort)
            shared += len(data)
            restored[task] = write_weights(layout, MeanAdapter().decode(b"", data, layout))
        return self._row(shared, [0] * len(self.study.cohort.originals), restored)

    def ours(self, tolerance: float) -> Row:
        """Every checkpoint within a tolerance, with a linear generator."""
        return self._encoded(self.workshop, self.study.cohort, list(self.study.last.items()), "linear", tolerance)

    def ours_latent(self) -> Row:
        """Every checkpoint as our linear generator draws it from its latent, with nothing added."""
        return self._drawn(self.workshop.plan("linear", TOLERANCE), stored=True)

    def ours_last(self, tolerance: float) -> Row:
        """The last checkpoint of each task alone within a tolerance, with the cheapest of our tables."""
        cohort = self._part(list(self.study.last.values()))
        workshop = self._workshop(cohort)
        plans = {arch: workshop.plan(arch, tolerance) for arch in ("none", "mean", "linear")}
        arch = min(plans, key=lambda name: plans[name].estimated_bytes)
        last = [(task, index) for index, task in enumerate(self.study.last)]
        return {**self._encoded(workshop, cohort, last, arch, tolerance), "arch": arch}

    def icm(self, steps: int, *, stored: bool) -> Row:
        """The paper's CVAE over the checkpoints of all tasks, with latents as stored or drawn from N(0, 1)."""
        plan = self.workshop.plan(CONV1D, TOLERANCE, steps)
        return {**self._drawn(plan, stored=stored), "train_steps": plan.metrics["steps"], "loss": plan.metrics["loss"]}

    def public(self, steps: int) -> Row:
        """One CVAE a task over its own checkpoints, drawn with z ~ N(0, 1), as the paper's public code does.

        What is drawn gets the mean and deviation of the original's own tensors, which that code keeps beside it.
        """
        shared, errors, restored = 0, {}, {}
        for task in self.study.tasks:
            cohort = self._part(self.study.of(task))
            plan = self._workshop(cohort).plan(CONV1D, TOLERANCE, steps)
            shared += len(plan.file)
            drawn = self._draw(plan, cohort, len(cohort.originals) - 1, stored=False)
            restored[task] = with_moments_of(cohort.originals[-1], drawn, cohort.originals)
            errors[task] = plan.metrics["loss"]
        code_bytes = [len(condition) for condition in self.study.cohort.conditions]
        moments = 2 * np.dtype(np.float32).itemsize * len(self.study.cohort.layout.slots)
        row = self._row(shared, code_bytes, restored)
        return {**row, "side_bytes": moments, "train_steps": steps, "loss": errors}

    def _encoded(
        self, workshop: Workshop, cohort: BenchCohort, last: Sequence[tuple[str, int]], arch: str, tolerance: float
    ) -> Row:
        plan, started = workshop.plan(arch, tolerance), time.monotonic()
        sizes, outputs, step = [], [], plan.step
        for index, original in enumerate(cohort.originals):
            draft = None
            if plan.loaded is not None:
                draft = draft_of(plan.loaded, original, plan.latents[index], cohort.conditions[index])
            encoded = encode(original, draft, tolerance, step)
            step = encoded.step or step
            sizes.append(len(encoded.code))
            outputs.append(encoded.output)
        row = self._row(len(plan.file), sizes, {task: outputs[index] for task, index in last})
        return {**row, "latent_size": len(plan.latents[0]) if plan.latents else 0, "s": time.monotonic() - started}

    def _drawn(self, plan: Plan, *, stored: bool) -> Row:
        restored = {
            task: self._draw(plan, self.study.cohort, index, stored=stored) for task, index in self.study.last.items()
        }
        assert plan.loaded is not None
        latent = len(plan.latents[0]) if stored else 0
        each = latent + plan.loaded.generator.condition_size
        return self._row(len(plan.file), [each] * len(self.study.cohort.originals), restored)

    def _draw(self, plan: Plan, cohort: BenchCohort, index: int, *, stored: bool) -> bytes:
        """The weights file that a generator draws for one checkpoint."""
        assert plan.loaded is not None
        latent: Int8 = plan.latents[index]
        if not stored:
            latent = random_latent(np.random.default_rng([self.seed, index]), len(latent))
        code = drawn_code(plan.loaded, latent, cohort.conditions[index], cohort.layout)
        return decode(code, cohort.layout, plan.loaded, cohort.names[index])

    def _row(self, shared_bytes: int, code_bytes: Sequence[int], restored: dict[str, bytes]) -> Row:
        errors = {
            task: compare(self._original(index), restored[task]).relative_error
            for task, index in self.study.last.items()
        }
        return {
            "shared_bytes": shared_bytes,
            "code_bytes": list(code_bytes),
            "side_bytes": 0,
            "errors": errors,
            "restored": restored,
        }

    def _original(self, index: int) -> Original:
        return self.study.cohort.originals[index]

    def _part(self, indices: Sequence[int]) -> BenchCohort:
        return self.study.cohort.part([self.study.cohort.names[index] for index in indices])

    def _workshop(self, cohort: BenchCohort) -> Workshop:
        return Workshop(cohort, self.folder, self.seed, self.reporter, refine_steps=REFINE_STEPS)


def with_moments_of(original: Original, drawn: bytes, group: Sequence[Original]) -> bytes:
    """A weights file whose tensors, normalised as the group's are, get the mean and deviation of an original's own."""
    layout = original.layout
    ours, its = factor_rows(read_weights(drawn, layout)), factor_rows(original.factors)
    every = zip(*[factor_rows(member.factors) for member in group], strict=True)
    tensors = []
    for rows, own, values in zip(ours, its, every, strict=True):
        normalised = (rows - np.mean(values)) / max(float(np.std(values)), TINY)
        tensors.append(normalised * own.std() + own.mean())
    pairs = zip(tensors[0::2], tensors[1::2], strict=True)
    return write_weights(layout, [Factors(b=b.T, a=a) for a, b in pairs])
