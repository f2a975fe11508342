"""How fast one core decodes and encodes, in a process that runs already: no start-up, no database, no disk.

    python bench/speed.py HOME [--adapters N]

Decoding is code bytes to weights file, with the generator loaded. Encoding is the search for a code at
the error an adapter is recorded with, against the generator as it is, without distilling.
"""

from __future__ import annotations

import json
import os
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded

from cohort import OUTPUT
from results import Row, print_table, write_json

from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.codec.encode import Original, encode
from lorareg.compress.planning.coordinates import EMPTY, draft_of, latent_of
from lorareg.registry.reader import Reader
from lorareg.registry.types import WEIGHTS_FILE, Adapter, Encoding, Layout

REPEATS = 15


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="the registry")
    parser.add_argument("--adapters", type=int, default=5, metavar="N", help="of each cohort")
    parser.add_argument("--json", type=Path, default=OUTPUT / "speed.json", metavar="FILE")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with Reader(arguments.home) as reader:
        for cohort in reader.cohorts():
            layout = Layout.from_json(cohort.layout)
            encodings = {encoding.adapter_id: encoding for encoding in reader.encodings(cohort.id)}
            for adapter in reader.adapters(cohort_id=cohort.id)[: arguments.adapters]:
                if adapter.id in encodings:
                    rows.append(measure(reader, adapter, encodings[adapter.id], layout))
    columns = ("adapter", "weights MB", "code kB", "decode ms", "MB/s", "encode s")
    print_table(
        columns,
        [
            (
                row["adapter"],
                f"{row['output_bytes'] / 1e6:.2f}",
                f"{row['code_bytes'] / 1e3:.1f}",
                f"{1e3 * row['decode_s']:.1f}",
                f"{row['output_bytes'] / row['decode_s'] / 1e6:.0f}",
                "-" if row["encode_s"] is None else f"{row['encode_s']:.2f}",
            )
            for row in rows
        ],
    )
    write_json(arguments.json, {"adapters": rows})


def measure(reader: Reader, adapter: Adapter, encoding: Encoding, layout: Layout) -> Row:
    """One adapter: medians of decoding, one encoding."""
    code, loaded = reader.blobs.get(encoding.sha256), None
    if encoding.generator_id is not None:
        record = reader.generator(encoding.generator_id)
        loaded = LoadedGenerator.from_bytes(reader.blobs.get(record.sha256), record.sha256, layout)
    output = decode(code, layout, loaded, adapter.ref)
    tolerance = json.loads(encoding.fidelity)["relative_error"]
    original = Original(adapter.ref, partial(reader.read_file, adapter, WEIGHTS_FILE), layout)
    encode_s = None
    if encoding.tier == "residual" and (loaded is None or not loaded.generator.condition_size):
        encode_s = timed(lambda: encode_again(original, loaded, tolerance))
    return {
        "adapter": adapter.ref,
        "output_bytes": len(output),
        "code_bytes": len(code),
        "decode_s": median(timed(lambda: decode(code, layout, loaded, adapter.ref)) for _ in range(REPEATS)),
        "encode_s": encode_s,
    }


def encode_again(original: Original, loaded: LoadedGenerator | None, tolerance: float) -> None:
    draft = None
    if loaded is not None:
        draft = draft_of(loaded, original, latent_of(loaded.generator, original.factors), EMPTY)
    encode(original, draft, tolerance)


def timed(action: Callable[[], object]) -> float:
    """Seconds of this process's own processor time, which a busy machine does not lengthen much."""
    started = time.process_time()
    action()
    return time.process_time() - started


if __name__ == "__main__":
    main()
