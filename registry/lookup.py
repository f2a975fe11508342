"""Every question asked of a registry's rows, in SQL that both its readers speak.

`reader.Reader` answers through the standard library's sqlite3, because importing SQLAlchemy alone
takes longer than decoding an adapter; `store.Registry` answers through SQLAlchemy. Both give
`fetch`, and every row passes its digest on the way to becoming a record.

An index is not covered by digests: one that is damaged leads to an intact row that was not asked for, or past one
that was. So a record is compared with what was asked, the newest version of a name is looked up by two indexes, and
whoever reads a whole table compares it with the ledger. A card, a label or a code that a damaged index hides is found
by `check`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lorareg.registry import ledger
from lorareg.registry.backend import Backend, Rows
from lorareg.registry.blobs import BlobStore
from lorareg.registry.damage import Damage
from lorareg.registry.errors import (
    IntegrityError,
    MissingBlobError,
    OriginalGoneError,
    UnknownAdapterError,
    UnknownCohortError,
    UnknownFileError,
    UnknownGeneratorError,
)
from lorareg.registry.home import IDENTITY, STORE
from lorareg.registry.names import Ref, parse_ref, suggest
from lorareg.registry.rows import expect_asked, expect_count, expect_whole, misled, record_from_row
from lorareg.registry.types import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterFile,
    Certificate,
    Cohort,
    Encoding,
    Generator,
    GeneratorCopy,
    Pin,
    RetiredBlob,
    Setting,
    Tag,
    TaskVector,
    Token,
    Whereabouts,
)

Record = TypeVar("Record")


NAMES_A_QUERY = 500
ROWS_A_PAGE = 200
TEXTS_A_PAGE = 4096
_CURRENT = "FROM adapter LEFT JOIN encoding ON encoding.adapter_id = adapter.id AND encoding.superseded_at IS NULL"
_IS_LATER = "later.name = adapter.name AND later.version > adapter.version AND later.removed_at IS NULL"
_PARTS = {
    table: [(column, f"{table}_{column}") for column in (*(field.name for field in fields(record)), "row_digest")]
    for table, record in (("adapter", Adapter), ("encoding", Encoding))
}
_LISTED = ", ".join(f"{table}.{column} AS {label}" for table, columns in _PARTS.items() for column, label in columns)
"""The columns of both tables side by side, told apart by their table's name."""

NOTHING: Mapping[str, object] = {}
_LIVE: Mapping[str, object] = {"removed_at": None}
_NEWEST = " UNION ALL ".join(
    f"SELECT * FROM (SELECT adapter.* FROM {tables} adapter.name = :name AND adapter.removed_at IS NULL "
    f"ORDER BY adapter.version DESC LIMIT 1) AS {alias}"
    for tables, alias in (
        ("adapter WHERE", "by_name"),
        ("cohort CROSS JOIN adapter WHERE adapter.cohort_id = cohort.id AND", "by_cohort"),
    )
)
"""The newest version of a name, found by two indexes that do not fail together."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A version of an adapter and its current encoding, if it has one."""

    adapter: Adapter
    encoding: Encoding | None

    @property
    def stored_bytes(self) -> int:
        """Of its code, or of its weights while it has none; what it shares with others is not in it."""
        return self.adapter.original_bytes if self.encoding is None else self.encoding.size_bytes


@dataclass(frozen=True, slots=True)
class TaskBytes:
    """What the versions under one name that use one generator, or none, take."""

    name: str
    cohort_id: int
    generator_id: int | None
    versions: int
    original_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TaskText:
    """What a task's newest version says of itself, to be searched in: not verified, as what is found will be."""

    id: int
    name: str
    description: str


