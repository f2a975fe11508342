"""Damaged rows that a command passes over, instead of stopping at the first, and tells when it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lorareg.registry.errors import DamagedRowError, DamagedRowsError
from lorareg.registry.rows import record_from_row

MAX_NAMED = 10

Record = TypeVar("Record")


class Damage:
    """What was passed over, each row once, as `Row 5 of table 'adapter'`."""

    def __init__(self) -> None:
        self.rows: dict[str, None] = {}

    @contextmanager
    def passed_over(self) -> Iterator[None]:
        """Leave the block at a damaged row and remember it."""
        try:
            yield
        except DamagedRowError as error:
            self.rows[str(error.fields["what"])] = None

    def sound(self, record: type[Record], table: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
        """The records of those rows that are as they were written."""
        for row in rows:
            with self.passed_over():
                yield record_from_row(record, table, row)

    def tell(self, home: Path) -> None:
        """Say what was passed over.

        Raises:
            DamagedRowsError: something was.
        """
        if self.rows:
            named = ", ".join(list(self.rows)[:MAX_NAMED]) + (", ..." if len(self.rows) > MAX_NAMED else "")
            raise DamagedRowsError(count=len(self.rows), home=home, rows=named)
