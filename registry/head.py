"""How far a registry in SQLite had come when somebody was last told "done": the ledger's number, in a file beside it.

SQLite drops what it cannot read at the end of its log without a word, and an older copy of its file is as whole as the
newest; what both have lost is acknowledged all the same. The file here is written after each commit and is therefore
never ahead of it; a database whose ledger has a lower number has lost changes.

It is not flushed: after a power loss it may be behind or no number at all, which only makes it less strict.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lorareg.registry.home import HEAD_FILE
from lorareg.registry.types import sha256_hex

_DIGITS = 20


def read_head(home: Path) -> int | None:
    """The number; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        found = (home / HEAD_FILE).read_bytes()
    except FileNotFoundError:
        return None
    number = found[:_DIGITS]
    if not number.isdigit() or found != _written(int(number)):
        raise ValueError(f"{HEAD_FILE} does not hash to what it says")
    return int(number)


def advance_head(home: Path, number: int) -> None:
    """Write a number down, unless another process has come further.

    What is committed is committed: where this file cannot be written, it stays behind.
    """
    with suppress(OSError):
        handle = os.open(home / HEAD_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                further = number > (read_head(home) or 0)
            except ValueError:
                further = True
            if further:
                os.pwrite(handle, _written(number), 0)
                os.truncate(handle, len(_written(number)))
        finally:
            os.close(handle)


def forget_head(home: Path) -> None:
    """Numbers begin anew."""
    (home / HEAD_FILE).unlink(missing_ok=True)


def _written(number: int) -> bytes:
    digits = f"{number:0{_DIGITS}d}"
    return f"{digits} {sha256_hex(digits.encode())[:16]}\n".encode()
