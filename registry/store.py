"""The registry: what a home folder holds, and every way to change it.

The database's commit is the only commit point: blobs are stored, and last, before the transaction
that mentions them begins. Nothing here ever deletes bytes; removing an adapter is a row update.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from lorareg.registry.backend import Backend, backend_of, rows_moved
from lorareg.registry.blob_stores import asked_store
from lorareg.registry.blobs import StagedBlob
from lorareg.registry.card import tidy_description
from lorareg.registry.certificate import Proof, Subject, compose, digest_of
from lorareg.registry.database import reading, writing
from lorareg.registry.encodings import add_encoding, add_generator, claim_blobs, put_certificate
from lorareg.registry.errors import LoraregError, MissingBlobError, UnknownAdapterError
from lorareg.registry.home import IDENTITY, MOVED, STORE, resolve_home
from lorareg.registry.ingest import (
    IngestOutcome,
    IngestRequest,
    adapter_record,
    describe_adapter,
    now,
    put_file_rows,
)
from lorareg.registry.intake import take_in, take_in_each
from lorareg.registry.lookup import Lookup
from lorareg.registry.migrate import Migration, migrate
from lorareg.registry.names import parse_ref, validate_label, validate_relative_path, validate_task_name
from lorareg.registry.peft_format import PeftFolder
from lorareg.registry.revision import is_current
from lorareg.registry.rows import record_from_row
from lorareg.registry.schema import (
    AdapterRow,
    PinRow,
    SettingRow,
    TagRow,
    TaskVectorRow,
    stored_values,
)
from lorareg.registry.sweep import bring_back_adapter
from lorareg.registry.types import (
    WEIGHTS_FILE,
    Adapter,
    Certificate,
    Encoding,
    Finding,
    Generator,
    NewEncoding,
    NewGenerator,
    Pin,
    RetiredBlob,
    Tag,
    TaskVector,
    canonical_json,
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` brought back: whether the version had been removed, and blobs from quarantine."""

    adapter: Adapter
    was_removed: bool
    blobs: list[RetiredBlob]


