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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from lorareg.registry.backend import Rows
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
from lorareg.registry.listings import Listings
from lorareg.registry.names import Ref, parse_ref, suggest
from lorareg.registry.row_reading import given
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


class Lookup(Listings):
    """The read-only half of a registry."""

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
    def snapshot(self) -> Iterator[Snapshot]:
        """The rows of one moment, whatever is written meanwhile; blobs are those there are.

        Raises:
            RegistryError: the database cannot be read.
        """
        blobs = self.blobs  # looked up first: on a full disk, who looks at one moment locks all others out
        rows = self.backend.connect()
        try:
            rows.freeze()
            yield Snapshot(self, rows, blobs)
        finally:
            rows.close()

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
        asked = {**given(cohort_id=cohort_id, name=name), **({} if include_removed else _LIVE)}
        if cohort_id is None and name is None:
            every = self._records(Adapter, "adapter", self._whole("adapter"), {})
            return sorted((one for one in every if include_removed or one.removed_at is None), key=_by_version)
        return self._all(Adapter, "adapter", "ORDER BY name, version", **asked)

    def has_adapters(self, cohort_id: int) -> bool:
        """Whether a cohort has any that is not removed."""
        sql = "SELECT 1 AS found FROM adapter WHERE cohort_id = :id AND removed_at IS NULL LIMIT 1"
        return bool(self.fetch(sql, id=cohort_id))

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
        asked = given(cohort_id=cohort_id)
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


class Snapshot(Lookup):
    """What another lookup reads, at one moment."""

    def __init__(self, lookup: Lookup, rows: Rows, blobs: BlobStore) -> None:
        self.home, self.backend, self._rows, self._blobs = lookup.home, lookup.backend, rows, blobs

    @cached_property
    def blobs(self) -> BlobStore:
        return self._blobs

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        yield self

    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        return self._rows.fetch(sql, parameters)

    def stream(self, sql: str, **parameters: object) -> Iterator[Mapping[str, Any]]:
        """As `fetch`, but no more rows are held than a few."""
        return self._rows.stream(sql, parameters)
