"""The figures of the main job, each with its target: bytes, errors, seconds, memory, digests.

Everything runs as a user runs it, in new processes of the installed `lorareg`.

    python bench/main_job.py [FOLDER] [--adapters N]
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cohort import OUTPUT, add_arguments, find_folders
from processes import LORAREG, run, run_checked
from results import Results, Row, files_digest, print_table

HERE = Path(__file__).parent
STORED_PERCENT = 5.0
RELATIVE_ERROR = 0.2
ENCODE_S = 15 * 60
MATERIALIZE_S = 0.6
PEAK_RSS_BYTES = 200e6
INGEST_RATIO = 2.0
HEAVY_MODULES = ("torch", "transformers", "peft", "sqlalchemy", "alembic")
CORE_TYPES = ("Haswell", "Zen", "SkylakeX", "Sandybridge", "Nehalem", "Prescott")
KERNEL_VARIABLE = "OPENBLAS_CORETYPE"
VARIANTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "second run": {},
    "1 thread": {"OPENBLAS_NUM_THREADS": "1"},
    "2 threads": {"OPENBLAS_NUM_THREADS": "2"},
    **{f"core {core}": {KERNEL_VARIABLE: core} for core in CORE_TYPES},
}
IMPORTS_PROBE = """
import sys
from lorareg.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    name: str
    target: str
    measured: str
    holds: bool


