"""lorareg's own ways to store the same adapters, and what they need at another method's error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cohort import BenchCohort
from methods import compare, row_of
from results import Row

from lorareg.compress.codec.codecs import GENERATED, LoadedGenerator, decode, join_inputs
from lorareg.compress.codec.container import Code, pack_code
from lorareg.compress.codec.encode import encode
from lorareg.compress.generators import conv1d_decoder
from lorareg.compress.generators.generator import LATENT_EXPONENT, Int8
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.train import PRESETS, Trained, train_generator
from lorareg.compress.planning.coordinates import draft_of
from lorareg.compress.planning.plan import Members, Plan, Planner
from lorareg.compress.progress import Reporter
from lorareg.registry.types import Layout, sha256_hex


class Workshop:
    """Plans generators for a cohort and stores the adapters with them; a plan is made once."""

    def __init__(
        self, cohort: BenchCohort, folder: Path, seed: int, reporter: Reporter, refine_steps: int | None = None
    ) -> None:
        """`folder` is where training keeps checkpoints, so that it goes on after a stop."""
        self.cohort, self.folder, self.seed, self.reporter = cohort, folder, seed, reporter
        self.refine_steps = refine_steps  # of trained latents; None: as the preset says
        self._planners: dict[float, Planner] = {}
        self._plans: dict[tuple[str, float, int | None], Plan] = {}

    def store(self, arch: str, tolerance: float, steps: int | None = None) -> Row:
        """Every adapter within a tolerance, with a generator of `arch` ("none" for none)."""
        started = time.monotonic()
        plan = self.plan(arch, tolerance, steps)
        self.reporter.start(f"encoding, {arch} at {tolerance:g}", len(self.cohort.originals))
        sizes, measured, step = [], [], plan.step
        for index, original in enumerate(self.cohort.originals):
            draft = None
            if plan.loaded is not None:
                draft = draft_of(plan.loaded, original, plan.latents[index], self.cohort.conditions[index])
            encoded = encode(original, draft, tolerance, step)
            step = encoded.step or step
            sizes.append(len(encoded.code))
            measured.append(compare(original, encoded.output))
            self.reporter.advance(1)
        self.reporter.finish()
        row = row_of(len(plan.file), sizes, measured, started)
        return {**row, "arch": arch, "tolerance": tolerance, "train_steps": plan.metrics.get("steps")}

    def draw(self, arch: str, tolerance: float, steps: int | None) -> Row:
        """Every adapter as its generator alone draws it, from the latent that is stored for it."""
        return self._drawn(self.plan(arch, tolerance, steps), lambda index, plan: plan.latents[index], None)

    def draw_at_random(self, arch: str, tolerance: float, steps: int | None, count: int) -> Row:
        """The same from z ~ N(0, 1), which takes no bytes; errors of the first `count` adapters."""
        random = np.random.default_rng(self.seed)
        plan = self.plan(arch, tolerance, steps)
        row = self._drawn(plan, lambda index, plan: random_latent(random, len(plan.latents[index])), count)
        sizes = [size - len(latent) for size, latent in zip(row["code_bytes"], plan.latents, strict=True)]
        return {**row, "code_bytes": sizes, "measured_adapters": len(row["errors"])}

    def _drawn(self, plan: Plan, latent_of: Callable[[int, Plan], Int8], count: int | None) -> Row:
        started = time.monotonic()
        loaded, layout = plan.loaded, self.cohort.layout
        assert loaded is not None
        sizes, measured = [], []
        self.reporter.start(f"drawing with {loaded.generator.arch}", len(self.cohort.originals[:count]))
        for index, original in enumerate(self.cohort.originals):
            code = drawn_code(loaded, latent_of(index, plan), self.cohort.conditions[index], layout)
            sizes.append(len(code))
            if count is None or index < count:
                measured.append(compare(original, decode(code, layout, loaded, original.what)))
                self.reporter.advance(1)
        self.reporter.finish()
        row = row_of(len(plan.file), sizes, measured, started)
        return {**row, "arch": loaded.generator.arch, "train_steps": plan.metrics.get("steps")}

    def plan(self, arch: str, tolerance: float, steps: int | None = None) -> Plan:
        """A generator of `arch` for the cohort ("none" for none), made once."""
        key = (arch, tolerance, steps)
        if key not in self._plans:
            planner = self._planner(tolerance)
            if arch == "none":
                self._plans[key] = planner.without_generator()
            elif arch == "mean":
                self._plans[key] = planner.mean(self.plan("none", tolerance, None))
            elif arch == "linear":
                self._plans[key] = planner.linear(self.plan("mean", tolerance, None))
            else:
                mean = self.plan("mean", tolerance, None)
                self._plans[key] = planner.trained(arch, mean, self._trainer(steps))
        return self._plans[key]

    def _planner(self, tolerance: float) -> Planner:
        if tolerance not in self._planners:
            c = self.cohort
            members = Members(c.layout, c.originals, c.conditions, c.encoder, tolerance)
            self._planners[tolerance] = Planner(members, _WithoutTrials(self.reporter))
        return self._planners[tolerance]

    def _trainer(self, steps: int | None) -> Callable[[str, Group], Trained]:
        from lorareg.compress.generators.checkpoint import Checkpoint

        def train(arch: str, group: Group) -> Trained:
            config = replace(PRESETS[arch], seed=self.seed, steps=steps or PRESETS[arch].steps)
            if self.refine_steps is not None:
                config = replace(config, refine_steps=self.refine_steps)
            weights = sha256_hex(b"".join(original.data for original in self.cohort.originals))
            name = sha256_hex(f"{weights} {config} {group.tolerance}".encode())[:32]
            return train_generator(group, config, Checkpoint(self.folder / f"{name}.safetensors"), self.reporter)

        return train


@dataclass(frozen=True, slots=True)
class _WithoutTrials:
    """A reporter for the planner, whose trials belong to no stage here."""

    reporter: Reporter

    def start(self, stage: str, total: int) -> None: ...

    def advance(self, n: int = 1, **figures: float) -> None: ...

    def finish(self) -> None: ...

    def note(self, message: str) -> None:
        self.reporter.note(message)


def drawn_code(loaded: LoadedGenerator, latent: Int8, condition: Int8, layout: Layout) -> bytes:
    """The code of an adapter that a generator draws from a latent, with nothing added."""
    inputs = join_inputs(latent, condition[: loaded.generator.condition_size])
    return pack_code(Code(GENERATED, layout.digest, loaded.digest, inputs))


def random_latent(random: np.random.Generator, size: int) -> Int8:
    """z ~ N(0, 1) as a code holds it."""
    drawn = np.rint(np.ldexp(random.standard_normal(size), -LATENT_EXPONENT))
    return np.clip(drawn, -127, 127).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Need:
    """What lorareg needs at given errors."""

    total_bytes: float
    arch: str
    at_most: bool  # an error lies beyond the measured curve, where its nearest point stands in


class Curve:
    """Bytes against error as measured, an architecture at a time; between its points it is interpolated."""

    def __init__(self, rows: Sequence[Row], lossless: Row) -> None:
        """`rows` are what `Workshop.store` gave."""
        rows = [row for row in rows if min(row["errors"]) > 0]  # one that fell back to lossless is no point of it
        archs = sorted({str(row["arch"]) for row in rows})
        self.rows = {
            arch: sorted((row for row in rows if row["arch"] == arch), key=lambda row: float(row["tolerance"]))
            for arch in archs
        }
        self.lossless = lossless

    def need(self, errors: Sequence[float]) -> Need:
        """The fewest bytes in all that give each adapter back with its error in `errors`."""
        if not any(errors):
            return Need(sum(self.lossless["code_bytes"]), "lossless", False)
        return min((self._need(arch, errors) for arch in self.rows), key=lambda need: need.total_bytes)

    def _need(self, arch: str, errors: Sequence[float]) -> Need:
        rows = self.rows[arch]
        shared = _interpolate(
            [row["tolerance"] for row in rows], [row["shared_bytes"] for row in rows], float(np.mean(errors))
        )
        codes = []
        for index, error in enumerate(errors):
            if error < rows[0]["errors"][index]:
                codes.append(float(self.lossless["code_bytes"][index]))
                continue
            xs, ys = [row["errors"][index] for row in rows], [row["code_bytes"][index] for row in rows]
            codes.append(_interpolate(xs, ys, error))
        beyond = any(not rows[0]["errors"][i] <= error <= rows[-1]["errors"][i] for i, error in enumerate(errors))
        return Need(shared + float(np.mean(codes)) * len(self.lossless["code_bytes"]), arch, beyond)

    def deviation(self) -> float:
        """How far interpolation errs where a point is left out: the largest ratio, less one; gaps are twice as wide."""
        worst = 0.0
        for rows in self.rows.values():
            totals = [row["shared_bytes"] + sum(row["code_bytes"]) for row in rows]
            errors = [float(np.mean(row["errors"])) for row in rows]
            for i in range(1, len(rows) - 1):
                guess = _interpolate([errors[i - 1], errors[i + 1]], [totals[i - 1], totals[i + 1]], errors[i])
                worst = max(worst, guess / totals[i] - 1, totals[i] / guess - 1)
        return worst


def _interpolate(errors: Sequence[float], sizes: Sequence[float], error: float) -> float:
    """A size at `error`, straight between neighbours over the error's logarithm, clamped at the ends.

    Halving the error takes a fixed number of bits a weight, so that is the shape of the curve.
    """
    return float(np.interp(math.log(max(error, 1e-12)), np.log(np.maximum(errors, 1e-12)), sizes))


CONV1D = conv1d_decoder.NAME
