"""The SQL behind `report`: what is stored, for what, in bytes.

Every blob a row names is put in one `Use`. A blob that several rows name counts once, under the use
that needs it most (the lowest), so the sums over uses add up to what the blob store holds.

With `only`, a set of names, nothing is asked of any other adapter's rows, nor of what it alone uses.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import closing
from enum import IntEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    Select,
    Subquery,
    Table,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from lorareg.registry.backend import ROWS_AT_ONCE, Backend
from lorareg.registry.blobs import StoredBlob
from lorareg.registry.schema import (
    AdapterFileRow,
    AdapterRow,
    Base,
    CertificateRow,
    CohortRow,
    EncodingRow,
    GeneratorRow,
    RetiredBlobRow,
    TaskVectorRow,
)
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, EXTRAS_FOLDER, WEIGHTS_FILE

INTEGER_BYTES = 8
ADDED_UP = ("original_bytes", "code_bytes", "task_vector_bytes", "certificate_bytes", "side_bytes", "row_bytes")
LAST = "z"  # after every digest


class ByteLength(GenericFunction[int]):
    """How many bytes a text or blob has, as SQL."""

    name = "byte_length"
    inherit_cache = True
    type = BigInteger()


@compiles(ByteLength)
def _byte_length_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


@compiles(ByteLength, "postgresql")
def _byte_length_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


class EachOf(GenericFunction[str]):
    """The texts of a JSON array as rows, as SQL."""

    name = "each_of"
    inherit_cache = True


@compiles(EachOf)
def _each_of_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(EachOf, "postgresql")
def _each_of_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS json))"


Names = Collection[str] | None
"""Of the adapters that are asked about; None for all."""


class Use(IntEnum):
    """What a blob is kept for, from needed most to needed least."""

    CODE = 0
    GENERATOR = 1
    UNCOMPRESSED = 2  # weights of an adapter that has no encoding
    SIDE_FILE = 3  # config, card, and what a code leaves out of the weights file
    ORIGINAL = 4  # weights of an adapter that has an encoding
    EVALUATION = 5  # samples and held-out text
    QUARANTINED = 6  # of a removed adapter
    SUPERSEDED = 7  # an older encoding, or a generator that no encoding uses
    RETIRED = 8  # pruned, in quarantine


_live = AdapterRow.removed_at.is_(None)
_current = EncodingRow.superseded_at.is_(None)
# No LIKE: SQLite's takes capitals for small letters.
_is_extra = func.substr(AdapterFileRow.path, 1, len(EXTRAS_FOLDER)) == EXTRAS_FOLDER
_is_side_file = or_(AdapterFileRow.path.in_([CONFIG_FILE, CARD_FILE]), _is_extra)


def table_of(model: type[Base]) -> Table:
    """The table behind a model."""
    table = model.__table__
    assert isinstance(table, Table)
    return table


def row_bytes(model: type[Base], leave_out: Sequence[str] = ()) -> ColumnElement[int]:
    """The bytes one row's values take: text and blobs as long as they are, an integer 8; 0 for no row."""
    total: ColumnElement[int] = literal(0)
    for column in table_of(model).columns:
        if column.name in leave_out:
            continue
        if isinstance(column.type, Integer):
            total = total + case((column.is_not(None), INTEGER_BYTES), else_=0)
        else:
            total = total + func.coalesce(ByteLength(column), 0)
    return total


def _is_among(only: Names) -> ColumnElement[bool]:
    """Whether an adapter's name is one of these; as JSON: a statement may have too few parameters."""
    if only is None:
        return true()
    return AdapterRow.name.in_(select(EachOf(literal(json.dumps(sorted(only)))).table_valued("value").c.value))


def _generators_in_use(only: Names) -> Select[Any]:
    return (
        select(EncodingRow.generator_id)
        .join(AdapterRow, AdapterRow.id == EncodingRow.adapter_id)
        .where(_live, _current, EncodingRow.generator_id.is_not(None), _is_among(only))
    )


def _present(only: Names) -> Subquery:
    """(cohort_id, sha256, size_bytes, use) for every blob that any row names and that was not pruned."""
    named, state = _references(only), RetiredBlobRow.state
    use = case((state.is_not(None), Use.RETIRED.value), else_=named.c.use)
    query = select(named.c.cohort_id, named.c.sha256, named.c.size_bytes, use.label("use"))
    query = query.outerjoin(RetiredBlobRow, RetiredBlobRow.sha256 == named.c.sha256)
    return query.where(or_(state.is_(None), state != "deleted")).subquery("present")


