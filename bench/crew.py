"""What sharing `compress` among processes gains: adapters a second to encode and to train, by number of processes.

    python bench/crew.py [FOLDER] [--nproc 1,2] [--copies N] [--steps N] [--skip encode|train] [--work DIR] [--out FILE]

Every adapter of FOLDER (those that the project ships, by default) is ingested N times under names of its own; each
number of processes compresses a copy of that registry: once with `--arch mean`, for encoding, and once with `--arch
slots`, for training, on GPUs where there are any. Codes must be the same bytes for every number, and are compared. Set
OMP_NUM_THREADS=1, so that one process has no more threads than each of several.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from results import Row, machine, print_table, write_json

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.crew.start import crew_of
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.2


class TrainedError(Exception):
    """Training is over, and nothing else was asked for."""


class Stages(Silent):
    """Keeps how long each stage took, those within another aside."""

    def __init__(self, *, only_training: bool) -> None:
        self.only_training = only_training
        self.took_s: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    def start(self, stage: str, total: int) -> None:
        if self.only_training and stage.startswith("encoding"):
            raise TrainedError
        self._open.append((stage.split(" ")[0], time.perf_counter()))

    def finish(self) -> None:
        stage, started = self._open.pop()
        if not self._open:
            self.took_s[stage] = self.took_s.get(stage, 0.0) + time.perf_counter() - started


def fill(home: Path, folder: Path, copies: int) -> int:
    """A registry of every adapter in a folder, several times."""
    paths = sorted(path.parent for path in folder.rglob("adapter_model.safetensors"))
    with Registry.open(home, create=True) as registry:
        for copy in range(copies):
            for path in paths:
                registry.ingest(read_folder(path), name=f"{path.name}-{copy}")
    return copies * len(paths)


def run(home: Path, nproc: int, options: CompressOptions, *, only_training: bool = False) -> Row:
    """Compress a registry, or only train for it; gives seconds by stage, and what was made."""
    stages = Stages(only_training=only_training)
    started, joined_s = time.perf_counter(), 0.0
    with Registry.open(home, create=False) as registry:
        with suppress(TrainedError), crew_of(nproc, home, stages) as crew:
            joined_s = time.perf_counter() - started
            compress(registry, (), options, stages, crew)
        encodings = [e for cohort in registry.cohorts() for e in registry.encodings(cohort.id)]
        metrics: dict[str, Any] = {}
        for generator in registry.generators():
            metrics |= json.loads(generator.metrics)
        codes = sorted(f"{e.adapter_id} {e.sha256}" for e in encodings)
    return {"joined_s": joined_s, "took_s": stages.took_s, "codes": codes, "metrics": metrics}


def encoding(template: Path, work: Path, nproc: int, count: int) -> Row:
    """The row of encoding with so many processes."""
    home = Path(shutil.copytree(template, work / f"mean-{nproc}"))
    found = run(home, nproc, CompressOptions(Contract(TOLERANCE), "mean"))
    shutil.rmtree(home)
    took = found["took_s"]
    return {
        "nproc": nproc,
        "start_s": found["joined_s"],
        "plan_s": took.get("measuring", 0.0),
        "encode_s": took["encoding"],
        "adapters_per_s": count / took["encoding"],
        "codes": found["codes"],
    }


def training(template: Path, work: Path, nproc: int, steps: int) -> Row:
    """The row of training with so many processes."""
    home = Path(shutil.copytree(template, work / f"slots-{nproc}"))
    found = run(home, nproc, CompressOptions(Contract(TOLERANCE), "slots", steps=steps), only_training=True)
    shutil.rmtree(home)
    metrics = found["metrics"]
    return {
        "nproc": nproc,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "steps_per_s": metrics["steps"] / metrics["train_s"],
        "refine_s": found["took_s"].get("refining", 0.0),
        "refined_loss": metrics["refined_loss"],
    }


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "examples" / "adapters")
    parser.add_argument("--nproc", default="1,2", help="numbers of processes, separated by commas")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", choices=["encode", "train"], help="what is not to be measured")
    parser.add_argument("--work", type=Path, help="where registries are made (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "crew.json")
    return parser.parse_args()


def show(encoded: list[Row], trained: list[Row]) -> None:
    """Both tables, as far as they were measured."""
    if encoded:
        print_table(
            ["processes", "start s", "plan s", "encode s", "adapters/s", "speed-up"],
            [
                [
                    str(row["nproc"]),
                    *(f"{row[name]:.1f}" for name in ("start_s", "plan_s", "encode_s")),
                    f"{row['adapters_per_s']:.2f}",
                    f"{encoded[0]['encode_s'] / row['encode_s']:.2f}",
                ]
                for row in encoded
            ],
        )
    if trained:
        print_table(
            ["processes", "device", "steps/s", "refine s", "loss"],
            [
                [
                    str(row["nproc"]),
                    row["device"],
                    f"{row['steps_per_s']:.2f}",
                    f"{row['refine_s']:.1f}",
                    f"{row['refined_loss']:.5f}",
                ]
                for row in trained
            ],
        )


def main() -> None:
    asked = arguments()
    numbers = [int(number) for number in asked.nproc.split(",")]
    encoded: list[Row] = []
    trained: list[Row] = []
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        work = Path(folder)
        count = fill(work / "template", asked.folder, asked.copies)
        for number in numbers:
            if asked.skip != "encode":
                encoded.append(encoding(work / "template", work, number, count))
            if asked.skip != "train":
                trained.append(training(work / "template", work, number, asked.steps))
    same = len({tuple(row.pop("codes")) for row in encoded}) <= 1
    print(f"{count} adapters; codes {'are the same bytes' if same else 'DIFFER'} for every number of processes")
    show(encoded, trained)
    write_json(asked.out, {"machine": machine(), "adapters": count, "same": same, "encode": encoded, "train": trained})
    if not same:
        sys.exit("codes differ")


if __name__ == "__main__":
    main()
