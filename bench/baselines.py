"""lorareg against baselines, at equal fidelity.

For each way to store the adapters: the bytes, all side information counted, and the relative error
of ΔW after a real round trip through them. Beside each baseline stands what lorareg needs to give
every adapter back with the same error as that baseline does, read off its own measured curve (the
cheaper of no generator and the mean table; trained generators have rows of their own).

    python bench/baselines.py [FOLDER] [--adapters N]
"""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict

import numpy as np
from cohort import OUTPUT, BenchCohort, add_arguments, find_folders, load_cohort
from methods import Lossless, all_methods, measure_method
from results import Results, Row, files_digest, print_table

TOLERANCES = (0.05, 0.1, 0.2, 0.4)
FINER = (0.0005, 0.002, 0.01)
"""Tolerances where a mean table no longer matters and int8 and bf16 lie: coded without a generator."""
COARSER = (0.8, 0.95)
"""Where the mean adapter and drawn latents lie."""
TRAIN_TOLERANCE = 0.2
CONV1D_STEPS = 10
"""Of 8 adapters each. A step takes about 20 s on two cores for adapters of half a million weights."""
RANDOM_DRAWS = 8
"""Adapters drawn from a random latent: the paper's decoder takes seconds for each."""
COLUMNS = ("stored as", "shared kB", "kB each", "total %", "error", "worst", "ours %", "ratio", "by")


def parse_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser, "baselines")
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES, metavar="T", help="for our rows")
    parser.add_argument("--conv1d-steps", type=int, default=CONV1D_STEPS, metavar="N", help="default: %(default)s")
    parser.add_argument("--slots-steps", type=int, metavar="N", help="training steps (default: the preset's)")
    parser.add_argument("--without", nargs="+", default=[], choices=["conv1d", "slots"], help="leave these out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    folders = find_folders(arguments.folder, arguments.adapters)
    cohort = load_cohort(folders)
    inputs = {
        "adapters": files_digest(folders),
        "seed": arguments.seed,
        "conv1d_steps": arguments.conv1d_steps,
        "slots_steps": arguments.slots_steps,
    }
    results = Results(arguments.json, inputs, fresh=arguments.fresh)
    names = measure_all(cohort, results, arguments)
    show(cohort, results, names)


def measure_all(cohort: BenchCohort, results: Results, arguments: Namespace) -> list[str]:
    """Measure every row that is not there yet; gives their names in the order of the table."""
    names = []
    for method in all_methods(cohort.layout):
        results.row(method.name, lambda method=method: measure_method(cohort, method))
        names.append(method.name)
    try:
        from ours import CONV1D, Workshop
    except ImportError as error:
        sys.exit(f"The other rows need {error.name}, which is not installed: pip install -e '.[train]'")
    from lorareg.cli.progress import LogReporter

    checkpoints = OUTPUT / "checkpoints" / results.inputs["sources"][:16]
    if arguments.fresh:
        shutil.rmtree(checkpoints, ignore_errors=True)
    workshop = Workshop(cohort, checkpoints, arguments.seed, LogReporter())
    jobs = {}
    if "conv1d" not in arguments.without:
        steps = arguments.conv1d_steps
        jobs["conv1d (ICM-LoRA), latent only"] = lambda: workshop.draw(CONV1D, TRAIN_TOLERANCE, steps)
        jobs["conv1d (ICM-LoRA), z ~ N(0, 1)"] = lambda: workshop.draw_at_random(
            CONV1D, TRAIN_TOLERANCE, steps, RANDOM_DRAWS
        )
    tolerances = sorted(arguments.tolerances)
    for arch, chosen in (("none", [*FINER, *tolerances, *COARSER]), ("mean", [*tolerances, *COARSER])):
        for tolerance in chosen:
            jobs[our_name(arch, tolerance)] = lambda arch=arch, t=tolerance: workshop.store(arch, t)
    if "slots" not in arguments.without:
        slots_steps = arguments.slots_steps
        jobs["ours: slots, latent only"] = lambda: workshop.draw("slots", TRAIN_TOLERANCE, slots_steps)
        jobs[our_name("slots", TRAIN_TOLERANCE)] = lambda: workshop.store("slots", TRAIN_TOLERANCE, slots_steps)
    for name, job in jobs.items():
        results.row(name, job)
    return [*names, *jobs]


def our_name(arch: str, tolerance: float) -> str:
    kinds = {"none": "no generator", "mean": "mean table"}
    return f"ours: {kinds.get(arch, arch)} at {tolerance:g}"


def show(cohort: BenchCohort, results: Results, names: list[str]) -> None:
    """Print the table and save the file with its comparison."""
    from ours import Curve

    rows = {name: results.rows[name] for name in names}
    ours = [row for row in rows.values() if row.get("tolerance") and row["arch"] in ("none", "mean")]
    curve = Curve(ours, rows[Lossless().name])
    table, comparison = [], {}
    for name, row in rows.items():
        compared = ["", "", ""]
        if np.mean(row["errors"]) >= 1:
            compared = ["0.00", "", "nothing"]
        elif "ours" not in name:
            need = curve.need(row["errors"])
            comparison[name] = {**asdict(need), "ratio": total_bytes(row) / need.total_bytes}
            at_most, at_least = ("<= ", ">= ") if need.at_most else ("", "")
            share = 100 * need.total_bytes / cohort.original_bytes
            compared = [f"{at_most}{share:.2f}", f"{at_least}{comparison[name]['ratio']:.2f}", need.arch]
        table.append([name, *figures(row, cohort), *compared])
    deviation = curve.deviation()
    results.save(
        equal_fidelity=comparison, original_bytes=cohort.original_bytes, interpolation_deviation=round(deviation, 4)
    )
    count = len(cohort.originals)
    print(f"\n{count} adapters, {cohort.original_bytes / 1e6:.1f} MB of weights files\n")
    print_table(COLUMNS, table)
    print(
        f"""
shared kB, kB each, total %: stored once, stored per adapter, both for all {count} in % of the weights files
error, worst: relative error of ΔW, in the mean and of the worst adapter
ours %: what lorareg needs so that every adapter has the error it has in this row; "<=" where that error lies
beyond the measured curve and its nearest point stands in; ratio: this row's bytes over ours. An error of 1 is what
storing nothing has.
Interpolating our curve over a left-out point, so over twice the gap, errs by at most {100 * deviation:.0f}%."""
    )
    for name, row in rows.items():
        if row.get("train_steps"):
            part = f"; errors of the first {row['measured_adapters']} adapters" if "measured_adapters" in row else ""
            print(f"{name}: generator trained for {row['train_steps']:.0f} steps{part}")
    print(f"Written: {results.path}")


def figures(row: Row, cohort: BenchCohort) -> list[str]:
    return [
        f"{row['shared_bytes'] / 1e3:.1f}",
        f"{np.mean(row['code_bytes']) / 1e3:.2f}",
        f"{100 * total_bytes(row) / cohort.original_bytes:.2f}",
        f"{np.mean(row['errors']):.4f}",
        f"{max(row['errors']):.4f}",
    ]


def total_bytes(row: Row) -> int:
    return int(row["shared_bytes"] + sum(row["code_bytes"]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from the last row, and training from its checkpoint.")
