"""The tables, as SQLAlchemy models.

Portable between SQLite and PostgreSQL: integers, text, bytes; times are ISO 8601 text in UTC and
structured values canonical JSON text, so that what is hashed is what is stored.

SQLite's own integrity check misses most bit flips inside a page, so every row carries
`row_digest`: SHA-256 over its other columns, set on flush and verified whenever a row becomes a
record. A new column goes with a migration that rewrites the digests. With each flush the `ledger` is
brought up to date, so rows come and go as objects of a session, never by a statement of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, mapped_column, object_session

from lorareg.registry import ledger
from lorareg.registry.rows import row_digest, verify_row

# PostgreSQL's integers are small, and its order of texts is its locale's, unless it is told otherwise.
INTEGER = BigInteger().with_variant(Integer(), "sqlite")
TEXT = String().with_variant(String(collation="C"), "postgresql")


class Blob(LargeBinary):
    """Bytes as the driver gives them: what is no bytes any more is left to the row's digest."""

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


class Base(DeclarativeBase):
    """Declarative base; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    type_annotation_map: ClassVar = {int: INTEGER, str: TEXT}

    row_digest: Mapped[str] = mapped_column(sort_order=1000)


class CohortRow(Base):
    __tablename__ = "cohort"
    __table_args__ = (UniqueConstraint("base_model", "layout_digest"), UniqueConstraint("name"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    base_model: Mapped[str]
    layout_digest: Mapped[str]
    layout: Mapped[str]
    created_at: Mapped[str]


class AdapterRow(Base):
    __tablename__ = "adapter"
    __table_args__ = (UniqueConstraint("name", "version"), Index(None, "cohort_id", "name"), Index(None, "digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    digest: Mapped[str]
    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"))
    base_model: Mapped[str]
    rank: Mapped[int]
    weight_count: Mapped[int]
    original_bytes: Mapped[int]
    description: Mapped[str]
    source: Mapped[str]
    created_at: Mapped[str]
    removed_at: Mapped[str | None]


class AdapterFileRow(Base):
    __tablename__ = "adapter_file"
    __table_args__ = (Index(None, "sha256"),)

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int]


class TagRow(Base):
    __tablename__ = "tag"

    adapter_name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), index=True)
    created_at: Mapped[str]


class TaskVectorRow(Base):
    __tablename__ = "task_vector"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), primary_key=True)
    encoder: Mapped[str] = mapped_column(primary_key=True)
    vector: Mapped[bytes] = mapped_column(Blob)
    created_at: Mapped[str]


class GeneratorRow(Base):
    __tablename__ = "generator"
    __table_args__ = (UniqueConstraint("cohort_id", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"))
    version: Mapped[int]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    arch: Mapped[str]
    encoder: Mapped[str]
    config: Mapped[str]
    metrics: Mapped[str]
    created_at: Mapped[str]


class EncodingRow(Base):
    """At most one encoding of an adapter is current: the one with no `superseded_at`."""

    __tablename__ = "encoding"
    __table_args__ = (
        Index(
            "uq_encoding_current",
            "adapter_id",
            unique=True,
            sqlite_where=text("superseded_at IS NULL"),
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index(None, "generator_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"))
    generator_id: Mapped[int | None] = mapped_column(ForeignKey("generator.id"))
    codec: Mapped[str]
    tier: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    output_digest: Mapped[str]
    output_bytes: Mapped[int]
    tolerance: Mapped[str]
    fidelity: Mapped[str]
    created_at: Mapped[str]
    superseded_at: Mapped[str | None]


class CertificateRow(Base):
    """What was proven of an encoding, beside what its own row says; see `certificate`."""

    __tablename__ = "certificate"

    encoding_id: Mapped[int] = mapped_column(ForeignKey("encoding.id"), primary_key=True)
    digest: Mapped[str]
    facts: Mapped[str]
    module_errors: Mapped[bytes] = mapped_column(Blob)
    projections: Mapped[bytes] = mapped_column(Blob)


class PinRow(Base):
    __tablename__ = "pin"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), primary_key=True)
    reason: Mapped[str]
    created_at: Mapped[str]


class GeneratorCopyRow(Base):
    __tablename__ = "generator_copy"

    generator_id: Mapped[int] = mapped_column(ForeignKey("generator.id"), primary_key=True)
    location: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[str]


class RetiredBlobRow(Base):
    """A blob on its way out, or gone; see `prune`."""

    __tablename__ = "retired_blob"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    kind: Mapped[str]
    proof: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    retired_at: Mapped[str]
    deleted_at: Mapped[str | None]


class SettingRow(Base):
    __tablename__ = "setting"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    created_at: Mapped[str]


class TokenRow(Base):
    """An access token of a server, by the digest of its secret; see `tokens`."""

    __tablename__ = "token"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    scope: Mapped[str]
    namespace: Mapped[str]
    secret_sha256: Mapped[str]
    created_at: Mapped[str]
    expires_at: Mapped[str | None]
    revoked_at: Mapped[str | None]


class LedgerRow(Base):
    """The only row of its table: what the rows of all others add up to; see `ledger`."""

    __tablename__ = "ledger"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    sums: Mapped[str]


CHANGES, LEDGER_NUMBER = "ledger_changes", "ledger_number"
"""What a session knows: changes that the ledger does not have yet, and the number that it came to."""


def stored_values(row: Base) -> dict[str, Any]:
    """Every column of a row as it is stored, `row_digest` included."""
    return {column.key: getattr(row, column.key) for column in row.__mapper__.columns}


@event.listens_for(Base, "before_insert", propagate=True)
def _sign_new(mapper: Mapper[Any], connection: Connection, row: Base) -> None:
    row.row_digest = row_digest(_table(row), stored_values(row))
    before = _session(row).identity_map.get(mapper.identity_key_from_instance(row))  # deleted, and replaced at once
    _note(row, ledger.change(added=row.row_digest, taken=None if before is None else before.row_digest))


@event.listens_for(Base, "before_update", propagate=True)
def _sign_again(mapper: Mapper[Any], connection: Connection, row: Base) -> None:
    before, row.row_digest = row.row_digest, row_digest(_table(row), stored_values(row))
    _note(row, ledger.change(added=row.row_digest, taken=before))


@event.listens_for(Base, "before_delete", propagate=True)
def _note_gone(mapper: Mapper[Any], connection: Connection, row: Base) -> None:
    _note(row, ledger.change(taken=row.row_digest))


@event.listens_for(Base, "load", propagate=True)
def _verify(row: Base, context: object) -> None:
    """A damaged row must not be signed anew by the update it was loaded for."""
    verify_row(_table(row), stored_values(row))


@event.listens_for(Session, "after_flush")
def _keep_ledger(session: Session, context: object) -> None:
    """In the rows' own transaction: writers come one after another, so nobody else changes it meanwhile."""
    changes = session.info.pop(CHANGES, None)
    if changes:
        session.info[LEDGER_NUMBER] = record_changes(session.connection(), changes)


def record_changes(connection: Connection, changes: Mapping[str, ledger.Sum]) -> int:
    """Bring the ledger up to date with rows that were written; its number then.

    Raises:
        IntegrityError: the ledger is damaged.
    """
    found = connection.execute(select(LedgerRow.__table__)).mappings().first()
    if found is not None:
        verify_row(ledger.TABLE, dict(found))
    number, sums = (0, "{}") if found is None else (int(found["number"]), str(found["sums"]))
    row = {"id": 1, "number": number + 1, "sums": ledger.changed(sums, changes)}
    write = insert(LedgerRow) if found is None else update(LedgerRow)
    connection.execute(write.values({**row, "row_digest": row_digest(ledger.TABLE, row)}))
    return number + 1


def _table(row: Base) -> str:
    return str(row.__table__.name)  # type: ignore[attr-defined]


def _session(row: Base) -> Session:
    session = object_session(row)
    assert session is not None
    return session


def _note(row: Base, by: ledger.Sum) -> None:
    changes = _session(row).info.setdefault(CHANGES, {})
    changes[_table(row)] = changes.get(_table(row), ledger.Sum()).changed(by)
