"""Decode every adapter of a registry in this process, and print the digests as JSON.

A child of `main_job.py`, which runs it under other threads and other kernels of the linear algebra
library; `core` is the kernel family that really ran, where the library tells.

    python bench/digests.py HOME
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

SYMBOLS = ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename")


def decoded_digests(home: Path) -> dict[str, str]:
    """SHA-256 of each adapter's decoded weights file, by its ref."""
    from lorareg.compress.materialize import restore_weights
    from lorareg.registry.reader import Reader
    from lorareg.registry.types import sha256_hex

    with Reader(home) as reader:
        return {
            adapter.ref: sha256_hex(restore_weights(reader, adapter, reader.encoding(adapter.id)))
            for adapter in reader.adapters()
        }


def openblas_core() -> str | None:
    """The kernel family of the OpenBLAS that numpy has loaded; None where there is none to ask."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for path in sorted({line.split()[-1] for line in maps.read_text().splitlines() if "openblas" in line}):
        library = ctypes.CDLL(path)
        for symbol in SYMBOLS:
            if hasattr(library, symbol):
                function = getattr(library, symbol)
                function.restype = ctypes.c_char_p
                return str(function().decode())
    return None


if __name__ == "__main__":
    digests = decoded_digests(Path(sys.argv[1]))
    print(json.dumps({"digests": digests, "core": openblas_core()}))
