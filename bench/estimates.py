"""Estimates of an error after the original is gone: does it lie within the bounds that a certificate states?

    python bench/estimates.py [FOLDER] [--adapters N] [--trials N]

Adapters are encoded without a generator at several tolerances and decoded. Each trial draws the projections
from another seed, keeps those of the original as a certificate does (int16), and estimates the error of the
decoded weights from them alone; the true error is known here.
"""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import numpy as np
from cohort import add_arguments, find_folders, load_cohort
from results import Row, print_table, write_json

from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.factors.fidelity import measure, measure_modules
from lorareg.compress.factors.weights import read_weights
from lorareg.compress.proofs.certificate import error_shares, estimate, norm, project

TOLERANCES = (0.01, 0.1, 0.2, 0.5)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser, "estimates")
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="in all (default: 1000)")
    arguments = parser.parse_args()
    cohort = load_cohort(find_folders(arguments.folder, arguments.adapters or 10))
    pairs = [(original, tolerance) for original in cohort.originals for tolerance in TOLERANCES]
    each = -(-arguments.trials // len(pairs))
    rows = []
    for number, (original, tolerance) in enumerate(pairs):
        rows.append(try_pair(original, tolerance, number, each))
        print(f"{number + 1}/{len(pairs)}: {original.what} at {tolerance:g}", file=sys.stderr, flush=True)
    show(rows)
    write_json(arguments.json, {"pairs": rows, "trials": each * len(pairs)})


def try_pair(original: Original, tolerance: float, number: int, trials: int) -> Row:
    """One adapter at one error, from many seeds."""
    layout, factors = original.layout, original.factors
    restored = read_weights(encode(original, None, tolerance).output, layout)
    true = measure(layout, factors, restored).relative_error
    errors = [module.relative_error for module in measure_modules(layout, factors, restored)]
    shares = error_shares(layout, restored, errors)
    found = []
    for trial in range(trials):
        first, second = project(layout, [factors, restored], hashlib.sha256(f"{number} {trial}".encode()).digest())
        scale = float(np.abs(first).max()) / 32767
        kept = np.rint(first / scale).astype(np.int16)
        found.append(estimate(kept, scale, norm(layout, factors), second, shares))
    return {
        "adapter": original.what,
        "tolerance": tolerance,
        "error": true,
        "trials": trials,
        "within": sum(one.low <= true <= one.high for one in found),
        "estimates": [one.relative_error for one in found],
        "width": float(np.mean([(one.high - one.low) / 2 / one.relative_error for one in found])),
    }


def show(rows: list[Row]) -> None:
    """A line a tolerance, and all of them."""
    lines = []
    for tolerance in (*TOLERANCES, None):
        mine = [row for row in rows if tolerance in (None, row["tolerance"])]
        ratios = np.concatenate([np.array(row["estimates"]) / row["error"] for row in mine])
        lines.append(
            [
                "all" if tolerance is None else f"{tolerance:g}",
                str(sum(row["trials"] for row in mine)),
                str(sum(row["within"] for row in mine)),
                f"{100 * np.mean([row['width'] for row in mine]):.1f}%",
                f"{ratios.mean():.4f}",
                f"{ratios.std():.4f}",
                f"{ratios.min():.4f}",
                f"{ratios.max():.4f}",
            ]
        )
    columns = ("tolerance", "trials", "within", "bounds, +-", "estimate / true", "deviation", "least", "most")
    print_table(columns, lines)


if __name__ == "__main__":
    main()
