"""Every question asked of a registry's rows, in SQL that both its readers speak.

`reader.Reader` answers through the standard library's sqlite3, because importing SQLAlchemy alone
takes longer than decoding an adapter; `store.Registry` answers through SQLAlchemy. Both give
`fetch`, and every row passes its digest on the way to becoming a record.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lorareg.registry.blobs import BlobStore
from lorareg.registry.errors import (
    MissingBlobError,
    OriginalGoneError,
    UnknownAdapterError,
    UnknownCohortError,
    UnknownFileError,
    UnknownGeneratorError,
)
from lorareg.registry.names import Ref, parse_ref, suggest
from lorareg.registry.rows import record_from_row
from lorareg.registry.types import (
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
    Whereabouts,
)

Record = TypeVar("Record")


class Lookup(ABC):
    """The read-only half of a registry."""

    home: Path
    blobs: BlobStore

    @abstractmethod
    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        """Run a SELECT with `:named` parameters and return its rows."""

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
            where = "id = (SELECT adapter_id FROM tag WHERE adapter_name = :name AND label = :label) AND name = :name"
        else:
            where = "name = :name" + (" AND version = :version" if asked.version is not None else "")
        return self._first(
            Adapter,
            "adapter",
            f"WHERE {where} AND removed_at IS NULL ORDER BY version DESC LIMIT 1",
            **_given(name=asked.name, label=asked.label, version=asked.version),
        )

    def adapters(
        self, cohort_id: int | None = None, name: str | None = None, include_removed: bool = False
    ) -> list[Adapter]:
        """Adapters by name and version; those of one cohort or of one name if asked for."""
        conditions = ["1 = 1"]
        conditions += [] if cohort_id is None else ["cohort_id = :cohort_id"]
        conditions += [] if name is None else ["name = :name"]
        conditions += [] if include_removed else ["removed_at IS NULL"]
        return self._all(
            Adapter,
            "adapter",
            f"WHERE {' AND '.join(conditions)} ORDER BY name, version",
            **_given(cohort_id=cohort_id, name=name),
        )

    def cohorts(self) -> list[Cohort]:
        """Every cohort, by name."""
        return self._all(Cohort, "cohort", "ORDER BY name")

    def cohort(self, name_or_id: str | int) -> Cohort:
        """One cohort.

        Raises:
            UnknownCohortError: there is none of that name or id.
        """
        column = "id" if isinstance(name_or_id, int) else "name"
        found = self._first(Cohort, "cohort", f"WHERE {column} = :value", value=name_or_id)
        if found is None:
            raise UnknownCohortError(cohort=name_or_id, home=self.home)
        return found

    def files(self, adapter: Adapter) -> list[AdapterFile]:
        """The adapter's files, by path."""
        return self._all(AdapterFile, "adapter_file", "WHERE adapter_id = :id ORDER BY path", id=adapter.id)

    def read_file(self, adapter: Adapter, path: str) -> bytes:
        """One of the adapter's files, verified.

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
        return self._all(Tag, "tag", "WHERE adapter_id = :id ORDER BY label", id=adapter.id)

    def task_vector(self, adapter_id: int, encoder: str) -> TaskVector | None:
        """The adapter's task vector made by `encoder`, if there is one."""
        where = "WHERE adapter_id = :adapter_id AND encoder = :encoder"
        return self._first(TaskVector, "task_vector", where, adapter_id=adapter_id, encoder=encoder)

    def task_vectors(self, adapter_id: int) -> list[TaskVector]:
        """All the adapter's task vectors, by encoder."""
        return self._all(TaskVector, "task_vector", "WHERE adapter_id = :id ORDER BY encoder", id=adapter_id)

    def generator(self, generator_id: int) -> Generator:
        """One generator.

        Raises:
            UnknownGeneratorError: there is none of that id.
        """
        found = self._first(Generator, "generator", "WHERE id = :id", id=generator_id)
        if found is None:
            raise UnknownGeneratorError(generator=generator_id, home=self.home)
        return found

    def generators(self, cohort_id: int) -> list[Generator]:
        """The cohort's generators, oldest version first."""
        return self._all(Generator, "generator", "WHERE cohort_id = :id ORDER BY version", id=cohort_id)

    def encoding(self, adapter_id: int) -> Encoding | None:
        """The adapter's current encoding, if it has one."""
        return self._first(Encoding, "encoding", "WHERE adapter_id = :id AND superseded_at IS NULL", id=adapter_id)

    def encodings(self, cohort_id: int) -> list[Encoding]:
        """The current encodings of the cohort's adapters, removed ones included, by adapter."""
        members = "SELECT id FROM adapter WHERE cohort_id = :id"
        where = f"WHERE superseded_at IS NULL AND adapter_id IN ({members}) ORDER BY adapter_id"
        return self._all(Encoding, "encoding", where, id=cohort_id)

    def certificate(self, encoding_id: int) -> Certificate | None:
        """The certificate of an encoding, if it has one."""
        return self._first(Certificate, "certificate", "WHERE encoding_id = :id", id=encoding_id)

    def pin(self, adapter_id: int) -> Pin | None:
        """The pin on an adapter, if there is one."""
        return self._first(Pin, "pin", "WHERE adapter_id = :id", id=adapter_id)

    def retired(self, sha256: str) -> RetiredBlob | None:
        """Where a blob is on its way out, if it is."""
        return self._first(RetiredBlob, "retired_blob", "WHERE sha256 = :sha256", sha256=sha256)

    def generator_copies(self, generator_id: int) -> list[GeneratorCopy]:
        """Where second copies of a generator are."""
        return self._all(GeneratorCopy, "generator_copy", "WHERE generator_id = :id ORDER BY location", id=generator_id)

    def setting(self, name: str) -> Any:
        """What the registry remembers under a name; None if nothing."""
        found = self._first(Setting, "setting", "WHERE name = :name", name=name)
        return None if found is None else json.loads(found.value)

    def _all(self, record: type[Record], table: str, rest: str, **parameters: object) -> list[Record]:
        rows = self.fetch(f"SELECT * FROM {table} {rest}", **parameters)
        return [record_from_row(record, table, row) for row in rows]

    def _first(self, record: type[Record], table: str, rest: str, **parameters: object) -> Record | None:
        return next(iter(self._all(record, table, rest, **parameters)), None)

    def _hint(self, asked: Ref) -> str:
        """What an unknown ref may have meant: another version, one in quarantine, or a near name."""
        versions = self.adapters(name=asked.name, include_removed=True)
        kept = [str(adapter.version) for adapter in versions if adapter.removed_at is None]
        if kept:
            return f" Its versions are {', '.join(kept)}."
        if versions:
            return f" It was removed; `lorareg restore {asked.name}` brings it back."
        names = (row["name"] for row in self.fetch("SELECT DISTINCT name FROM adapter WHERE removed_at IS NULL"))
        return suggest(asked.name, names)


def _given(**parameters: object) -> dict[str, object]:
    return {name: value for name, value in parameters.items() if value is not None}
