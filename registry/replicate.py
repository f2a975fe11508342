"""A second copy of what must stay, somewhere else: a folder, or anything fsspec reaches (s3://bucket/path).

The copy is itself a registry: blobs under their digests, read back and hashed before they count, and a
snapshot of the database, in which originals that were not copied are marked as gone. `--home FOLDER` opens it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import text

from lorareg.registry.blobs import OWNER
from lorareg.registry.errors import IntegrityError, LoraregError, MissingBlobError, MissingExtraError, ReplicaError
from lorareg.registry.files import sync_file, sync_folder
from lorareg.registry.folder_blobs import FolderBlobs
from lorareg.registry.home import BLOBS_FOLDER, DATABASE_FILE, HEAD_FILE, IDENTITY, POSTGRES_FILE, STORE
from lorareg.registry.ingest import now
from lorareg.registry.meanwhile import look_again
from lorareg.registry.schema import GeneratorCopyRow, RetiredBlobRow, SettingRow
from lorareg.registry.types import WEIGHTS_FILE
from lorareg.registry.urls import may_have_secrets, without_secrets

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from lorareg.registry.store import Registry


OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
"""Protocols without folders, where making one would make a bucket."""


class Location(Protocol):
    """Where a second copy is."""

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Whether a blob of that size is there; its bytes are not looked at."""

    def get(self, sha256: str) -> bytes:
        """A blob, verified.

        Raises:
            MissingBlobError: it is not there.
            IntegrityError: its bytes are others.
        """

    def put(self, sha256: str, data: bytes) -> None:
        """Store a blob."""

    def owner(self) -> str | None:
        """The number of the registry that this is a copy of; None where there is nothing, "" for another registry."""

    def put_owner(self, owner: str) -> None:
        """Say whose copy it is, where there is nothing yet."""

    def put_database(self, snapshot: Path) -> None:
        """Store the database, replacing an older one."""

    def get_database(self) -> bytes:
        """The database's file."""


@dataclass(frozen=True, slots=True)
class Replicated:
    """What replicating did."""

    location: str
    copied: int
    copied_bytes: int
    present: int  # blobs that were there already
    generators: int


def open_location(location: str) -> Location:
    """A folder or a URL.

    Raises:
        MissingExtraError: a URL needs fsspec, or the package behind its protocol.
        ReplicaError: the URL is none that fsspec knows.
    """
    return _Remote.open(location) if "://" in location else _Folder(Path(location))


def _expect_no_secrets(location: str) -> None:
    """Raises ReplicaError where a URL has what would be kept in the registry, and printed."""
    if may_have_secrets(location):
        reason = "a user's name, password, query or fragment in its URL would be kept in the registry, and printed"
        remedy = "Leave it out; credentials come from the environment or fsspec's configuration (FSSPEC_FTP_PASSWORD)."
        raise ReplicaError(location=without_secrets(location), reason=reason, remedy=remedy)


def replicate(registry: Registry, location: str, originals: bool, advance: Callable[[int], object]) -> Replicated:
    """Copy what must stay (with `originals`, all), verify the copies, and record which generators have one.

    `advance` is called after each blob.

    Raises:
        ReplicaError: the location is the registry itself or has another, or cannot be written.
        IntegrityError: a blob is damaged here; `repair` may bring it back.
    """
    _expect_no_secrets(location)
    resolved = location if "://" in location else str(Path(location).resolve())
    if is_inside(registry, resolved):
        raise ReplicaError(location=location, reason="it is inside the registry", remedy="Choose another disk.")
    return look_again(lambda: _replicate(registry, location, resolved, originals, advance))


def _replicate(
    registry: Registry, location: str, resolved: str, originals: bool, advance: Callable[[int], object]
) -> Replicated:
    target, copied, copied_bytes, present = open_location(resolved), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder, _reaching(location):
        _claim(target, location, registry.identity())
        snapshot, wanted = _snapshot(registry, Path(folder), originals)
        for sha256, size_bytes in wanted.items():
            if target.has(sha256, size_bytes):
                present += 1
            else:
                target.put(sha256, registry.blobs.get(sha256))
                target.get(sha256)
                copied, copied_bytes = copied + 1, copied_bytes + size_bytes
            advance(1)
        target.put_database(snapshot)
    generators = _record(registry, resolved, wanted)
    return Replicated(resolved, copied, copied_bytes, present, generators)


def repair(registry: Registry, location: str, advance: Callable[[int], object]) -> list[str]:
    """Bring back blobs that are missing or damaged here and whole at the location; their digests.

    Raises:
        ReplicaError: the location cannot be read.
    """
    _expect_no_secrets(location)
    target, mended = open_location(location), []
    wanted, _ = blobs_to_copy(registry, originals=True)
    with _reaching(location):
        for sha256, size_bytes in wanted.items():
            if not registry.blobs.is_intact(sha256, size_bytes) and target.has(sha256, size_bytes):
                with suppress(IntegrityError):  # damaged there as well: the next may not be
                    registry.blobs.put_bytes(target.get(sha256))
                    mended.append(sha256)
            advance(1)
    return mended


