"""What each lever of the codec buys: gain retained at the same bytes, one lever added at a time.

Held-out adapters, encoded against tables made from the others; each row spends the same share of
the original bytes on a code (`--share`), found by a search for the quantiser's step.

    python bench/ablation.py [--collection FOLDER] [--tasks N] [--share 0.01] [--token-rows N]
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cohort import OUTPUT
from gains import Evaluator, Losses, find_base_model, find_tokens
from our_points import Workbench
from results import ALL_SOURCES, Results, Row, files_digest, print_table
from study import load_study

from lorareg.cli.progress import LogReporter
from lorareg.compress.base_model import gain_retained
from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.codec.container import NO_GENERATOR, Code, pack_code
from lorareg.compress.codec.encode import Draft, Original, StepSearch
from lorareg.compress.codec.residual import STRENGTH, Quantised
from lorareg.compress.contracts.distill import DistillConfig, Distiller
from lorareg.compress.planning.coordinates import EMPTY, draft_of, latent_of
from lorareg.registry.types import sha256_hex

PLANNED_ERROR = 0.4
SIZE_SLACK = 0.003


@dataclass(frozen=True, slots=True)
class Lever:
    """One row: everything of the row above, and one thing more."""

    name: str
    table: bool = True
    strength: float | None = STRENGTH  # of the core; None for no core
    distill: DistillConfig | None = None


LEVERS = (
    Lever("residual codec alone", table=False, strength=None),
    Lever("+ mean table", strength=None),
    Lever("+ core, least squares", strength=0.0),
    Lever("+ core made stronger"),
    Lever("+ core distilled on divergence", distill=DistillConfig(gap_weight=0.0)),
    Lever("+ and on the gap in loss", distill=DistillConfig()),
)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--collection", metavar="NAME|FOLDER")
    parser.add_argument("--tasks", type=int, default=4, metavar="N", help="held-out adapters (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.01, help="of the original bytes (default: %(default)s)")
    parser.add_argument("--token-rows", type=int, metavar="N", help="rows of tokens to evaluate on (default: all)")
    parser.add_argument("--base-model", type=Path, metavar="PATH")
    parser.add_argument("--json", type=Path, default=OUTPUT / "ablation.json")
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    ablation = Ablation(arguments)
    rows = [(lever.name, ablation.row(lever)) for lever in LEVERS]
    table = []
    for name, row in rows:
        gains = row["gains"]
        table.append(
            (
                name,
                f"{100 * np.mean(row['shares']):.3f}",
                f"{np.mean(row['errors']):.3f}",
                f"{100 * np.mean(gains):.2f}",
                f"{100 * min(gains):.2f}",
            )
        )
    print(f"{len(ablation.tokens)} held-out adapters: {', '.join(ablation.tokens)}\n")
    print_table(("lever", "code %", "error", "gain %", "worst %"), table)


class Ablation:
    """The held-out adapters, the tables, and what was measured before."""

    def __init__(self, arguments: Namespace) -> None:
        self.share = arguments.share
        self.study = load_study(arguments.collection, "held-out")
        cohort, model = self.study.cohort, find_base_model(arguments.base_model)
        folders = dict(zip(cohort.names, cohort.folders, strict=True))
        self.workbench = Workbench(OUTPUT / "checkpoints", 0, LogReporter(), model, folders)
        self.evaluator = Evaluator(model, cohort.layout, Losses(OUTPUT / "losses.json"))
        found = find_tokens(self.study.stored, arguments.token_rows)
        self.tokens = dict(list(found.items())[: arguments.tasks])
        inputs = {
            "adapters": files_digest(cohort.folders),
            "share": self.share,
            "tasks": list(self.tokens),
            "token_rows": arguments.token_rows,
        }
        self.results = Results(arguments.json, inputs, fresh=arguments.fresh, sources=ALL_SOURCES)
        plan = self.workbench.workshop(self.study.training).plan("mean", PLANNED_ERROR)
        self.loaded = LoadedGenerator.from_bytes(plan.file, sha256_hex(plan.file), cohort.layout)

    def row(self, lever: Lever) -> Row:
        """One lever over all adapters, measured or from an earlier run."""
        return self.results.row(lever.name, lambda: self._measure(lever))

    def _measure(self, lever: Lever) -> Row:
        row: Row = {"shares": [], "errors": [], "gains": []}
        originals = dict(zip(self.study.stored.names, self.study.stored.originals, strict=True))
        for task, tokens in self.tokens.items():
            original = originals[task]
            code, error = self._code(original, lever)
            output = decode(code, original.layout, self.loaded if lever.table else None, task)
            losses = [self.evaluator.loss(tokens, data) for data in (None, original.data, output)]
            row["shares"].append(len(code) / len(original.data))
            row["errors"].append(error)
            row["gains"].append(gain_retained(*losses))
            print(f"{lever.name}: {task} {100 * row['gains'][-1]:.2f}%", file=sys.stderr, flush=True)
        return row

    def _code(self, original: Original, lever: Lever) -> tuple[bytes, float]:
        """A code of the wanted size, and its relative error."""
        draft = None
        if lever.table:
            draft = draft_of(self.loaded, original, latent_of(self.loaded.generator, original.factors), EMPTY)
        search = replace(StepSearch.of(original, draft), strength=lever.strength)
        modules = self._sized(search, self.share * len(original.data))
        if lever.distill is not None:
            judge = self.workbench.judge
            weights = judge.model.weights_of(original.layout, original.factors)
            tokens, _ = judge.training_text(original.what, weights)
            modules = Distiller(judge.model, weights, tokens, lever.distill).tune(
                modules, original.layout, search.prediction
            )
        return self._packed(search, modules, draft), search.error(modules)

    def _sized(self, search: StepSearch, wanted: float) -> Sequence[Quantised]:
        low, high = math.log(1e-5), math.log(1.0)
        modules: Sequence[Quantised] = []
        for _ in range(24):
            middle = (low + high) / 2
            try:
                modules = search.quantise(math.exp(middle))
                size = len(search.payload(modules)[2])
            except OverflowError:
                size = math.inf
            if abs(size / wanted - 1) < SIZE_SLACK:
                break
            low, high = (middle, high) if size > wanted else (low, middle)
        return modules

    def _packed(self, search: StepSearch, modules: Sequence[Quantised], draft: Draft | None) -> bytes:
        number, _, payload = search.payload(modules)
        generator = draft.loaded.digest if draft is not None else NO_GENERATOR
        return pack_code(Code(number, search.layout.digest, generator, payload))


if __name__ == "__main__":
    main()
