"""How many megabytes of weights files one core gives back a second, from the disk to the compared digest, and to files.

    python bench/decode.py HOME... [--adapters N] [--repeats N] [--processes 1,2]

HOME are registries, such as those that bench/main_job.py leaves. A row is a codec with what its generator is, if it
has one. Generators are unpacked once, before; each process decodes every adapter in turn. MB are of the output,
seconds those that a process had a core, which a busy machine lengthens little; `in all` counts the seconds that passed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

from cohort import OUTPUT
from results import Row, machine, print_table, write_json

from lorareg.compress.materialize import materialize, restore_weights
from lorareg.registry.reader import Reader
from lorareg.registry.types import Adapter, Encoding

KINDS = ("digest", "file")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("homes", nargs="+", type=Path, metavar="HOME")
    parser.add_argument("--adapters", type=int, default=8, metavar="N", help="of each codec")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--processes", default="1,2", metavar="N,N")
    parser.add_argument("--json", type=Path, default=OUTPUT / "decode.json", metavar="FILE")
    parser.add_argument("--one", help="what a process of its own is asked, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(decode_all(arguments.homes[0], **json.loads(arguments.one))))
        return
    rows = []
    for home in arguments.homes:
        for codec, refs in coded(home, arguments.adapters).items():
            for count in map(int, arguments.processes.split(",")):
                rows.append({"codec": codec, "processes": count} | measured(home, refs, count, arguments.repeats))
    columns = list(rows[0])
    print_table(columns, [tuple(str(row[column]) for column in columns) for row in rows])
    write_json(arguments.json, {"machine": machine(), "rows": rows})


def coded(home: Path, most: int) -> dict[str, list[str]]:
    """The names of adapters of each codec and architecture."""
    found: dict[str, list[str]] = {}
    with Reader(home) as reader:
        for name in reader.names():
            adapter = reader.adapter(name)
            encoding = reader.encoding(adapter.id)
            if encoding is not None:
                arch = None if encoding.generator_id is None else reader.generator(encoding.generator_id).arch
                found.setdefault(f"{encoding.codec}, {arch}" if arch else encoding.codec, []).append(name)
    return {codec: names[:most] for codec, names in found.items()}


def measured(home: Path, refs: list[str], processes: int, repeats: int) -> Row:
    """MB/s of a core and of all processes together, to the digest and to files."""
    row: Row = {}
    for kind in KINDS:
        asked = json.dumps({"refs": refs, "kind": kind, "repeats": repeats})
        command = [sys.executable, __file__, str(home), "--one", asked]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        told = [json.loads(process.communicate()[0]) for process in running]
        row[f"{kind}, a core"] = round(sum(one["mb"] for one in told) / sum(one["cpu_s"] for one in told))
        row[f"{kind}, in all"] = round(sum(one["mb"] for one in told) / max(one["wall_s"] for one in told))
    return row


def decode_all(home: Path, refs: list[str], kind: str, repeats: int) -> Row:
    """What one process does: MB, seconds of a core, seconds that passed."""
    with Reader(home) as reader, tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "out"
        adapters = [reader.adapter(ref) for ref in refs]
        encodings = [reader.encoding(adapter.id) for adapter in adapters]

        def decode(adapter: Adapter, encoding: Encoding | None) -> int:
            if kind == "digest":
                return len(restore_weights(reader, adapter, encoding))
            materialize(home, adapter.ref, target, force=True)
            return sum(path.stat().st_size for path in target.iterdir())

        decode(adapters[0], encodings[0])
        started, started_cpu, size_bytes = time.perf_counter(), time.process_time(), 0
        for _ in range(repeats):
            for adapter, encoding in zip(adapters, encodings, strict=True):
                size_bytes += decode(adapter, encoding)
        taken = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - started_cpu}
        shutil.rmtree(target, ignore_errors=True)
    return {"mb": size_bytes / 1e6, **taken}


if __name__ == "__main__":
    main()
