"""Two thousand adapters of an 8B model: what a generator of each size takes to train, saves, and costs.

Rank 8 on the query and value projections of Llama-3-8B is 3.4 million weights, 13.6 MB an adapter.
Adapters are synthetic (`synthetic`): made from a seed as they are needed, with the spectra of the real
ones in `--spectra`. Measured: memory of planning, seconds of a training step, files, codes, encoding,
decoding. Not measured: a network trained to the end. In its place stands a ceiling, the codes there
would be if a network of that size drew all it can of what adapters share (see `Bench.ceiling`).

    python bench/llama8b.py [--spectra FOLDER] [--size smoke|full] [--adapters N]

Seconds are this process's own processor time on one thread, which a busy machine lengthens little.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

import numpy as np
import torch
from cohort import OUTPUT, find_folders, load_cohort
from llama8b_report import CHOICES, SLOTS, TOLERANCE, report
from memory import Peak
from results import Results, Row, files_digest
from synthetic import Float32, Synthesiser, llama_layout, measure_spectra

from lorareg.cli.progress import LogReporter
from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.codec.encode import Draft, Encoded, Original, encode
from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.generators import train
from lorareg.compress.generators.checkpoint import Checkpoint
from lorareg.compress.generators.generator import DECODERS, MAX_WEIGHTS, Generator
from lorareg.compress.generators.group import Group
from lorareg.compress.integers.tensors import quantise_tensor
from lorareg.compress.planning.choose import GeneratorChoice
from lorareg.compress.planning.coordinates import EMPTY, draft_of
from lorareg.compress.planning.plan import Members, Plan, Planner, Train
from lorareg.compress.progress import Silent
from lorareg.registry.types import Layout, sha256_hex

CAP_BYTES = 283_000_000
REPEATS = 20
SOURCES = ("bench/llama8b.py", "bench/synthetic.py", "bench/memory.py", "compress/**/*.py")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    layers: int
    width: int
    kv_width: int
    planned: tuple[int, ...]  # adapters to plan for, of which the last is what tables are made from
    trained: int  # adapters in a training batch, and in all that training sees
    steps: int
    refine_steps: int
    choice_layers: int  # of the adapters that `auto` chooses for
    choice_adapters: int


SIZES = {
    "smoke": Size(2, 48, 24, (4, 8), 4, 2, 1, 1, 6),
    "full": Size(32, 4096, 1024, (8, 16, 32), 16, 5, 2, 2, 100),
}


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", type=Path, metavar="FOLDER", help="adapters of one init seed (default: as others)")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="smoke: a tiny layout, in seconds")
    parser.add_argument("--adapters", type=int, default=2000, metavar="N", help="that totals are for")
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 32, 64, 128, 256], metavar="N", help="widths")
    parser.add_argument("--largest", action="store_true", help="also the widest network that can be read back")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for files as large as the planned adapters")
    parser.add_argument("--json", type=Path, default=OUTPUT / "llama8b.json", metavar="FILE", help="where results go")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run measured")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    folders = find_folders(arguments.spectra, None)
    size = SIZES[arguments.size]
    inputs = {
        "spectra": files_digest(folders),
        "size": asdict(size),
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    inputs["size"] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in inputs["size"].items()
    }
    results = Results(arguments.json, inputs, fresh=arguments.fresh, sources=SOURCES)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        bench = Bench(folders, size, arguments.seed, Path(scratch))
        results.row("spectra", bench.spectra_row)
        for count in size.planned:
            results.row(f"plan {count}", lambda count=count: bench.planning(count))
        results.row("tables", bench.tables)
        results.row("ceiling all", lambda: bench.ceiling(None))
        results.row("choice", bench.choice)
        widths = [*arguments.hidden, *([bench.largest_width()] if arguments.largest else [])]
        for hidden in widths:
            results.row(f"width {hidden}", lambda hidden=hidden: bench.network(hidden))
            results.row(f"ceiling {hidden}", lambda hidden=hidden: bench.ceiling(hidden))
    report(results, size.planned, size.trained, widths, arguments.adapters)


class Bench:
    """One run. What several rows need is made when the first of them does."""

    def __init__(self, folders: list[Path], size: Size, seed: int, scratch: Path) -> None:
        self.folders, self.size, self.seed, self.scratch = folders, size, seed, scratch

    @cached_property
    def real(self) -> Sequence[Original]:
        return load_cohort(self.folders).originals

    @cached_property
    def synthesiser(self) -> Synthesiser:
        return self._synthesiser(self.size.layers)

    @property
    def layout(self) -> Layout:
        return self.synthesiser.layout

    def _synthesiser(self, layers: int) -> Synthesiser:
        spectra = measure_spectra(self.real)
        layout = llama_layout(layers, self.size.width, self.size.kv_width, spectra.rank)
        return Synthesiser(spectra, layout, self.seed)

    def _members(self, synthesiser: Synthesiser, count: int) -> Members:
        originals = [synthesiser.original(index) for index in range(count)]
        conditions = [synthesiser.condition(index) for index in range(count)]
        return Members(synthesiser.layout, originals, conditions, "text:synthetic", TOLERANCE, self.scratch)

    @cached_property
    def planner(self) -> Planner:
        return Planner(self._members(self.synthesiser, self.size.planned[-1]), Silent())

    @cached_property
    def few(self) -> Planner:
        """Plans for the adapters that networks are trained on."""
        return Planner(self._members(self.synthesiser, self.size.trained), Silent())

    @cached_property
    def mean_plan(self) -> Plan:
        found = self._sampled.mean(self._sampled.without_generator())
        assert found is not None
        return found

    @cached_property
    def _sampled(self) -> Planner:
        """The planner, judging by two adapters and not three: each takes seconds to encode."""
        planner = self.planner.within(math.inf)
        planner.samples = self._samples
        return planner

    # -- rows ------------------------------------------------------------------------------------

    def spectra_row(self) -> Row:
        """The real adapters beside as many synthetic ones of the same layout."""
        measured = measure_spectra(self.real)
        same = Synthesiser(measured, self.real[0].layout, self.seed)
        likes = [same.original(index) for index in range(len(self.real))]
        row: Row = {"real": measured.as_row(), "synthetic": measure_spectra(likes).as_row()}
        for name, originals in (("real", self.real), ("synthetic", likes)):
            nothing = [EMPTY] * len(originals)
            planner = Planner(Members(originals[0].layout, originals, nothing, "", TOLERANCE), Silent())
            alone = planner.without_generator()
            table = planner.mean(alone)
            assert table is not None
            total = sum(len(original.data) for original in originals)
            row[name]["alone_percent"] = 100 * alone.estimated_bytes / total
            row[name]["mean_percent"] = 100 * (table.estimated_bytes - len(table.file)) / total
        return row

    def planning(self, count: int) -> Row:
        """Bringing adapters into their coordinates and onto the disk, as `compress` does before it compares plans."""
        with Peak() as peak:
            started = time.process_time()
            planner = Planner(self._members(self.synthesiser, count), Silent())
            elapsed_s = time.process_time() - started
        if count == self.size.planned[-1]:
            self.planner = planner
        return {
            "elapsed_s": elapsed_s,
            "slots_bytes": sum(slot.nbytes for slot in planner.slots),
            "coordinates": planner.coordinates,
            **peak.row(),
        }

    def tables(self) -> Row:
        """No generator, and the mean table at its best precision: bytes, and one adapter there and back."""
        alone, table = self._sampled.without_generator(), self.mean_plan
        count = len(self.planner.members.originals)
        return {
            "adapter_bytes": len(self.planner.members.originals[0].data),
            "weights": self.layout.weight_count,
            "alone_code_bytes": alone.estimated_bytes / count,
            "mean_file_bytes": len(table.file),
            "mean_code_bytes": (table.estimated_bytes - len(table.file)) / count,
            "alone": self._there_and_back(alone),
            "mean": self._there_and_back(table),
        }

    def network(self, hidden: int) -> Row:
        """A network trained for a few steps: what a step takes, its file, and the codes at that point."""
        planner, count, clock = self.few, self.size.trained, Clock()
        with Peak() as peak:
            plan = planner.trained(SLOTS, self.mean_plan, self._trainer(hidden, clock))
        assert plan.loaded is not None
        steps, refining = clock.seconds("training"), clock.seconds("refining")
        return {
            "weights": sum(tensor.values.size for tensor in plan.loaded.generator.tensors.values()),
            "batch": count,
            "step_s": steps,
            "refine_step_s": refining,
            "file_bytes": len(plan.file),
            "code_bytes": (plan.estimated_bytes - len(plan.file)) / count,
            **peak.row(),
            **self._there_and_back(plan),
        }

    def ceiling(self, hidden: int | None) -> Row:
        """Codes if a network of this width drew the most it can: shared directions within the span of its heads.

        A head's rows are mixtures of `hidden` vectors, so of the directions that adapters share it can draw what
        lies in that many dimensions; the best are the principal ones. None: all of every direction.
        """
        codes = []
        for index in self._samples:
            original = self.synthesiser.original(index)
            drawn = self.synthesiser.drawable(index, lambda *rows: self._spanned(hidden, *rows))
            tables = [quantise_tensor(np.asarray(t, float), 14) for f in drawn for t in (f.a, f.b.T)]
            exponents = tuple(table.exponent + 10 for table in tables)
            generator = Generator("mean", "raw", "", 0, 0, {}, exponents, {}, tuple(tables))
            loaded = LoadedGenerator(sha256_hex(str(index).encode()), generator, original.layout)
            draft = Draft(loaded, EMPTY, EMPTY, lambda original=original: original.factors)
            codes.append(len(encode(original, draft, TOLERANCE, self.mean_plan.step).code))
        return {"code_bytes": mean(codes), "captured": self._captured(hidden)}

    def largest_width(self) -> int:
        """The widest network whose file can be read back."""
        return max(hidden for hidden in range(16, 1 << 14, 16) if self._weights(hidden) <= MAX_WEIGHTS)

    def choice(self) -> Row:
        """What `auto` chooses within 283 MB, and within half of what it chose then."""
        synthesiser = self._synthesiser(self.size.choice_layers)
        members = self._members(synthesiser, self.size.choice_adapters)
        row: Row = {"adapter_bytes": len(members.originals[0].data), "adapters": len(members.originals)}
        preset = train.PRESETS[SLOTS]
        train.PRESETS[SLOTS] = replace(preset, refine_steps=self.size.refine_steps, batch_size=self.size.trained)
        cap = CAP_BYTES
        try:
            for name in CHOICES:
                if cap < 1:  # nothing was chosen, so there is nothing to halve
                    break
                options = CompressOptions(generator_budget=cap, seed=self.seed, steps=self.size.steps)
                digests = [str(index) for index in range(len(members.originals))]
                choice = GeneratorChoice(members, digests, options, self.scratch / "checkpoints", LogReporter())
                plan = choice.best()
                choice.forget_checkpoints()
                row[name] = {"cap_bytes": cap, "file_bytes": len(plan.file), "message": choice.message}
                cap = len(plan.file) // 2
        finally:
            train.PRESETS[SLOTS] = preset
        return row

    # -- parts -----------------------------------------------------------------------------------

    @property
    def _samples(self) -> list[int]:
        return [0, self.size.planned[-1] - 1]

    def _weights(self, hidden: int) -> int:
        sizes = {"hidden": hidden, "inner": hidden}
        latent, condition = train.PRESETS[SLOTS].latent_size, self.synthesiser.condition(0).size
        shapes = DECODERS[SLOTS].tensor_shapes(self.layout, latent, condition, sizes)
        return sum(int(np.prod(shape)) for shape in shapes.values())

    def _trainer(self, hidden: int, clock: Clock) -> Train:
        config = replace(
            train.PRESETS[SLOTS],
            sizes={"hidden": hidden, "inner": hidden},
            steps=self.size.steps,
            refine_steps=self.size.refine_steps,
            batch_size=self.size.trained,
            checkpoint_steps=1 << 30,
        )

        def run(arch: str, group: Group) -> train.Trained:
            return train.train_generator(group, config, Checkpoint(self.scratch / "none"), clock)

        return run

    def _there_and_back(self, plan: Plan) -> Row:
        """Seconds to encode an adapter after another like it, and to decode one: the median of `REPEATS`."""
        codes, encode_s = [], []
        loaded = plan.loaded
        for index in (0, 1):
            original = self.synthesiser.original(index)
            draft = None
            if loaded is not None:
                draft = draft_of(loaded, original, plan.latents[index], self.synthesiser.condition(index))
            original.read()  # to make an adapter is no part of encoding it
            started = time.process_time()
            encoded: Encoded = encode(original, draft, TOLERANCE, plan.step)
            encode_s.append(time.process_time() - started)
            codes.append(encoded.code)
        decode_s = []
        for turn in range(REPEATS):  # one after the other, because the last prediction is kept
            started = time.process_time()
            decode(codes[turn % 2], self.layout, loaded, "synthetic")
            decode_s.append(time.process_time() - started)
        return {"encode_s": mean(encode_s), "decode_s": median(decode_s)}

    @cached_property
    def _heads(self) -> dict[tuple[str, str], tuple[Float32, Float32]]:
        """For every head, the principal directions (width, width) of the rows it should draw, and their energies."""
        heads = {}
        for kind in self.synthesiser.common:
            for factor in "AB":
                rows = self.synthesiser.shared_rows(kind, factor)
                values, vectors = np.linalg.eigh(rows.T @ rows)
                heads[kind, factor] = (vectors[:, ::-1], values[::-1])
        return heads

    def _spanned(self, hidden: int | None, kind: str, factor: str, rows: Float32) -> Float32:
        if hidden is None:
            return rows
        vectors = self._heads[kind, factor][0][:, :hidden]
        return (rows @ vectors) @ vectors.T

    def _captured(self, hidden: int | None) -> dict[str, float]:
        """The share of shared directions' energy that lies in a head's span."""
        if hidden is None:
            return {}
        return {
            f"{kind} {factor}": float(values[:hidden].sum() / values.sum())
            for (kind, factor), (_, values) in self._heads.items()
        }


class Clock(Silent):
    """Processor seconds of every unit of every stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self._stage, self._last = "", 0.0

    def start(self, stage: str, total: int) -> None:
        self._stage, self._last = stage, time.process_time()

    def advance(self, n: int = 1, **figures: float) -> None:
        now = time.process_time()
        if n:
            self.stages.setdefault(self._stage, []).append(now - self._last)
        self._last = now

    def seconds(self, word: str) -> list[float]:
        """Of the stage with this word in its name, without its first unit, which warms things up."""
        found = next(times for stage, times in self.stages.items() if word in stage)
        return found[1:] or found


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from the last row that was finished.")