def fetch_database(location: str, folder: Path) -> None:
    """Copy the database of a second copy into a folder of this machine.

    Raises:
        ReplicaError: there is none.
    """
    with _reaching(location):
        (folder / DATABASE_FILE).write_bytes(open_location(location).get_database())


def _claim(target: Location, location: str, identity: str) -> None:
    """A location has one registry's copy: the next one's database would replace it."""
    if target.owner() is None:
        target.put_owner(identity)
    found = target.owner()
    if found != identity:
        reason = f"it has a copy of registry {found[:80]}" if found else "it has a registry that is no copy of this one"
        remedy = f"Choose another place. If that one may go: write {identity} into {BLOBS_FOLDER}/{OWNER} there."
        raise ReplicaError(location=location, reason=reason, remedy=remedy)


@contextmanager
def _reaching(location: str) -> Iterator[None]:
    """What goes wrong at a location as an error that names it; behind a URL that may be anything."""
    try:
        yield
    except LoraregError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "://" not in location:
            raise
        reason = f"it cannot be used ({getattr(error, 'strerror', None) or error})"
        raise ReplicaError(location=location, reason=reason, remedy="What was copied stays.") from error


def is_inside(registry: Registry, location: str) -> bool:
    """Whether a copy there would lie in the registry's folder or store, or be its very blobs."""
    blobs, copy = _place(registry.blobs.place), _place(location)
    inside = any(f"{copy}/".startswith(f"{place}/") for place in (_place(str(registry.home)), blobs))
    return inside or f"{blobs}/".startswith(f"{copy}/{BLOBS_FOLDER}/")


def _place(location: str) -> str:
    """A path, or the URL of one, as the path that it leads to; another URL as it is."""
    protocol, is_url, rest = location.partition("://")
    if is_url and protocol not in ("file", "local"):
        return f"{protocol}://{rest.rstrip('/')}"
    return str(Path(rest if is_url else location).resolve())


