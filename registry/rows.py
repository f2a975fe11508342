"""From a database row to a record, and the digest that guards the way.

Both readers use this: the ORM (`schema`, `store`) and the decode path's own (`reader`), which must
not import SQLAlchemy because that alone takes longer than decoding an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from lorareg.registry.errors import DamagedRowError
from lorareg.registry.types import canonical_json, sha256_hex

SCHEMA_REVISION = "0003"
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
    found = row_digest(table, values)
    if found != values["row_digest"]:
        raise DamagedRowError(
            what=f"Row {row_name(values)} of table {table!r}",
            expected=f"digest {values['row_digest']}",
            found=found,
            remedy="Restore the database from a backup.",
        )


def record_from_row(record: type[Record], table: str, row: Mapping[str, Any]) -> Record:
    """Verify a row against its digest and turn it into its record.

    Raises:
        DamagedRowError: the row's columns no longer match the digest written with them.
    """
    values = {k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()}
    verify_row(table, values)
    return record(**{f.name: values[f.name] for f in fields(record)})  # type: ignore[arg-type]