class Registry(Lookup):
    """An open registry. Use it as a context manager, or `close` it."""

    def __init__(self, backend: Backend, *, spent_reserve: bool = False) -> None:
        """Wrap a database that is current; `open` is the way in."""
        self.home, self.backend, self._spent_reserve = backend.home, backend, spent_reserve
        self.engine = backend.engine()

    @classmethod
    def open(cls, home: Path | None = None, *, create: bool, frees: bool = False) -> Registry:
        """Open the registry at `home` (see `home.resolve_home`), migrating it after a backup if it is older.

        Args:
            home: its folder.
            create: make it, if there is none.
            frees: on a full disk give the reserve up until it is closed: for who deletes, or looks at what could go.

        Raises:
            RegistryError: there is none and `create` is false, or it cannot be read.
            NewerSchemaError: a newer lorareg wrote it.
        """
        backend = backend_of(resolve_home(home))
        if (create and not backend.is_there()) or not is_current(backend):
            migrate(backend, asked_store())
        registry = cls(backend, spent_reserve=frees and backend.spend_reserve())
        if registry.setting(STORE) is not None and registry.setting(IDENTITY) is None:
            registry.identity()
        return registry

    @staticmethod
    def migrate(home: Path | None = None) -> Migration:
        """Migrate the registry at `home` and say what was done.

        Raises:
            RegistryError: there is none, or it cannot be written.
            NewerSchemaError: a newer lorareg wrote it.
        """
        backend = backend_of(resolve_home(home))
        is_current(backend)
        return migrate(backend, asked_store())

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if self._spent_reserve:
            self.backend.keep_reserve()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reading(self) -> AbstractContextManager[Connection]:
        """One consistent snapshot, for SQL that spans several statements."""
        return reading(self.engine, self.backend)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction that is committed whole or not at all; whoever writes waits for its turn.

        Raises:
            RowsMovedError: what is written here would not be where the rows count now.
        """
        with writing(self.engine, self.backend) as session:
            moved = session.get(SettingRow, MOVED)
            if moved is not None:
                raise rows_moved(self.home, json.loads(moved.value))
            yield session

    def ingest(self, folder: PeftFolder, *, name: str, description: str | None = None) -> IngestOutcome:
        """Take in an adapter that `peft_format.read_adapter` has read; ingesting it again changes nothing.

        Raises:
            InvalidNameError: `name` is not a task name.
            InvalidAdapterError: a file changed since it was read, or a weight is not finite.
            RegistryError: the database refused.
        """
        validate_task_name(name)
        return take_in(self, folder, IngestRequest(folder.path, name, description))

    def ingest_each(self, requests: Iterable[IngestRequest]) -> Iterator[IngestOutcome | LoraregError]:
        """Ingest many folders, in order and some at once (see `intake`); one that is refused is given as its error."""
        return take_in_each(self, requests)

    def tag(self, adapter: Adapter, label: str) -> Tag:
        """Put `label` on this version, moving it from any other version of the name.

        Raises:
            InvalidNameError: it is not a label.
            UnknownAdapterError: the adapter is not in this registry.
        """
        validate_label(label)
        with self.writing() as session:
            self._adapter_row(session, adapter)
            row = session.get(TagRow, (adapter.name, label))
            if row is None:
                row = TagRow(adapter_name=adapter.name, label=label, adapter_id=adapter.id, created_at=now())
                session.add(row)
            elif row.adapter_id != adapter.id:
                row.adapter_id, row.created_at = adapter.id, now()
            session.flush()
            return record_from_row(Tag, "tag", stored_values(row))

    def untag(self, adapter: Adapter, label: str) -> bool:
        """Take `label` off this version; whether it was there."""
        with self.writing() as session:
            row = session.get(TagRow, (adapter.name, validate_label(label)))
            if row is None or row.adapter_id != adapter.id:
                return False
            session.delete(row)
            return True

    def remove(self, adapter: Adapter) -> Adapter:
        """Put this version in quarantine: it no longer resolves, its bytes stay, `restore` brings it back.

        Raises:
            UnknownAdapterError: the adapter is not in this registry.
        """
        with self.writing() as session:
            row = self._adapter_row(session, adapter)
            if row.removed_at is None:
                row.removed_at = now()
            session.flush()
            return adapter_record(row)

    def restore(self, ref: str) -> Restored:
        """Bring back what is on its way out: a removed version, and originals and older codes in quarantine.

        Without a version or label: the version removed last, else the newest one.

        Raises:
            UnknownAdapterError: nothing that is removed or in quarantine has that name, version or label.
        """
        asked = parse_ref(ref)
        query = select(AdapterRow).where(AdapterRow.name == asked.name)
        if asked.version is not None:
            query = query.where(AdapterRow.version == asked.version)
        if asked.label is not None:
            tagged = select(TagRow.adapter_id).where(TagRow.adapter_name == asked.name, TagRow.label == asked.label)
            query = query.where(AdapterRow.id.in_(tagged))
        removed_first = (AdapterRow.removed_at.is_(None), AdapterRow.removed_at.desc(), AdapterRow.version.desc())
        with self.writing() as session:
            row = session.scalars(query.order_by(*removed_first)).first()
            blobs = [] if row is None else bring_back_adapter(session, adapter_record(row))
            if row is None or (row.removed_at is None and not blobs):
                hint = " Nothing removed or in quarantine goes by that name."
                raise UnknownAdapterError(name=ref, home=self.home, hint=hint)
            was_removed, row.removed_at = row.removed_at is not None, None
            session.flush()
            return Restored(adapter_record(row), was_removed, blobs)

    def put_pin(self, adapter: Adapter, reason: str) -> Pin:
        """Promise that this version's original stays, and take it off the way out if it is on it.

        Raises:
            UnknownAdapterError: the adapter is not in this registry.
            OriginalGoneError: there is nothing left to keep.
        """
        with self.writing() as session:
            self._adapter_row(session, adapter)
            self.read_file(adapter, WEIGHTS_FILE, lasting=True)  # within the transaction: nothing is unlinked meanwhile
            bring_back_adapter(session, adapter)
            row = session.get(PinRow, adapter.id)
            if row is None:
                row = PinRow(adapter_id=adapter.id, reason=reason, created_at=now())
                session.add(row)
            row.reason = reason
            session.flush()
            return record_from_row(Pin, "pin", stored_values(row))

    def take_pin(self, adapter: Adapter) -> bool:
        """Take a pin away; whether there was one."""
        with self.writing() as session:
            row = session.get(PinRow, adapter.id)
            if row is not None:
                session.delete(row)
            return row is not None

    def describe(self, adapter: Adapter, description: str) -> Adapter:
        """Give this version another description; task vectors that were made from the old one go.

        Raises:
            UnknownAdapterError: the adapter is not in this registry.
        """
        wanted = tidy_description(description)
        with self.writing() as session:
            row = self._adapter_row(session, adapter)
            if row.description != wanted:
                describe_adapter(session, row, wanted)
                session.flush()
            return adapter_record(row)

    def remember(self, name: str, value: object) -> None:
        """Keep a value of JSON under a name; None forgets it."""
        with self.writing() as session:
            self.remember_in(session, name, value)

    def remember_in(self, session: Session, name: str, value: object) -> None:
        """As `remember`, in a transaction that is under way."""
        row = session.get(SettingRow, name)
        if value is None:
            if row is not None:
                session.delete(row)
            return
        written = canonical_json(value)
        if row is None:
            session.add(SettingRow(name=name, value=written, created_at=now()))
        elif row.value != written:
            row.value, row.created_at = written, now()

    def identity(self) -> str:
        """Its own number, which it gets when it is first asked for."""
        with self.writing() as session:
            row = session.get(SettingRow, IDENTITY)
            number = uuid.uuid4().hex if row is None else str(json.loads(row.value))
            self.remember_in(session, IDENTITY, number)
        return number

    def put_task_vector(self, adapter_id: int, encoder: str, vector: bytes) -> TaskVector:
        """Store the adapter's task vector made by `encoder`, replacing an older one.

        Raises:
            UnknownAdapterError: there is no adapter of that id.
        """
        with self.writing() as session:
            if session.get(AdapterRow, adapter_id) is None:
                raise UnknownAdapterError(name=f"with id {adapter_id}", home=self.home, hint="")
            row = session.get(TaskVectorRow, (adapter_id, encoder))
            if row is None:
                row = TaskVectorRow(adapter_id=adapter_id, encoder=encoder, vector=vector, created_at=now())
                session.add(row)
            elif row.vector != vector:
                row.vector, row.created_at = vector, now()
            session.flush()
            return record_from_row(TaskVector, "task_vector", stored_values(row))

    def record_generator(self, new: NewGenerator) -> Generator:
        """Record a generator whose file is stored; the same file with the same config is not recorded twice.

        Raises:
            LoraregError: as `encodings.add_generator`.
        """
        with self.writing() as session:
            row = add_generator(session, self.home, self.blobs, new)
            return record_from_row(Generator, "generator", stored_values(row))

    def record_encoding(self, new: NewEncoding, proof: Proof | None = None) -> Encoding:
        """Make this the adapter's current encoding, superseding the one before in the same transaction.

        With a proof its certificate comes in that transaction as well: a code that lost its certificate on the way
        would keep its original for ever.

        Raises:
            LoraregError: as `encodings.add_encoding`.
        """
        with self.writing() as session:
            row = add_encoding(session, self.home, self.blobs, new)
            encoding = record_from_row(Encoding, "encoding", stored_values(row))
            if proof is not None:
                adapter = session.get(AdapterRow, new.adapter_id)
                assert adapter is not None  # add_encoding looked
                digest = digest_of(compose(Subject.of(self, adapter_record(adapter), encoding), proof))
                put_certificate(session, encoding.id, digest, proof)
            return encoding

    def put_files(self, adapter: Adapter, files: Mapping[str, bytes]) -> None:
        """Keep files with an adapter, replacing those of the same paths.

        Raises:
            UnknownAdapterError: the adapter is not in this registry.
            InvalidNameError: a path is not one.
        """
        if not files:
            return

        def store() -> dict[str, StagedBlob]:
            with self.blobs.staging() as staging:
                staged = {validate_relative_path(path): staging.add_bytes(data) for path, data in files.items()}
                staging.publish()
            return staged

        def record(session: Session, staged: Mapping[str, StagedBlob]) -> None:
            self._adapter_row(session, adapter)
            claim_blobs(session, self.blobs, {blob.sha256: blob.size_bytes for blob in staged.values()})
            put_file_rows(session, adapter.id, staged)

        staged = store()
        try:
            with self.writing() as session:
                record(session, staged)
        except MissingBlobError:  # taken for nobody's since then: stored once more where nothing is deleted
            with self.writing() as session:
                record(session, store())

    def certify(self, adapter: Adapter, encoding: Encoding, proof: Proof) -> Certificate:
        """Record what was proven of an encoding that is recorded already, replacing what was proven before."""
        digest = digest_of(compose(Subject.of(self, adapter, encoding), proof))
        with self.writing() as session:
            row = put_certificate(session, encoding.id, digest, proof)
            return record_from_row(Certificate, "certificate", stored_values(row))

    def check(self, read_data: bool = False) -> Iterator[Finding]:
        """Walk everything and yield what is wrong; see `check.check`. Changes nothing."""
        from lorareg.registry.check import check

        return check(self, read_data)

    def fetch(self, sql: str, **parameters: object) -> Sequence[Mapping[str, Any]]:
        with self.reading() as connection:
            return [dict(row) for row in connection.execute(text(sql), parameters).mappings()]

    def _adapter_row(self, session: Session, adapter: Adapter) -> AdapterRow:
        row = session.get(AdapterRow, adapter.id)
        if row is None or row.name != adapter.name:
            raise UnknownAdapterError(name=adapter.ref, home=self.home, hint="")
        return row
