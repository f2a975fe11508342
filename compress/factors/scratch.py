"""Arrays that hold a whole cohort: in memory while they are small, else in one file without a name.

Two thousand adapters of an 8B model are 27 GB in single precision. What is worked out for all of them
(`plan.Planner.slots`, `examples.blocks_of`) is written here one adapter at a time and read a part at a
time, so that memory holds a part and the system pages the rest in and out. The file is unlinked as
soon as it is made: nothing is left behind, whatever ends the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IN_MEMORY_BYTES = 1 << 28
"""Arrays that together take no more than this stay in memory."""

PART_BYTES = 1 << 26
"""Of a part, in double precision."""

Float32 = NDArray[np.float32]


def scratch_arrays(shapes: Sequence[tuple[int, ...]], folder: Path | None) -> list[Float32]:
    """Writable arrays of these shapes, with no particular content.

    Args:
        shapes: of every array.
        folder: where a file goes if there has to be one; the system's temporary folder by default.

    Raises:
        OSError: the disk has no room for the file. All of it is reserved here, so that writing to it cannot fail.
    """
    counts = [math.prod(shape) for shape in shapes]
    size_bytes = sum(counts) * np.dtype(np.float32).itemsize
    if size_bytes <= IN_MEMORY_BYTES:
        return [np.empty(shape, np.float32) for shape in shapes]
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)
        whole = np.asarray(np.memmap(file, np.float32, "r+", shape=(sum(counts),)))
    ends = np.cumsum(counts)
    return [whole[end - count : end].reshape(shape) for end, count, shape in zip(ends, counts, shapes, strict=True)]


def parts_of(length: int, item_count: int) -> list[slice]:
    """Slices that cover an axis of this length, each of about `PART_BYTES`; an item has `item_count` numbers."""
    step = max(1, PART_BYTES // (8 * max(item_count, 1)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