def blobs_to_copy(registry: Registry, originals: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Blobs by digest with their sizes: those to copy, and those that are left out.

    Left out are older codes and generators, what was pruned, and originals of encoded adapters unless asked for.
    """
    with registry.reading() as connection:
        return _chosen(connection, originals)


def _chosen(connection: Connection, originals: bool) -> tuple[dict[str, int], dict[str, int]]:
    def fetch(sql: str) -> Iterator[Mapping[str, Any]]:
        return map(dict, connection.execute(text(sql)).mappings())

    wanted: dict[str, int] = {}
    for row in fetch("SELECT sha256, size_bytes FROM adapter_file"):
        wanted[row["sha256"]] = row["size_bytes"]
    for row in fetch("SELECT sha256, size_bytes FROM encoding WHERE superseded_at IS NULL"):
        wanted[row["sha256"]] = row["size_bytes"]
    in_use = "SELECT generator_id FROM encoding WHERE superseded_at IS NULL"
    for row in fetch(f"SELECT sha256, size_bytes FROM generator WHERE id IN ({in_use})"):
        wanted[row["sha256"]] = row["size_bytes"]
    coded = "SELECT adapter_id FROM encoding WHERE superseded_at IS NULL"
    needed = {row["sha256"] for row in fetch("SELECT sha256 FROM encoding WHERE superseded_at IS NULL")}
    needed |= {r["sha256"] for r in fetch(f"SELECT sha256 FROM adapter_file WHERE adapter_id NOT IN ({coded})")}
    pruned = {row["sha256"] for row in fetch("SELECT sha256 FROM retired_blob WHERE state <> 'quarantined'")}
    left_out = {
        row["sha256"]: row["size_bytes"]
        for row in fetch(f"SELECT sha256, size_bytes FROM adapter_file WHERE path = '{WEIGHTS_FILE}'")
        if row["sha256"] not in needed and (row["sha256"] in pruned or not originals)
    }
    return {sha256: size for sha256, size in wanted.items() if sha256 not in left_out}, left_out


def _snapshot(registry: Registry, folder: Path, originals: bool) -> tuple[Path, dict[str, int]]:
    """A copy of the database, in SQLite, in which what is not copied counts as gone, and the blobs it needs."""
    from lorareg.registry.copying import copy_rows
    from lorareg.registry.database import writing
    from lorareg.registry.migrate import migrate
    from lorareg.registry.sqlite import Sqlite

    backend = Sqlite(folder)
    migrate(backend)
    engine = backend.engine()
    try:
        with registry.reading() as connection, writing(engine, backend) as session:
            # Of one moment: a row that came later would mention a blob that nobody copied.
            wanted, left_out = _chosen(connection, originals)
            copy_rows(connection, session.connection())
            for name in (STORE, IDENTITY):  # the copy is another registry, whose blobs are in its own folder
                remembered = session.get(SettingRow, name)
                if remembered is not None:
                    session.delete(remembered)
            for sha256, size_bytes in left_out.items():
                row = session.get(RetiredBlobRow, sha256)
                if row is None:
                    row = RetiredBlobRow(
                        sha256=sha256, size_bytes=size_bytes, kind="original", proof="", retired_at=now()
                    )
                    session.add(row)
                row.state, row.deleted_at = "deleted", row.deleted_at or now()
    finally:
        engine.dispose()
    return backend.finished(), wanted


def _record(registry: Registry, location: str, copied: Mapping[str, int]) -> int:
    """Record the generators that have a copy there; how many."""
    with registry.writing() as session:
        numbers = [row["id"] for row in registry.fetch("SELECT id, sha256 FROM generator") if row["sha256"] in copied]
        for number in numbers:
            if session.get(GeneratorCopyRow, (number, location)) is None:
                session.add(GeneratorCopyRow(generator_id=number, location=location, created_at=now()))
        return len(numbers)


class _Folder:
    """A folder laid out as a registry."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = FolderBlobs(root / BLOBS_FOLDER)

    def has(self, sha256: str, size_bytes: int) -> bool:
        return sha256 in self.blobs and self.blobs.size(sha256) == size_bytes

    def get(self, sha256: str) -> bytes:
        return self.blobs.get(sha256)

    def put(self, sha256: str, data: bytes) -> None:
        self.blobs.put_bytes(data)

    def owner(self) -> str | None:
        is_there = any((self.root / name).exists() for name in (DATABASE_FILE, POSTGRES_FILE))
        return self.blobs.read_owner() or ("" if is_there else None)

    def put_owner(self, owner: str) -> None:
        self.blobs.put_owner(owner)

    def put_database(self, snapshot: Path) -> None:
        fresh = self.root / f".{DATABASE_FILE}.new"
        fresh.write_bytes(snapshot.read_bytes())
        sync_file(fresh)
        for leftover in (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm", HEAD_FILE):
            (self.root / leftover).unlink(missing_ok=True)  # of an older snapshot that somebody opened
        sync_folder(self.root)  # or after a power loss it is read into the new one
        fresh.replace(self.root / DATABASE_FILE)
        sync_folder(self.root)

    def get_database(self) -> bytes:
        return (self.root / DATABASE_FILE).read_bytes()


class _Remote:
    """Anything fsspec reaches, laid out the same way."""

    def __init__(self, files: Any, root: str) -> None:
        self.files, self.root = files, root.rstrip("/")

    @staticmethod
    def open(url: str) -> _Remote:
        protocol = url.partition("://")[0]
        try:
            import fsspec
            from fsspec.core import url_to_fs

            if protocol not in fsspec.available_protocols():
                raise ReplicaError(
                    location=url, reason=f"{protocol}:// is not known", remedy="Give a folder, or a URL such as s3://."
                )
            return _Remote(*url_to_fs(url))
        except ImportError as error:
            package = (error.name or {"s3": "s3fs"}.get(protocol) or "fsspec").partition(".")[0]
            raise MissingExtraError(feature=url, package=package, extra="remote") from error

    def has(self, sha256: str, size_bytes: int) -> bool:
        path = self._path(sha256)
        return bool(self.files.exists(path)) and self.files.size(path) == size_bytes

    def get(self, sha256: str) -> bytes:
        self.files.invalidate_cache()
        try:
            data = bytes(self.files.cat_file(self._path(sha256)))
        except FileNotFoundError as error:
            raise MissingBlobError(digest=sha256, store=self.root) from error
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise IntegrityError(what=f"Blob {sha256}", expected=sha256, found=found, remedy="Copy it again.")
        return data

    def put(self, sha256: str, data: bytes) -> None:
        self._write(self._path(sha256), data)

    def owner(self) -> str | None:
        self.files.invalidate_cache()
        if self.files.exists(self._mark()):
            return bytes(self.files.cat_file(self._mark())).decode(errors="replace").strip()
        return "" if self.files.exists(f"{self.root}/{DATABASE_FILE}") else None

    def put_owner(self, owner: str) -> None:
        self._write(self._mark(), f"{owner}\n".encode())

    def put_database(self, snapshot: Path) -> None:
        self._write(f"{self.root}/{DATABASE_FILE}", snapshot.read_bytes())

    def get_database(self) -> bytes:
        return bytes(self.files.cat_file(f"{self.root}/{DATABASE_FILE}"))

    def _write(self, path: str, data: bytes) -> None:
        if not OBJECT_STORES.intersection([self.files.protocol, *self.files.protocol]):
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, data)

    def _mark(self) -> str:
        return f"{self.root}/{BLOBS_FOLDER}/{OWNER}"

    def _path(self, sha256: str) -> str:
        return f"{self.root}/{BLOBS_FOLDER}/{sha256[:2]}/{sha256[2:]}"