def parse_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser, "main_job")
    parser.add_argument("--archs", nargs="+", default=["auto", "slots"], help="what `lorareg compress --arch` is given")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: until it stops gaining)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="materialize runs")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of ingest against copy")
    parser.add_argument("--work", type=Path, default=OUTPUT / "main_job", metavar="DIR", help="registries made here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not Path(LORAREG).exists():
        sys.exit(f"{LORAREG} is not there. Install lorareg for this interpreter: pip install -e '.[train]'")
    folders = find_folders(arguments.folder, arguments.adapters)
    work: Path = arguments.work
    inputs = {"adapters": files_digest(folders), "steps": arguments.steps, "work": str(work)}
    results = Results(arguments.json, inputs, fresh=arguments.fresh)
    figures = []
    for arch in arguments.archs:
        home = work / arch
        if not home.exists():  # a row without the registry it speaks of is of no use to the rows after it
            results.rows.pop(f"store {arch}", None)
        row = results.row(f"store {arch}", lambda arch=arch, home=home: store(folders, home, arch, arguments.steps))
        figures += stored_figures(arch, row)
    home = work / arguments.archs[0]
    row = results.row(f"materialize x{arguments.runs}", lambda: materialize(home, work / "out", arguments.runs))
    figures += materialize_figures(row)
    for arch in arguments.archs:
        row = results.row(f"digests {arch}", lambda arch=arch: digests(work / arch))
        figures.append(digest_figure(arch, row))
    row = results.row(f"ingest x{arguments.rounds}", lambda: ingest(folders, work / "ingest", arguments.rounds))
    figures += ingest_figures(row)
    results.save(figures=[asdict(figure) for figure in figures])
    print(f"\n{len(folders)} adapters of {folders[0].parent}\n")
    print_table(
        ("figure", "target", "measured", "holds"),
        [(f.name, f.target, f.measured, "yes" if f.holds else "NO") for f in figures],
    )
    print(f"\nWritten: {results.path}")


# -- storing ---------------------------------------------------------------------------------------


def store(folders: list[Path], home: Path, arch: str, steps: int | None) -> Row:
    """Ingest and compress into a new registry; what its report says, and how long compressing took."""
    shutil.rmtree(home, ignore_errors=True)
    at_home = ["--home", str(home), "--json"]
    run_checked([LORAREG, "ingest", *map(str, folders), *at_home])
    options = ["--arch", arch, "--tolerance", str(RELATIVE_ERROR), *(["--steps", str(steps)] if steps else [])]
    compressed = run_checked([LORAREG, "compress", *options, *at_home])
    report = json.loads(run_checked([LORAREG, "report", *at_home]).stdout)
    adapters = report["adapters"]
    return {
        "elapsed_s": compressed.wall_s,
        "peak_rss_bytes": compressed.peak_rss_bytes,
        "totals": report["totals"],
        "generators": sorted({one["generator"] for one in adapters if one["generator"]}),
        "worst_relative_error": max(one["relative_error"] or 0.0 for one in adapters),
        "tiers": sorted({one["tier"] for one in adapters}),
        "summaries": json.loads(compressed.stdout)["cohorts"],
    }


def stored_figures(arch: str, row: Row) -> list[Figure]:
    totals: dict[str, Any] = row["totals"]
    stored: dict[str, int] = totals["stored"]
    weights = sum(stored[part] for part in ("codes", "uncompressed", "generators", "task_vectors", "certificates"))
    generator = ", ".join(row["generators"]) or "no generator"
    worst = row["worst_relative_error"]
    return [
        _share(f"{arch}: codes, task vectors, certificates and {generator}", weights, totals["original_bytes"]),
        _share(f"{arch}: with configs, cards and database", totals["stored_bytes"], totals["original_bytes"]),
        Figure(
            f"{arch}: worst relative error of ΔW",
            f"<= {RELATIVE_ERROR:g}",
            f"{worst:.4f} ({', '.join(row['tiers'])})",
            worst <= RELATIVE_ERROR,
        ),
        Figure(
            f"{arch}: training and encoding",
            f"< {ENCODE_S} s",
            f"{row['elapsed_s']:.0f} s, {row['peak_rss_bytes'] / 1e6:.0f} MB",
            row["elapsed_s"] < ENCODE_S,
        ),
    ]


def _share(name: str, stored_bytes: int, original_bytes: int) -> Figure:
    percent = 100 * stored_bytes / original_bytes
    measured = f"{percent:.2f}% ({stored_bytes / 1e3:.0f} of {original_bytes / 1e3:.0f} kB)"
    return Figure(name, f"<= {STORED_PERCENT:g}%", measured, percent <= STORED_PERCENT)


# -- giving back -----------------------------------------------------------------------------------


def materialize(home: Path, out: Path, runs: int) -> Row:
    """`lorareg materialize` as a new process each time, over all adapters in turn."""
    listed = json.loads(run_checked([LORAREG, "report", "--home", str(home), "--json"]).stdout)["adapters"]
    wall_s, peak_bytes = [], []
    for number in range(runs + 1):  # the first fills the page cache, and does not count
        ref = f"{listed[number % len(listed)]['name']}@{listed[number % len(listed)]['version']}"
        shutil.rmtree(out, ignore_errors=True)
        finished = run_checked([LORAREG, "materialize", ref, "-o", str(out), "--home", str(home)])
        if number:
            wall_s.append(finished.wall_s)
            peak_bytes.append(finished.peak_rss_bytes)
    shutil.rmtree(out)
    arguments = ["materialize", listed[0]["name"], "-o", str(out), "--home", str(home)]
    probe = run_checked([sys.executable, "-c", IMPORTS_PROBE, ",".join(HEAVY_MODULES), *arguments])
    shutil.rmtree(out)
    loaded = probe.stdout.splitlines()[-1].removeprefix("loaded:").split()
    return {"wall_s": wall_s, "peak_rss_bytes": max(peak_bytes), "heavy_modules": loaded}


def materialize_figures(row: Row) -> list[Figure]:
    wall_s = sorted(row["wall_s"])
    median, p95 = statistics.median(wall_s), wall_s[math.ceil(0.95 * len(wall_s)) - 1]
    peak, loaded = row["peak_rss_bytes"], row["heavy_modules"]
    target = f"< {MATERIALIZE_S:g} s"
    return [
        Figure(f"materialize, median of {len(wall_s)} processes", target, f"{median:.3f} s", median < MATERIALIZE_S),
        Figure(f"materialize, 95th percentile of {len(wall_s)}", target, f"{p95:.3f} s", p95 < MATERIALIZE_S),
        Figure(
            "materialize, peak memory",
            f"< {PEAK_RSS_BYTES / 1e6:.0f} MB",
            f"{peak / 1e6:.0f} MB",
            peak < PEAK_RSS_BYTES,
        ),
        Figure("materialize, heavy modules loaded", "none", ", ".join(loaded) or "none", not loaded),
    ]


# -- the same bytes everywhere ---------------------------------------------------------------------


def digests(home: Path) -> Row:
    """Digests of all decoded adapters under other threads and kernels, a new process each."""
    found: dict[str, dict[str, str]] = {}
    ran: dict[str, str] = {}
    for name, environment in VARIANTS.items():
        finished = run([sys.executable, str(HERE / "digests.py"), str(home)], environment)
        if finished.exit_code < 0:  # a kernel with instructions that this processor does not have
            ran[name] = f"ended by signal {-finished.exit_code}"
            continue
        if finished.exit_code:
            sys.exit(f"digests.py failed under {name}:\n{finished.stderr.strip()[-2000:]}")
        answer = json.loads(finished.stdout)
        found[name] = answer["digests"]
        ran[name] = answer["core"] or "unknown"
    first = found["as it is"]
    return {
        "adapters": len(first),
        "digests": first,
        "ran": ran,
        "differing": sorted(name for name, digests in found.items() if digests != first),
    }


def digest_figure(arch: str, row: Row) -> Figure:
    ran: dict[str, str] = row["ran"]
    kernels = sorted({core for core in ran.values() if not core.startswith("ended")})
    failed = [name for name, core in ran.items() if core.startswith("ended")]
    measured = f"{len(ran) - len(failed) - len(row['differing'])} of {len(ran) - len(failed)} settings"
    measured += f", kernels {'/'.join(kernels)}" + (f"; could not run: {', '.join(failed)}" if failed else "")
    if row["differing"]:
        measured += f"; differing: {', '.join(row['differing'])}"
    return Figure(f"{arch}: digests equal, {row['adapters']} adapters", "all", measured, not row["differing"])


# -- taking in -------------------------------------------------------------------------------------


def ingest(folders: list[Path], work: Path, rounds: int) -> Row:
    """Ingest against `cp -r` and `sha256sum` of the same files, in turn: as processes, then inside one."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    copy_script = 'cp -r "$@" && find "${@: -1}" -type f -exec sha256sum {} +'
    times: dict[str, list[float]] = {"copy_s": [], "ingest_s": []}
    for number in range(rounds + 1):  # the first fills the page cache, and does not count
        copies, home = work / "copies", work / "home"
        copies.mkdir()
        sources = list(map(str, folders))
        copied = run_checked(["bash", "-c", copy_script, "copy", *sources, str(copies)])
        os.sync()  # what one left to write must not slow down the other
        ingested = run_checked([LORAREG, "ingest", *sources, "--home", str(home), "--quiet"])
        shutil.rmtree(copies)
        shutil.rmtree(home)
        os.sync()
        if number:
            times["copy_s"].append(copied.wall_s)
            times["ingest_s"].append(ingested.wall_s)
    inside = run_checked([sys.executable, str(HERE / "ingest_inside.py"), str(work), str(rounds), *sources])
    shutil.rmtree(work)
    return {"processes": times, "inside": json.loads(inside.stdout)}


def ingest_figures(row: Row) -> list[Figure]:
    figures = []
    for kind, what in (("processes", "cp -r and sha256sum"), ("inside", "copytree and hashlib, one process")):
        copy_s, ingest_s = (statistics.median(row[kind][key]) for key in ("copy_s", "ingest_s"))
        ratio = ingest_s / copy_s
        measured = f"{ratio:.2f}x ({ingest_s:.3f} s to {copy_s:.3f} s)"
        figures.append(Figure(f"ingest against {what}", f"<= {INGEST_RATIO:g}x", measured, ratio <= INGEST_RATIO))
    return figures


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from the last stage that was finished.")
