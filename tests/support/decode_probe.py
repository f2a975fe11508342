"""A program of its own, for any Python and any setting: decode what it is given, print the digest of each.

    python decode_probe.py FOLDER [fork|spawn]

FOLDER has registries of the current schema, and cases: `NAME.case`, JSON with a layout, and the code and generator
files it names. What decoding needs is needed, and no more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.materialize import materialize
from lorareg.registry.reader import Reader
from lorareg.registry.types import Layout, sha256_hex


def digests_of(path: Path) -> dict[str, str]:
    """What a registry or a case decodes to."""
    return _registry(path) if path.is_dir() else _case(path)


def _registry(home: Path) -> dict[str, str]:
    with Reader(home) as reader:
        refs = sorted(adapter.ref for adapter in reader.adapters())
    with tempfile.TemporaryDirectory() as folder:
        done = {ref: materialize(home, ref, Path(folder) / ref.replace("/", "-")) for ref in refs}
    return {f"{home.name} {ref}": one.output_digest for ref, one in done.items()}


def _case(path: Path) -> dict[str, str]:
    case = json.loads(path.read_text())
    layout, loaded = Layout.from_json(case["layout"]), None
    if case["generator"]:
        data = (path.parent / case["generator"]).read_bytes()
        loaded = LoadedGenerator.from_bytes(data, sha256_hex(data), layout)
    return {path.stem: sha256_hex(decode((path.parent / case["code"]).read_bytes(), layout, loaded, path.stem))}


def main(folder: Path, start: str) -> None:
    """Decode it all, here or in two processes."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".case" or (path / "registry.sqlite").exists())
    if start == "here":
        found = [digests_of(path) for path in paths]
    else:
        with multiprocessing.get_context(start).Pool(2) as pool:
            found = pool.map(digests_of, paths)
    import numpy
    import threadpoolctl

    blas = [(one.get("architecture"), one.get("num_threads")) for one in threadpoolctl.threadpool_info()]
    setting = {"python": sys.version.split()[0], "numpy": numpy.__version__, "blas": blas, "pid": os.getpid()}
    print(json.dumps({"digests": {name: digest for one in found for name, digest in one.items()}, "setting": setting}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "here")
