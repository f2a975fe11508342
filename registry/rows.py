"""From a database row to a record, and the digest that guards the way.

Both readers use this: the ORM (`schema`, `store`) and the decode path's own (`reader`), which must
not import SQLAlchemy because that alone takes longer than decoding an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from lorareg.registry import ledger
from lorareg.registry.errors import DamagedRowError, IntegrityError
from lorareg.registry.types import canonical_json, sha256_hex

SCHEMA_REVISION = "0004"
"""The newest migration, four digits. Here, so that the decode path can compare without Alembic."""

BUNDLE_REVISION = "0002"
"""The newest migration that changed a table whose rows are in bundles."""

ROW_NAMES = ("id", "name", "adapter_id", "encoding_id", "generator_id", "sha256")
"""Columns that say which row of a table is meant, the first that it has."""

REFERENCES = (
    ("adapter", "cohort_id", "cohort"),
    ("adapter_file", "adapter_id", "adapter"),
    ("tag", "adapter_id", "adapter"),
    ("task_vector", "adapter_id", "adapter"),
    ("pin", "adapter_id", "adapter"),
    ("generator", "cohort_id", "cohort"),
    ("generator_copy", "generator_id", "generator"),
    ("encoding", "adapter_id", "adapter"),
    ("encoding", "generator_id", "generator"),
    ("certificate", "encoding_id", "encoding"),
)
"""(table, column, table whose `id` it is)"""

Record = TypeVar("Record")
Rows = Sequence[Mapping[str, Any]]

_REMEDY = "Run `lorareg check` to see what else is; restore the database from a backup."


def row_digest(table: str, values: Mapping[str, Any]) -> str:
    """SHA-256 over the table's name and every column but the digest itself; bytes count as hex."""
    plain = {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items() if k != "row_digest"}
    return sha256_hex(canonical_json([table, plain]).encode())


def row_name(values: Mapping[str, Any]) -> object:
    """What tells a row of its table from others, as far as one column can."""
    return next((values[key] for key in ROW_NAMES if key in values), "?")


def every_row(table: str) -> str:
    """The SELECT of a table by its key, which is among its first two columns: not every database has an order."""
    return f"SELECT * FROM {table} ORDER BY 1, 2"


def verify_row(table: str, values: Mapping[str, Any]) -> None:
    """Check a row's columns, `row_digest` among them, against that digest.

    Raises:
        DamagedRowError: the row's columns no longer match the digest written with them.
    """
    try:
        found = row_digest(table, values)
    except ValueError:  # a number that is none
        found = "no value that was ever written"
    if found != values.get("row_digest"):
        raise DamagedRowError(
            what=f"Row {row_name(values)} of table {table!r}",
            expected=f"digest {values.get('row_digest')}",
            found=found,
            remedy=_REMEDY,
        )


def expect_asked(table: str, values: Mapping[str, Any], asked: Mapping[str, object]) -> None:
    """A row is one that was asked for, by these values of its columns.

    Raises:
        IntegrityError: the database found another.
    """
    if any(values.get(column) != value for column, value in asked.items()):
        raise misled(table)


def misled(table: str) -> IntegrityError:
    """What to say when the database finds an intact row for another."""
    return IntegrityError(
        what=f"An index of table {table!r}", expected="the row asked for", found="another", remedy=_REMEDY
    )


def expect_whole(table: str, rows: Rows, ledger_rows: Rows) -> None:
    """All rows of a table are there, and none of an earlier time, as far as the ledger knows.

    Raises:
        IntegrityError: they are not what was written, or the ledger is damaged.
    """
    due, found = _due(table, ledger_rows), ledger.sum_of(row.get("row_digest") for row in rows)
    if found != due:
        raise _lost(table, due.rows, f"{found.rows}, or older ones")


def expect_count(table: str, found: int, ledger_rows: Rows) -> None:
    """A table has as many rows as the ledger knows of.

    Raises:
        IntegrityError: it has not, or the ledger is damaged.
    """
    due = _due(table, ledger_rows)
    if found != due.rows:
        raise _lost(table, due.rows, str(found))


def _due(table: str, ledger_rows: Rows) -> ledger.Sum:
    if not ledger_rows:
        return ledger.Sum()
    verify_row(ledger.TABLE, ledger_rows[0])
    return ledger.load(ledger_rows[0]["sums"]).get(table, ledger.Sum())


def _lost(table: str, due: int, found: str) -> IntegrityError:
    expected = f"{due} rows, the last that were written"
    return IntegrityError(what=f"Table {table!r}", expected=expected, found=found, remedy=_REMEDY)


def record_from_row(record: type[Record], table: str, row: Mapping[str, Any]) -> Record:
    """Verify a row against its digest and turn it into its record.

    Raises:
        DamagedRowError: the row's columns no longer match the digest written with them.
    """
    verify_row(table, row)
    return record(*[row[field.name] for field in fields(record)])  # type: ignore[arg-type]
