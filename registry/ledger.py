"""What the rows of a registry add up to, so that one that is gone, or is an older one again, is missed.

A row's digest says that what was found is what was written. It cannot say that something was written and is not found:
a page that a disk never wrote, or wrote elsewhere, holds intact rows of an earlier time. So the registry keeps one row
more, the ledger: how many rows each table has, and the sum of their digests modulo 2^256, which has no order and is
brought up to date by what a transaction adds and takes away (see `schema`). Its number counts those changes and only
ever grows; a file beside the database remembers how far it had come (see `sqlite`).

This is arithmetic against decay, not against somebody who can write to the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from lorareg.registry.blobs import is_digest
from lorareg.registry.types import canonical_json

MODULUS = 1 << 256
TABLE = "ledger"


@dataclass(frozen=True, slots=True)
class Sum:
    """How many rows, and the sum of their digests."""

    rows: int = 0
    total: int = 0

    def changed(self, by: Sum) -> Sum:
        """With what was added, or taken away."""
        return Sum(self.rows + by.rows, (self.total + by.total) % MODULUS)


def sum_of(digests: Iterable[object]) -> Sum:
    """Of a table whose rows have these digests."""
    return reduce(Sum.changed, map(of_row, digests), Sum())


def of_row(digest: object) -> Sum:
    """Of one row; what is no digest any more counts as nothing."""
    return Sum(1, int(digest, 16) if is_digest(digest) else 0)


def change(*, added: str | None = None, taken: str | None = None) -> Sum:
    """What a row's coming, going, or both, does to the sum of its table."""
    rows = (added is not None) - (taken is not None)
    return Sum(rows, (int(added or "0", 16) - int(taken or "0", 16)) % MODULUS)


def dump(sums: Mapping[str, Sum]) -> str:
    """As the ledger has it: {table: [rows, total in hex]}, tables without rows left out."""
    return canonical_json({name: [one.rows, f"{one.total:064x}"] for name, one in sums.items() if one != Sum()})


def load(text: str) -> dict[str, Sum]:
    """The sums of a ledger's row, which has been verified."""
    return {name: Sum(rows, int(total, 16)) for name, (rows, total) in json.loads(text).items()}


def changed(text: str, changes: Mapping[str, Sum]) -> str:
    """The sums of a ledger after these changes."""
    sums = load(text)
    return dump(sums | {name: sums.get(name, Sum()).changed(by) for name, by in changes.items()})


def sums_of(tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Sum]:
    """Of all tables but the ledger itself, from their rows."""
    return {name: sum_of(row.get("row_digest") for row in rows) for name, rows in tables.items() if name != TABLE}
