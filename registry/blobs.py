"""The blob store: files named by the SHA-256 of what they hold, `root/aa/bb...`, read-only once there.

A blob appears whole or not at all: it is written under `root/tmp`, hashed on the way, flushed,
renamed, and its folder flushed, before a database row may mention it. Many blobs share one
`staging`, so that what is staged can still be examined, and thrown away, before it is published.
Whatever is read is hashed again; a blob that is put again while its stored copy is damaged is healed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lorareg.registry.errors import IntegrityError, InvalidAdapterError, MissingBlobError
from lorareg.registry.files import open_regular, sync_all, sync_file, sync_folder

CHUNK_BYTES = 1 << 20
STALE_AFTER_S = 24 * 3600
_HEX_DIGITS = frozenset("0123456789abcdef")
_DAMAGED_REMEDY = (
    "Restore it from a backup. A file of an adapter comes back when the adapter is ingested again, a code or generator "
    "with `lorareg compress` while the originals are kept."
)


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A blob on its way in; `is_new` unless the store has it already, intact, which is then where `path` is."""

    path: Path
    sha256: str
    size_bytes: int
    is_new: bool


@dataclass(slots=True)
class Staging:
    """Blobs on their way in. `publish` makes all of them last; leaving without it drops them."""

    store: BlobStore
    blobs: list[StagedBlob] = field(default_factory=list)

    def add_bytes(self, data: bytes) -> StagedBlob:
        """Stage `data`."""
        with self._temporary() as (path, target):
            target.write(data)
        return self._staged(path, hashlib.sha256(data).hexdigest(), len(data))

    def add_file(self, source: Path, max_bytes: int | None = None) -> StagedBlob:
        """Stage a copy of a regular file: the bytes hashed are the bytes kept, whatever happens to `source`.

        Raises:
            InvalidAdapterError: `source` is a link, not a regular file, unreadable, or over `max_bytes`.
        """
        digest, size_bytes = hashlib.sha256(), 0
        with open_regular(source, max_bytes) as file, self._temporary() as (path, target):
            while chunk := file.read(CHUNK_BYTES):
                size_bytes += len(chunk)
                if max_bytes is not None and size_bytes > max_bytes:
                    raise InvalidAdapterError(
                        path=source, reason="it grew while it was read", remedy="Ingest it when it is finished."
                    )
                digest.update(chunk)
                target.write(chunk)
        return self._staged(path, digest.hexdigest(), size_bytes)

    def publish(self) -> None:
        """Make every staged blob last under its digest; only then may the database mention them."""
        new = [blob for blob in self.blobs if blob.is_new]
        sync_all(sync_file, {blob.path for blob in new})
        for blob in new:
            os.replace(blob.path, self.store.path(blob.sha256))
        # Also for blobs that were there: who renamed them may not have come to this line yet.
        sync_all(sync_folder, {self.store.path(blob.sha256).parent for blob in self.blobs})
        self.blobs.clear()

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file in the store's tmp folder, closed and read-only afterwards, gone after an error."""
        path = self.store.tmp / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            with open(path, "xb") as target:
                yield path, target
                os.fchmod(target.fileno(), 0o444)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _staged(self, path: Path, sha256: str, size_bytes: int) -> StagedBlob:
        if self.store.is_intact(sha256, size_bytes):
            path.unlink()
            blob = StagedBlob(self.store.path(sha256), sha256, size_bytes, False)
        else:
            blob = StagedBlob(path, sha256, size_bytes, True)
        self.blobs.append(blob)
        return blob