class Lookup(ABC):
    """The read-only half of a registry."""

    home: Path
    backend: Backend

    @cached_property
    def blobs(self) -> BlobStore:
        """The store that holds this registry's blobs.

        Raises:
            RegistryError: LORAREG_STORE names another one, or the folder is another database's.
        """
        from lorareg.registry.blob_stores import open_blobs

        remembered = self.setting(STORE)
        if remembered is None:
            self.backend.expect_folder(self.fetch)
        return open_blobs(self.home, remembered, None if remembered is None else self.setting(IDENTITY))

    @contextmanager
    def snapshot(self) -> Iterator[Lookup]:
        """The rows of one moment, whatever is written meanwhile; blobs are those there are.

        Raises:
            RegistryError: the database cannot be read.
        """
        blobs = self.blobs  # looked up first: on a full disk, who looks at one moment locks all others out
        rows = self.backend.connect()
        try:
            rows.freeze()
            yield _Snapshot(self, rows, blobs)
        finally:
            rows.close()

    @abstractmethod
    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        """Run a SELECT with `:named` parameters and return its rows."""

    def fetch_together(self, statements: Sequence[str]) -> list[Sequence[Mapping[str, Any]]]:
        """Run several SELECTs that see one moment."""
        with self.snapshot() as frozen:
            return [frozen.fetch(sql) for sql in statements]

    def adapter(self, ref: str) -> Adapter:
        """The adapter that `task`, `task@3` or `task@label` names; without a version, the newest.

        Raises:
            InvalidNameError: `ref` is not of that form.
            UnknownAdapterError: there is no such adapter, or it was removed.
        """
        asked = parse_ref(ref)
        found = self.find_adapter(asked)
        if found is None:
            raise UnknownAdapterError(name=ref, home=self.home, hint=self._hint(asked))
        return found

    def find_adapter(self, asked: Ref) -> Adapter | None:
        """The adapter that a ref names, or None: who only wants to know is not made to wait for near names."""
        if asked.label is not None:
            tag = self._first(Tag, "tag", adapter_name=asked.name, label=asked.label)
            return None if tag is None else self._first(Adapter, "adapter", id=tag.adapter_id, name=asked.name, **_LIVE)
        if asked.version is not None:
            return self._first(Adapter, "adapter", name=asked.name, version=asked.version, **_LIVE)
        rows = self.fetch(_NEWEST, name=asked.name)
        found = self._records(Adapter, "adapter", rows, {"name": asked.name, **_LIVE})
        if found and found != [found[0], found[0]]:
            raise IntegrityError(
                what="An index of table 'adapter'",
                expected=f"one newest version of {asked.name}",
                found=" or ".join(sorted({adapter.ref for adapter in found})),
                remedy="Run `lorareg check`.",
            )
        return found[0] if found else None

    def adapters(
        self, cohort_id: int | None = None, name: str | None = None, include_removed: bool = False
    ) -> list[Adapter]:
        """Adapters by name and version; those of one cohort or of one name if asked for."""
        asked = {**_given(cohort_id=cohort_id, name=name), **({} if include_removed else _LIVE)}
        if cohort_id is None and name is None:
            every = self._records(Adapter, "adapter", self._whole("adapter"), {})
            return sorted((one for one in every if include_removed or one.removed_at is None), key=_by_version)
        return self._all(Adapter, "adapter", "ORDER BY name, version", **asked)

    def has_adapters(self, cohort_id: int) -> bool:
        """Whether a cohort has any that is not removed."""
        sql = "SELECT 1 AS found FROM adapter WHERE cohort_id = :id AND removed_at IS NULL LIMIT 1"
        return bool(self.fetch(sql, id=cohort_id))

    def cohort_sizes(self) -> dict[int, int]:
        """How many adapters each cohort has that are not removed; those that have none are not named."""
        counted = self.fetch(
            "SELECT cohort_id, COUNT(*) AS members FROM adapter WHERE removed_at IS NULL GROUP BY cohort_id"
        )
        return {row["cohort_id"]: row["members"] for row in counted}

    def names(self, after: str = "", limit: int | None = None, include_removed: bool = False) -> list[str]:
        """Names of tasks in order, those past `after`: the keys of pages."""
        live = "" if include_removed else "AND removed_at IS NULL"
        most = "" if limit is None else "LIMIT :limit"
        sql = f"SELECT DISTINCT name FROM adapter WHERE name > :after {live} ORDER BY name {most}"
        return [row["name"] for row in self.fetch(sql, after=after, **_given(limit=limit))]

    def newest(self, names: Sequence[str]) -> list[Listed]:
        """The newest version under each of these names, by name, some hundred names a query."""
        found = []
        for start in range(0, len(names), NAMES_A_QUERY):
            asked = {f"name_{number}": name for number, name in enumerate(names[start : start + NAMES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            where = f"adapter.name IN ({among}) AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {_IS_LATER})"
            found += self._listed(where, **asked)
        return sorted(found, key=lambda listed: listed.adapter.name)

    def pages(
        self, damage: Damage, *, cohort_id: int | None = None, include_history: bool = False
    ) -> Iterator[list[Listed]]:
        """Every adapter, or those of a cohort, by name and version, so many at once, past damaged rows.

        The newest version under each name; with `include_history`, all versions and removed ones as well.
        """
        mine = "" if cohort_id is None else "AND {0}.cohort_id = :cohort_id"
        is_later = f"{_IS_LATER} {mine.format('later')}"
        newest = f"AND adapter.removed_at IS NULL AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {is_later})"
        where = f"WHERE (adapter.name, adapter.version) > (:name, :version) {mine.format('adapter')}"
        rest = f"{'' if include_history else newest} ORDER BY adapter.name, adapter.version LIMIT {ROWS_A_PAGE}"
        given, key = _given(cohort_id=cohort_id), {"name": "", "version": 0}
        while True:
            rows = self.fetch(f"SELECT {_LISTED} {_CURRENT} {where} {rest}", **key, **given)
            found = []
            for row in rows:
                with damage.passed_over():
                    found.append(_listed(row))
            yield found
            if len(rows) < ROWS_A_PAGE:
                return
            key = {"name": rows[-1]["adapter_name"], "version": rows[-1]["adapter_version"]}

    def texts(self) -> Iterator[list[TaskText]]:
        """What every task says of itself, by name, so many at once."""
        newest = f"removed_at IS NULL AND NOT EXISTS (SELECT 1 FROM adapter later WHERE {_IS_LATER})"
        sql = f"SELECT id, name, description FROM adapter WHERE name > :after AND {newest} ORDER BY name LIMIT :limit"
        after = ""
        while True:
            found = [TaskText(**row) for row in self.fetch(sql, after=after, limit=TEXTS_A_PAGE)]
            yield found
            if len(found) < TEXTS_A_PAGE:
                return
            after = found[-1].name

    def listed(self, adapter_ids: Sequence[int]) -> list[Listed]:
        """Adapters that are not removed, in this order."""
        found: dict[int, Listed] = {}
        for start in range(0, len(adapter_ids), NAMES_A_QUERY):
            asked = {f"id_{number}": one for number, one in enumerate(adapter_ids[start : start + NAMES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            found |= {one.adapter.id: one for one in self._listed(f"adapter.id IN ({among})", **asked)}
        return [found[one] for one in adapter_ids if one in found]

    def versions(self, name: str) -> list[Listed]:
        """Every version under a name, the oldest first."""
        return self._listed("adapter.name = :name", name=name)

    def task_bytes(self) -> list[TaskBytes]:
        """What each name takes, over its versions, by name; once for each generator that its versions use."""
        columns = "adapter.name, adapter.cohort_id, encoding.generator_id"
        sums = (
            "COUNT(*) AS versions, CAST(SUM(adapter.original_bytes) AS BIGINT) AS original_bytes, "
            "CAST(SUM(COALESCE(encoding.size_bytes, adapter.original_bytes)) AS BIGINT) AS stored_bytes"
        )
        rest = f"WHERE adapter.removed_at IS NULL GROUP BY {columns} ORDER BY {columns}"
        return [TaskBytes(**row) for row in self.fetch(f"SELECT {columns}, {sums} {_CURRENT} {rest}")]

    def cohort_counts(self) -> dict[int, tuple[int, int]]:
        """How many adapters that are not removed each cohort has, and how many of them have a code."""
        counts = "COUNT(*) AS adapters, COUNT(encoding.id) AS encoded"
        rest = "WHERE adapter.removed_at IS NULL GROUP BY adapter.cohort_id"
        rows = self.fetch(f"SELECT adapter.cohort_id, {counts} {_CURRENT} {rest}")
        return {row["cohort_id"]: (row["adapters"], row["encoded"]) for row in rows}

    def cohorts(self, damage: Damage | None = None) -> list[Cohort]:
        """Every cohort, by name; with `damage`, past damaged rows."""
        return self._past(damage, Cohort, "cohort", "ORDER BY name")

    def cohort(self, name_or_id: str | int) -> Cohort:
        """One cohort.

        Raises:
            UnknownCohortError: there is none of that name or id.
        """
        column = "id" if isinstance(name_or_id, int) else "name"
        found = self._first(Cohort, "cohort", **{column: name_or_id})
        if found is None:
            raise UnknownCohortError(cohort=name_or_id, home=self.home)
        return found

    def files(self, adapter: Adapter) -> list[AdapterFile]:
        """The adapter's files, by path.

        Raises:
            IntegrityError: a row is damaged, or that of the weights or the config is not found.
        """
        found = self._all(AdapterFile, "adapter_file", "ORDER BY path", adapter_id=adapter.id)
        missing = {WEIGHTS_FILE, CONFIG_FILE} - {file.path for file in found}
        if missing:
            raise IntegrityError(
                what=f"Adapter {adapter.ref}",
                expected="weights and a config",
                found=f"no row of {' and '.join(sorted(missing))}",
                remedy="Run `lorareg check`.",
            )
        return found

    def files_of(self, adapter_ids: Sequence[int]) -> dict[int, list[AdapterFile]]:
        """The files of several adapters, by adapter and path, some hundred adapters a query."""
        files: dict[int, list[AdapterFile]] = {adapter_id: [] for adapter_id in adapter_ids}
        for file in self._among(AdapterFile, "adapter_file", "adapter_id", adapter_ids, "ORDER BY adapter_id, path"):
            files[file.adapter_id].append(file)
        return files

    def certificates_of(self, encoding_ids: Sequence[int]) -> dict[int, Certificate]:
        """The certificates of several encodings, of those that have one."""
        found = self._among(Certificate, "certificate", "encoding_id", encoding_ids, "")
        return {certificate.encoding_id: certificate for certificate in found}

    def read_file(self, adapter: Adapter, path: str, *, lasting: bool = False) -> bytes:
        """One of the adapter's files, verified; `lasting` also where it lasts, whatever lies nearer.

        Raises:
            UnknownFileError: the adapter has no such file.
            OriginalGoneError: it was pruned.
            MissingBlobError: its blob is gone.
            IntegrityError: its blob is damaged.
        """
        files = {file.path: file for file in self.files(adapter)}
        if path not in files:
            raise UnknownFileError(ref=adapter.ref, path=path, files=", ".join(files))
        try:
            if lasting:
                self.blobs.verify(files[path].sha256)
            return self.blobs.get(files[path].sha256)
        except MissingBlobError as error:
            retired = self.retired(files[path].sha256)
            if retired is None or retired.state == "quarantined":
                raise
            when = (retired.deleted_at or retired.retired_at)[:10]
            raise OriginalGoneError(ref=adapter.ref, path=path, deleted_at=when) from error

    def original(self, adapter: Adapter) -> Whereabouts:
        """Where the adapter's weights are as they were ingested; "missing" where nobody let them go."""
        weights = next(file for file in self.files(adapter) if file.path == WEIGHTS_FILE)
        if weights.sha256 in self.blobs:
            return "kept"
        retired = self.retired(weights.sha256)
        return "missing" if retired is None or retired.state == "quarantined" else "pruned"

    def tags(self, adapter: Adapter) -> list[Tag]:
        """The labels on this version, by label."""
        return self._all(Tag, "tag", "ORDER BY label", adapter_id=adapter.id)

    def labels(self, name: str) -> list[Tag]:
        """The labels on every version under a name, by label."""
        return self._all(Tag, "tag", "ORDER BY label", adapter_name=name)

    def task_vector(self, adapter_id: int, encoder: str) -> TaskVector | None:
        """The adapter's task vector made by `encoder`, if there is one."""
        return self._first(TaskVector, "task_vector", adapter_id=adapter_id, encoder=encoder)

    def task_vectors(self, adapter_id: int) -> list[TaskVector]:
        """All the adapter's task vectors, by encoder."""
        return self._all(TaskVector, "task_vector", "ORDER BY encoder", adapter_id=adapter_id)

    def task_vectors_of(self, adapter_ids: Sequence[int], encoder: str) -> dict[int, TaskVector]:
        """The task vectors of several adapters that one encoder made, of those that have one."""
        rest = "AND encoder = :encoder"
        found = self._among(TaskVector, "task_vector", "adapter_id", adapter_ids, rest, encoder=encoder)
        return {vector.adapter_id: vector for vector in found}

    def generator(self, generator_id: int) -> Generator:
        """One generator.

        Raises:
            UnknownGeneratorError: there is none of that id.
        """
        found = self._first(Generator, "generator", id=generator_id)
        if found is None:
            raise UnknownGeneratorError(generator=generator_id, home=self.home)
        return found

    def generators(self, cohort_id: int | None = None, damage: Damage | None = None) -> list[Generator]:
        """Generators, oldest version first; those of one cohort if asked for, past damage if it is given."""
        asked = _given(cohort_id=cohort_id)
        return self._past(damage, Generator, "generator", "ORDER BY cohort_id, version", asked)

    def encoding(self, adapter_id: int) -> Encoding | None:
        """The adapter's current encoding, if it has one."""
        return self._first(Encoding, "encoding", adapter_id=adapter_id, superseded_at=None)

    def encodings(self, cohort_id: int | None = None) -> list[Encoding]:
        """Adapters' current encodings, removed adapters' included, by adapter; those of one cohort if asked for."""
        if cohort_id is None:
            every = self._records(Encoding, "encoding", self._whole("encoding"), {})
            return sorted((one for one in every if one.superseded_at is None), key=lambda one: one.adapter_id)
        members = "SELECT id FROM adapter WHERE cohort_id = :id"
        where = f"WHERE superseded_at IS NULL AND adapter_id IN ({members}) ORDER BY adapter_id"
        rows = self.fetch(f"SELECT * FROM encoding {where}", id=cohort_id)
        return self._records(Encoding, "encoding", rows, {"superseded_at": None})

    def certificate(self, encoding_id: int) -> Certificate | None:
        """The certificate of an encoding, if it has one."""
        return self._first(Certificate, "certificate", encoding_id=encoding_id)

    def pin(self, adapter_id: int) -> Pin | None:
        """The pin on an adapter, if there is one."""
        return self._first(Pin, "pin", adapter_id=adapter_id)

    def retired(self, sha256: str) -> RetiredBlob | None:
        """Where a blob is on its way out, if it is."""
        return self._first(RetiredBlob, "retired_blob", sha256=sha256)

    def generator_copies(self, generator_id: int) -> list[GeneratorCopy]:
        """Where second copies of a generator are."""
        return self._all(GeneratorCopy, "generator_copy", "ORDER BY location", generator_id=generator_id)

    def tokens(self) -> list[Token]:
        """Every access token, oldest first; revoked and expired ones are among them."""
        return self._all(Token, "token", "ORDER BY id")

    def token(self, token_id: int) -> Token | None:
        """One access token, if there is one of that id."""
        return self._first(Token, "token", id=token_id)

    def setting(self, name: str) -> Any:
        """What the registry remembers under a name; None if nothing."""
        found = self._first(Setting, "setting", name=name)
        return None if found is None else json.loads(found.value)

    def _all(self, record: type[Record], table: str, order: str = "", /, **asked: object) -> list[Record]:
        return self._past(None, record, table, order, asked)

    def _past(
        self, damage: Damage | None, record: type[Record], table: str, order: str, asked: Mapping[str, object] = NOTHING
    ) -> list[Record]:
        """The rows whose columns are as `asked`, None being NULL."""
        conditions = [f"{name} IS NULL" if value is None else f"{name} = :{name}" for name, value in asked.items()]
        where = f"WHERE {' AND '.join(conditions)}" if asked else ""
        rows = self.fetch(f"SELECT * FROM {table} {where} {order}", **_given(**asked))
        return self._records(record, table, rows, asked) if damage is None else list(damage.sound(record, table, rows))

    def _first(self, record: type[Record], table: str, /, **asked: object) -> Record | None:
        return next(iter(self._all(record, table, "", **asked)), None)

    def _records(
        self, record: type[Record], table: str, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, object]
    ) -> list[Record]:
        """Rows as records, each intact and what was asked for."""
        records = [record_from_row(record, table, row) for row in rows]
        for row in rows:
            expect_asked(table, row, asked)
        return records

    def expect_counts(self, *tables: str) -> None:
        """As many rows are there as were written; their digests are not compared.

        Raises:
            IntegrityError: some are lost.
        """
        counts = [f"SELECT count(*) AS n FROM {table}" for table in tables]
        *found, kept = self.fetch_together([*counts, f"SELECT * FROM {ledger.TABLE}"])
        for table, rows in zip(tables, found, strict=True):
            expect_count(table, rows[0]["n"], kept)

    def _whole(self, table: str) -> Sequence[Mapping[str, Any]]:
        """Every row of a table.

        Raises:
            IntegrityError: not all of them are there.
        """
        rows, kept = self.fetch_together([f"SELECT * FROM {table}", f"SELECT * FROM {ledger.TABLE}"])
        expect_whole(table, rows, kept)
        return rows

    def _among(
        self, record: type[Record], table: str, column: str, values: Sequence[object], rest: str, **more: object
    ) -> Iterator[Record]:
        for start in range(0, len(values), NAMES_A_QUERY):
            asked = {f"value_{number}": value for number, value in enumerate(values[start : start + NAMES_A_QUERY])}
            among = ", ".join(f":{parameter}" for parameter in asked)
            rows = self.fetch(f"SELECT * FROM {table} WHERE {column} IN ({among}) {rest}", **asked, **more)
            if any(row[column] not in asked.values() for row in rows):
                raise misled(table)
            yield from self._records(record, table, rows, more)

    def _listed(self, where: str, **parameters: object) -> list[Listed]:
        """Adapters that are not removed and their current encodings, by name and version."""
        rest = f"WHERE adapter.removed_at IS NULL AND {where} ORDER BY adapter.name, adapter.version"
        return [_listed(row) for row in self.fetch(f"SELECT {_LISTED} {_CURRENT} {rest}", **parameters)]

    def _hint(self, asked: Ref) -> str:
        """What an unknown ref may have meant: another version, one in quarantine, or a near name."""
        versions = self.adapters(name=asked.name, include_removed=True)
        kept = [str(adapter.version) for adapter in versions if adapter.removed_at is None]
        if kept:
            return f" Its versions are {', '.join(kept)}."
        if versions:
            return f" It was removed; `lorareg restore {asked.name}` brings it back."
        names = [row["name"] for row in self.fetch("SELECT DISTINCT name FROM adapter WHERE removed_at IS NULL")]
        return suggest(asked.name, (name for name in names if isinstance(name, str)))


def _by_version(adapter: Adapter) -> tuple[str, int]:
    return adapter.name, adapter.version


def _listed(row: Mapping[str, Any]) -> Listed:
    adapter, encoding = ({column: row[label] for column, label in columns} for columns in _PARTS.values())
    found, known = record_from_row(Adapter, "adapter", adapter), None
    if encoding["id"] is not None:
        known = record_from_row(Encoding, "encoding", encoding)
        expect_asked("encoding", encoding, {"adapter_id": found.id, "superseded_at": None})
    return Listed(found, known)


class _Snapshot(Lookup):
    """What another lookup reads, at one moment."""

    def __init__(self, lookup: Lookup, rows: Rows, blobs: BlobStore) -> None:
        self.home, self.backend, self._rows, self._blobs = lookup.home, lookup.backend, rows, blobs

    @cached_property
    def blobs(self) -> BlobStore:
        return self._blobs

    @contextmanager
    def snapshot(self) -> Iterator[Lookup]:
        yield self

    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        return self._rows.fetch(sql, parameters)


def _given(**parameters: object) -> dict[str, object]:
    return {name: value for name, value in parameters.items() if value is not None}