def _references(only: Names) -> Subquery:
    """(cohort_id, sha256, size_bytes, use) for every blob that any row names."""
    file_use = case(
        (AdapterRow.removed_at.is_not(None), Use.QUARANTINED.value),
        (_is_side_file, Use.SIDE_FILE.value),
        (AdapterFileRow.path != WEIGHTS_FILE, Use.EVALUATION.value),
        (EncodingRow.id.is_(None), Use.UNCOMPRESSED.value),
        else_=Use.ORIGINAL.value,
    )
    files = (
        select(AdapterRow.cohort_id, AdapterFileRow.sha256, AdapterFileRow.size_bytes, file_use.label("use"))
        .join(AdapterRow, AdapterRow.id == AdapterFileRow.adapter_id)
        .outerjoin(EncodingRow, and_(EncodingRow.adapter_id == AdapterRow.id, _current))
        .where(_is_among(only))
    )
    encoding_use = case(
        (AdapterRow.removed_at.is_not(None), Use.QUARANTINED.value),
        (EncodingRow.superseded_at.is_not(None), Use.SUPERSEDED.value),
        else_=Use.CODE.value,
    )
    encodings = (
        select(AdapterRow.cohort_id, EncodingRow.sha256, EncodingRow.size_bytes, encoding_use.label("use"))
        .join(AdapterRow, AdapterRow.id == EncodingRow.adapter_id)
        .where(_is_among(only))
    )
    is_used = GeneratorRow.id.in_(_generators_in_use(only))
    generator_use = case((is_used, Use.GENERATOR.value), else_=Use.SUPERSEDED.value)
    generators = select(
        GeneratorRow.cohort_id, GeneratorRow.sha256, GeneratorRow.size_bytes, generator_use.label("use")
    ).where(true() if only is None else is_used)
    return union_all(files, encodings, generators).subquery("reference")


def blob_bytes(connection: Connection, only: Names = None) -> dict[Use, int]:
    """Bytes of blobs by use over the whole registry, each blob once."""
    reference = _present(only)
    blob = (
        select(func.max(reference.c.size_bytes).label("size_bytes"), func.min(reference.c.use).label("use"))
        .group_by(reference.c.sha256)
        .subquery("blob")
    )
    rows = connection.execute(select(blob.c.use, func.sum(blob.c.size_bytes)).group_by(blob.c.use))
    found = {Use(use): int(size) for use, size in rows}
    return {use: found.get(use, 0) for use in Use}


def cohort_blob_bytes(connection: Connection, only: Names = None) -> dict[int, dict[Use, int]]:
    """Bytes of blobs by cohort and use, each blob once in a cohort."""
    reference = _present(only)
    blob = (
        select(
            reference.c.cohort_id,
            func.max(reference.c.size_bytes).label("size_bytes"),
            func.min(reference.c.use).label("use"),
        )
        .group_by(reference.c.cohort_id, reference.c.sha256)
        .subquery("blob")
    )
    query = select(blob.c.cohort_id, blob.c.use, func.sum(blob.c.size_bytes)).group_by(blob.c.cohort_id, blob.c.use)
    found: dict[int, dict[Use, int]] = {}
    for cohort_id, use, size in connection.execute(query):
        found.setdefault(cohort_id, dict.fromkeys(Use, 0))[Use(use)] = int(size)
    return found


def referenced_digests(connection: Connection) -> set[str]:
    """The digests of every blob that any row names."""
    return set(_named(connection))


def orphan_bytes(connection: Connection, listed: Iterable[StoredBlob]) -> int:
    """Bytes of those of the store's blobs that no row names; both come by digest, so none are held."""
    total, name = 0, ""
    with closing(_named(connection)) as named:  # read to where the listing ends: PostgreSQL has more at hand
        for blob in listed:
            while name < blob.sha256:
                name = next(named, LAST)
            if name != blob.sha256:
                total += blob.size_bytes
    return total


def _named(connection: Connection) -> Generator[str, None, None]:
    """The digest of every blob that any row names, in order."""
    digest = _references(None).c.sha256
    query = select(digest).distinct().order_by(digest)
    with connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
        yield from map(str, rows.scalars())


def cohort_rows(connection: Connection) -> Sequence[RowMapping]:
    """Each cohort's id, name, base model and the bytes of its row."""
    query = select(CohortRow.id, CohortRow.name, CohortRow.base_model, row_bytes(CohortRow).label("row_bytes"))
    return connection.execute(query.order_by(CohortRow.name)).mappings().all()


def adapter_rows(connection: Connection, only: Names = None) -> Generator[RowMapping, None, None]:
    """One row for each adapter that is not removed, with all the bytes that are its own, by name and version."""
    query = _adapters(only).order_by(AdapterRow.name, AdapterRow.version)
    with connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
        yield from rows.mappings()