class BlobStore:
    """Content-addressed files under `root`. Opening it writes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp"
        self.cold = False
        """Whether blobs are read from the disk, past what the system has of them in memory."""
        self._prepared = False

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Stage blobs; those not published when the block ends are dropped."""
        self._prepare()
        staging = Staging(self)
        try:
            yield staging
        finally:
            for blob in staging.blobs:
                if blob.is_new:
                    blob.path.unlink(missing_ok=True)

    def put_bytes(self, data: bytes) -> str:
        """Store `data`; return its digest."""
        with self.staging() as staging:
            blob = staging.add_bytes(data)
            staging.publish()
        return blob.sha256

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a copy of the file at `path`; return its digest and size in bytes.

        Raises:
            InvalidAdapterError: it is a link, not a regular file, or unreadable.
        """
        with self.staging() as staging:
            blob = staging.add_file(path)
            staging.publish()
        return blob.sha256, blob.size_bytes

    def get(self, digest: str) -> bytes:
        """Read a blob and verify it.

        Raises:
            MissingBlobError: there is no such blob.
            IntegrityError: its bytes do not hash to `digest`.
        """
        with self._open(digest) as file:
            data = file.read()
        self._compare(digest, hashlib.sha256(data).hexdigest())
        return data

    def verify(self, digest: str) -> int:
        """Hash a blob in chunks; return its size in bytes.

        Raises:
            MissingBlobError: there is no such blob.
            IntegrityError: its bytes do not hash to `digest`.
        """
        found, size_bytes = hashlib.sha256(), 0
        with self._open(digest) as file:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
                size_bytes += len(chunk)
        self._compare(digest, found.hexdigest())
        return size_bytes

    def copy_to(self, digest: str, destination: Path) -> int:
        """Copy a blob to a new file, verified while it is copied; return its size in bytes.

        Raises:
            MissingBlobError: there is no such blob.
            IntegrityError: its bytes do not hash to `digest`; the copy is removed.
        """
        found, size_bytes = hashlib.sha256(), 0
        with self._open(digest) as file, open(destination, "xb") as target:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
                size_bytes += len(chunk)
                target.write(chunk)
        try:
            self._compare(digest, found.hexdigest())
        except IntegrityError:
            destination.unlink()
            raise
        return size_bytes

    def size(self, digest: str) -> int:
        """Size of a blob in bytes, without reading it.

        Raises:
            MissingBlobError: there is no such blob.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise MissingBlobError(digest=digest, store=self.root) from error

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be. Read it through `get`, which verifies."""
        if len(digest) != 64 or not _HEX_DIGITS.issuperset(digest):
            raise IntegrityError(
                what="A blob's digest", expected="64 hex digits", found=repr(digest[:80]), remedy=_DAMAGED_REMEDY
            )
        return self.root / digest[:2] / digest[2:]

    def is_intact(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here with that size and its bytes hash to its digest."""
        try:
            return self.size(digest) == size_bytes and self.verify(digest) == size_bytes
        except IntegrityError:
            return False

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def __iter__(self) -> Iterator[str]:
        """Every digest in the store, in order."""
        with suppress(FileNotFoundError):
            for folder in sorted(os.listdir(self.root)):
                if len(folder) == 2 and _HEX_DIGITS.issuperset(folder):
                    yield from (folder + rest for rest in sorted(os.listdir(self.root / folder)))

    def _open(self, digest: str) -> BinaryIO:
        try:
            file = open(self.path(digest), "rb")  # noqa: SIM115, closed by who reads it
        except FileNotFoundError as error:
            raise MissingBlobError(digest=digest, store=self.root) from error
        if self.cold and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file

    def _compare(self, expected: str, found: str) -> None:
        if found != expected:
            raise IntegrityError(what=f"Blob {expected}", expected=expected, found=found, remedy=_DAMAGED_REMEDY)

    def _prepare(self) -> None:
        """Once a process: make the folders, and clear what crashed writers left behind."""
        if self._prepared:
            return
        self.tmp.mkdir(parents=True, exist_ok=True)
        present = set(os.listdir(self.root))
        for name in (f"{number:02x}" for number in range(256)):
            if name not in present:
                (self.root / name).mkdir(exist_ok=True)
        sync_folder(self.root)
        sync_folder(self.root.parent)
        oldest_kept = time.time() - STALE_AFTER_S
        for path in self.tmp.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_kept:
                    path.unlink()
        self._prepared = True
