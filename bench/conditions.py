"""What a generator draws from a task's condition alone: tasks it was trained on, and tasks it never saw.

Some adapters are left out; `slots` is trained on the others, with different shares of latents masked.
Each adapter is then drawn from the mean of the prior given its condition (a latent of zero where there
is no prior), and its ΔW compared with the trained one's. A generator that learned something about tasks
beats the mean table on tasks it never saw, and does worse when it is given another task's condition.

    python bench/conditions.py [FOLDER] [--held-out N] [--masks 0 0.3 0.7] [--base-model PATH] [--kl-weight X]
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cohort import BenchCohort, add_arguments, find_folders, load_cohort, samples_of
from results import ALL_SOURCES, Results, Row, files_digest, print_table

from lorareg.cli.progress import LogReporter
from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.fidelity import measure
from lorareg.compress.generators.checkpoint import Checkpoint
from lorareg.compress.generators.generator import Generator, Int8, predict
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.prior import prior_latent
from lorareg.compress.generators.train import PRESETS, train_generator
from lorareg.compress.planning.coordinates import EMPTY
from lorareg.compress.planning.plan import Members, Plan, Planner
from lorareg.compress.progress import Silent
from lorareg.compress.tasks.task_vectors import HiddenStateEncoder
from lorareg.registry.peft_format import read_folder

TOLERANCE = 0.2
FIRST = 2


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser, "conditions")
    parser.add_argument("--held-out", type=int, default=6, metavar="N", help="adapters left out of training")
    parser.add_argument("--masks", type=float, nargs="+", default=[0.0, 0.3, 0.7], metavar="SHARE")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="condition on its hidden states too")
    parser.add_argument("--kl-weight", type=float, default=PRESETS["slots"].kl_weight, metavar="X")
    parser.add_argument("--steps", type=int, default=PRESETS["slots"].steps, metavar="N")
    print_rows(measured(parser.parse_args()))


def measured(arguments: Namespace) -> list[Row]:
    """A row for the mean table, and one for every condition and share of masked latents."""
    cohort = load_cohort(find_folders(arguments.folder, arguments.adapters))
    names = list(cohort.names)
    if not 2 <= arguments.held_out <= len(names) - 2:
        sys.exit(f"--held-out {arguments.held_out} of {len(names)} adapters: hold out 2 or more, and leave 2 or more.")
    stride = max(len(names) // arguments.held_out, 1)
    held_out = names[min(FIRST, len(names) - 1) :: stride][: arguments.held_out]
    changes = {"kl_weight": arguments.kl_weight, "steps": arguments.steps}
    inputs = {"adapters": files_digest(cohort.folders), "held_out": held_out, **changes}
    results = Results(arguments.json, inputs, fresh=arguments.fresh, sources=ALL_SOURCES)
    study = Conditions(cohort, held_out, changes)
    rows = [results.row("mean table", study.mean_row)]
    cohorts = {"text": cohort}
    if arguments.base_model is not None:
        cohorts["hidden"] = with_hidden_states(cohort, arguments.base_model)
    for condition, conditioned in cohorts.items():
        for mask in arguments.masks:
            name = f"{condition}, {mask:.0%} masked"
            rows.append(results.row(name, partial(study.row, name, conditioned, mask)))
    return rows


class Conditions:
    """Adapters in training, adapters left out, and the mean table of the former."""

    def __init__(self, cohort: BenchCohort, held_out: Sequence[str], changes: Row) -> None:
        """`changes` are to the training's preset."""
        self.held_out = held_out
        self.known = [name for name in cohort.names if name not in held_out]
        self.cohort, self.changes = cohort, changes

    @cached_property
    def mean(self) -> Plan:
        return self._planner(self.cohort).rough()

    def _planner(self, cohort: BenchCohort) -> Planner:
        part = cohort.part(self.known)
        return Planner(Members(part.layout, part.originals, part.conditions, part.encoder, TOLERANCE), Silent())

    def mean_row(self) -> Row:
        """Errors of the mean table itself."""
        errors = {o.what: error_of(self._generator(self.mean), o, EMPTY, EMPTY) for o in self.cohort.originals}
        return {"name": "mean table", **self._summary(errors, errors), "total_kb": self.mean.estimated_bytes / 1e3}

    def row(self, name: str, cohort: BenchCohort, mask: float) -> Row:
        """Train on the known tasks, then draw every task from its condition."""

        def train(arch: str, group: Group) -> Any:
            config = replace(PRESETS[arch], mask_share=mask, **self.changes)
            with TemporaryDirectory() as folder:
                return train_generator(group, config, Checkpoint(Path(folder) / "checkpoint"), LogReporter())

        plan = self._planner(cohort).trained("slots", self.mean, train)
        generator = self._generator(plan)
        conditions = dict(zip(cohort.names, cohort.conditions, strict=True))
        drawn = {o.what: self._drawn(generator, o, conditions[o.what]) for o in cohort.originals}
        others = {o.what: self._of_others(generator, o, conditions) for o in cohort.originals}
        return {"name": name, **self._summary(drawn, others), "total_kb": plan.estimated_bytes / 1e3, **plan.metrics}

    def _of_others(self, generator: Generator, original: Original, conditions: dict[str, Int8]) -> float:
        """The mean error when an adapter is drawn from the condition of another task of its part."""
        part = self.held_out if original.what in self.held_out else self.known
        others = [name for name in part if name != original.what][:5]
        return float(np.mean([self._drawn(generator, original, conditions[name]) for name in others]))

    def _drawn(self, generator: Generator, original: Original, condition: Int8) -> float:
        latent = prior_latent(generator, condition)
        nothing = np.zeros(generator.latent_size, np.int8)
        return error_of(generator, original, nothing if latent is None else latent, condition)

    def _summary(self, drawn: dict[str, float], others: dict[str, float]) -> Row:
        def over(errors: dict[str, float], names: Sequence[str]) -> float:
            return float(np.mean([errors[name] for name in names]))

        return {
            "known": over(drawn, self.known),
            "held_out": over(drawn, self.held_out),
            "known_others": over(others, self.known),
            "held_out_others": over(others, self.held_out),
            "errors": drawn,
        }

    @staticmethod
    def _generator(plan: Plan) -> Generator:
        assert plan.loaded is not None
        return plan.loaded.generator


def error_of(generator: Generator, original: Original, latent: Int8, condition: Int8) -> float:
    """Relative error of ΔW of what a generator draws."""
    drawn = predict(generator, original.layout, latent, condition).factors
    return measure(original.layout, original.factors, drawn).relative_error


def with_hidden_states(cohort: BenchCohort, model: Path) -> BenchCohort:
    """The same adapters, conditioned on a base model's hidden states over their samples."""
    encoder = HiddenStateEncoder(model)
    vectors = []
    for folder in cohort.folders:
        vectors.append(encoder.encode(read_folder(folder).description, samples_of(folder)))
    return replace(cohort, conditions=tuple(vectors), encoder=encoder.name)


def print_rows(rows: Sequence[Row]) -> None:
    """One line a row."""
    columns = ("drawn from", "known", "by another's", "held out", "by another's", "all stored, kB")
    keys = ("known", "known_others", "held_out", "held_out_others")
    print_table(columns, [(r["name"], *(f"{r[key]:.4f}" for key in keys), f"{r['total_kb']:.0f}") for r in rows])


if __name__ == "__main__":
    main()