def group_rows(connection: Connection, only: Names = None) -> Sequence[RowMapping]:
    """What those rows add up to for each cohort, tier and generator."""
    adapter = _adapters(only).subquery("own")
    keys = (adapter.c.cohort_id, adapter.c.tier, adapter.c.generator_id)
    of_generator = ("arch", "generator_version", "generator_cohort_id", "generator_bytes", "metrics")
    query = select(
        *keys,
        *(func.max(adapter.c[column]).label(column) for column in of_generator),
        func.count().label("adapters"),
        *(func.sum(adapter.c[column]).label(column) for column in ADDED_UP),
    )
    return connection.execute(query.group_by(*keys).order_by(*keys)).mappings().all()


def worst_errors(connection: Connection, only: Names = None) -> dict[int, float]:
    """The largest relative error of any code, by cohort."""
    query = select(AdapterRow.cohort_id, EncodingRow.fidelity)
    query = query.join(EncodingRow, and_(EncodingRow.adapter_id == AdapterRow.id, _current))
    worst: dict[int, float] = {}
    options = {"yield_per": ROWS_AT_ONCE}
    with connection.execute(query.where(_live, _is_among(only)), execution_options=options) as rows:
        for cohort_id, fidelity in rows:
            error = json.loads(fidelity).get("relative_error")
            if error is not None:
                worst[cohort_id] = max(worst.get(cohort_id, 0.0), float(error))
    return worst


def _adapters(only: Names) -> Select[Any]:
    side_file = and_(_is_side_file, _live, _is_among(only))
    own_blob = (
        select(AdapterFileRow.sha256)
        .join(AdapterRow, AdapterRow.id == AdapterFileRow.adapter_id)
        .where(side_file)
        .group_by(AdapterFileRow.sha256)
        .having(func.count(AdapterFileRow.adapter_id) == 1)
    )
    own_size = case((and_(side_file, AdapterFileRow.sha256.in_(own_blob)), AdapterFileRow.size_bytes), else_=0)
    files = (
        select(
            AdapterFileRow.adapter_id,
            func.sum(own_size).label("side_bytes"),
            func.sum(row_bytes(AdapterFileRow)).label("row_bytes"),
        )
        .join(AdapterRow, AdapterRow.id == AdapterFileRow.adapter_id)
        .group_by(AdapterFileRow.adapter_id)
        .subquery("file")
    )
    rows = row_bytes(AdapterRow) + row_bytes(EncodingRow) + row_bytes(TaskVectorRow, leave_out=["vector"])
    columns: list[Any] = [
        AdapterRow.id,
        AdapterRow.name,
        AdapterRow.version,
        AdapterRow.cohort_id,
        AdapterRow.original_bytes,
        EncodingRow.tier,
        EncodingRow.codec,
        EncodingRow.size_bytes.label("code_bytes"),
        EncodingRow.tolerance,
        EncodingRow.fidelity,
        EncodingRow.generator_id,
        GeneratorRow.arch,
        GeneratorRow.cohort_id.label("generator_cohort_id"),
        GeneratorRow.metrics,
        GeneratorRow.version.label("generator_version"),
        GeneratorRow.size_bytes.label("generator_bytes"),
        func.coalesce(func.length(TaskVectorRow.vector), 0).label("task_vector_bytes"),
        row_bytes(CertificateRow).label("certificate_bytes"),
        func.coalesce(files.c.side_bytes, 0).label("side_bytes"),
        (rows + func.coalesce(files.c.row_bytes, 0)).label("row_bytes"),
    ]
    return (
        select(*columns)
        .outerjoin(EncodingRow, and_(EncodingRow.adapter_id == AdapterRow.id, _current))
        .outerjoin(GeneratorRow, GeneratorRow.id == EncodingRow.generator_id)
        .outerjoin(CertificateRow, CertificateRow.encoding_id == EncodingRow.id)
        .outerjoin(
            TaskVectorRow,
            and_(TaskVectorRow.adapter_id == AdapterRow.id, TaskVectorRow.encoder == GeneratorRow.encoder),
        )
        .outerjoin(files, files.c.adapter_id == AdapterRow.id)
        .where(_live, _is_among(only))
    )


def generator_row_bytes(connection: Connection, only: Names = None) -> dict[int, int]:
    """Bytes of the rows of generators in use, by cohort."""
    query = (
        select(GeneratorRow.cohort_id, func.sum(row_bytes(GeneratorRow)))
        .where(GeneratorRow.id.in_(_generators_in_use(only)))
        .group_by(GeneratorRow.cohort_id)
    )
    return {cohort_id: int(size) for cohort_id, size in connection.execute(query)}


def database_bytes(connection: Connection, backend: Backend) -> int:
    """Bytes that the database takes: its pages, used or free."""
    return int(connection.execute(text(backend.size_query)).scalar_one())
