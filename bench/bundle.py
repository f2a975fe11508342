"""Export and import of a registry of many small adapters: time, memory, bytes.

    python bench/bundle.py [--adapters N] [--work DIR]

Made-up adapters (two modules, rank 2, their weights from a seed) are ingested and coded without a generator, then the
registry is exported and imported into another one, each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from results import Row, print_table
from safetensors.numpy import save_file

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
WIDTH = 64
RUN = (
    "import sys, time\n"
    "from lorareg.cli.main import main\n"
    "started = time.perf_counter()\n"
    "try:\n    main(sys.argv[1:])\n"
    "finally:\n"
    "    peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
    "    print(f'{time.perf_counter() - started} {peak}', file=sys.stderr)\n"
)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000, metavar="N")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        started = time.perf_counter()
        for number in range(arguments.adapters):
            make_adapter(work / "adapters" / f"task-{number:05}", number)
        print(f"{arguments.adapters} adapters made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        home, other, bundle = work / "home", work / "other", work / "all.tar"
        rows = [
            timed("ingest", work / "adapters", "--home", home),
            timed("compress", "--arch", "none", "--home", home),
            timed("export", "-o", bundle, "--home", home),
            timed("import", bundle, "--home", other),
        ]
        print_table(("command", "seconds", "memory, MB"), [(r["command"], r["seconds"], r["memory"]) for r in rows])
        print(f"bundle: {bundle.stat().st_size / 1e6:.1f} MB")


def make_adapter(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    tensors = {}
    for module in MODULES:
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.normal(size=(2, WIDTH)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.normal(size=(WIDTH, 2)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": "made/up", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def timed(*words: object) -> Row:
    """One command in a process of its own: how long it took, and its peak memory."""
    command = [sys.executable, "-c", RUN, *map(str, words), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak_kib = map(float, done.stderr.split()[-2:])
    return {"command": words[0], "seconds": f"{seconds:.1f}", "memory": f"{peak_kib / 1024:.0f}"}


if __name__ == "__main__":
    main()
