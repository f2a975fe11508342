"""Blobs: bytes named by their SHA-256, read-only once there. What every blob store does, wherever it keeps them.

A blob appears whole or not at all, and lasts before a database row may mention it. Many blobs share one `staging`: they
are written to a folder on this machine and hashed on the way, so that what is staged can still be examined, and thrown
away, before it is published. Whatever is read is hashed again; a blob that is put again while its stored copy is
damaged is healed.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeGuard

from lorareg.registry.errors import ForeignStoreError, IntegrityError, InvalidAdapterError
from lorareg.registry.files import make_folder, open_regular

CHUNK_BYTES = 1 << 20
STALE_AFTER_S = 24 * 3600
OWNER = "lorareg-owner"
"""What a store at a URL has beside its blobs: the number of the registry whose they are."""

_HEX_DIGITS = frozenset("0123456789abcdef")
_DAMAGED_REMEDY = (
    "Restore it from a backup. A file of an adapter comes back when the adapter is ingested again, a code or generator "
    "with `lorareg compress` while the originals are kept."
)


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A blob on its way in, at `path` until it is published; `is_new` unless the store has it already, intact."""

    path: Path
    sha256: str
    size_bytes: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as the store lists it."""

    sha256: str
    size_bytes: int
    stored_at_s: float  # since the epoch


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
        self.store.publish(self.blobs)

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
        blob = StagedBlob(path, sha256, size_bytes, not self.store.is_intact(sha256, size_bytes))
        self.blobs.append(blob)
        return blob


class BlobStore(ABC):
    """Content-addressed bytes. Opening a store writes nothing."""

    def __init__(self, place: str, tmp: Path) -> None:
        """Where it is, in words for people, and a folder on this machine for what is on its way in."""
        self.place, self.tmp = place, tmp
        self.remembered: str | None = None
        """What the registry whose store this is remembered of it when it was opened."""
        self.owner: str | None = None
        """The number of that registry; None for a folder within a registry's own, which is nobody else's."""
        self.cold = False
        """Whether blobs are read from where they last, past what the system has of them nearer."""
        self._prepared = False

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Stage blobs; those not published when the block ends are dropped."""
        if not self._prepared:
            self.prepare()
            self.expect_ours(claim=True)
            self._prepared = True
        staging = Staging(self)
        try:
            yield staging
        finally:
            for blob in staging.blobs:
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
        data = b"".join(self.pieces(digest))
        self._compare(digest, hashlib.sha256(data).hexdigest())
        return data

    def verify(self, digest: str) -> int:
        """Hash a blob in chunks, from where it lasts; return its size in bytes.

        Raises:
            MissingBlobError: there is no such blob.
            IntegrityError: its bytes do not hash to `digest`.
        """
        found, size_bytes = hashlib.sha256(), 0
        for piece in self.pieces(digest, lasting=True):
            found.update(piece)
            size_bytes += len(piece)
        self._compare(digest, found.hexdigest())
        return size_bytes

    def copy_to(self, digest: str, destination: Path) -> int:
        """Copy a blob to a new file, verified while it is copied; return its size in bytes.

        Raises:
            MissingBlobError: there is no such blob.
            IntegrityError: its bytes do not hash to `digest`; the copy is removed.
        """
        found, size_bytes, pieces = hashlib.sha256(), 0, self.pieces(digest)
        first = next(pieces, b"")
        with open(destination, "xb") as target:
            while first:
                found.update(first)
                size_bytes += len(first)
                target.write(first)
                first = next(pieces, b"")
        try:
            self._compare(digest, found.hexdigest())
        except IntegrityError:
            destination.unlink()
            raise
        return size_bytes

    def is_intact(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here with that size and its bytes hash to its digest."""
        try:
            return self.size(digest) == size_bytes and self.verify(digest) == size_bytes
        except IntegrityError:
            return False

    def expect_ours(self, *, claim: bool = False) -> None:
        """Nobody else's registry has its blobs here: of two, each would delete the other's as nobody's.

        Asked before blobs are stored, listed or deleted. Reading one asks nothing, since its bytes are held to its
        digest.

        Args:
            claim: make the store this registry's if it is nobody's yet.

        Raises:
            ForeignStoreError: it is another's.
        """
        if self.owner is None:
            return
        found = self.read_owner()
        if found is None and claim:
            self.put_owner(self.owner)
            found = self.read_owner()
        if found is not None and found != self.owner:
            raise self.foreign(found)

    def foreign(self, found: str) -> ForeignStoreError:
        """What to say where the mark says `found`."""
        mark, remedy = f"{self.place}/{OWNER}", "Choose another prefix or folder."
        if self.owner is not None:
            remedy += f" Should the other registry be no more, and this one stand in for it: write {self.owner} there."
        return ForeignStoreError(store=self.place, mark=mark, found=found[:80], remedy=remedy)

    def listed(self) -> Iterator[StoredBlob]:
        """Every blob in the store, by digest.

        Raises:
            ForeignStoreError: they are another registry's.
        """
        self.expect_ours()
        yield from self._listed()

    def delete(self, digests: Iterable[str]) -> None:
        """Take blobs away for good, each before the next digest is asked for; those not there are no matter.

        Only `sweep` may.

        Raises:
            ForeignStoreError: they are another registry's.
        """
        self.expect_ours(claim=True)
        self._delete(digests)

    def __iter__(self) -> Iterator[str]:
        """Every digest in the store, in order."""
        return (blob.sha256 for blob in self.listed())

    @abstractmethod
    def __contains__(self, digest: str) -> bool:
        """Whether there is such a blob, whatever is in it."""

    def size(self, digest: str) -> int:
        """Size of a blob in bytes, without reading it.

        Raises:
            MissingBlobError: there is no such blob.
        """
        return self.stored(digest).size_bytes

    @abstractmethod
    def stored(self, digest: str) -> StoredBlob:
        """A blob as `listed` has it.

        Raises:
            MissingBlobError: there is no such blob.
        """

    @abstractmethod
    def read_owner(self) -> str | None:
        """The number of the registry whose store it is, if it is one's."""

    @abstractmethod
    def put_owner(self, owner: str) -> None:
        """Make it that registry's, unless it is one's already."""

    @abstractmethod
    def _listed(self) -> Iterator[StoredBlob]:
        """As `listed`, whoever's they are."""

    @abstractmethod
    def pieces(self, digest: str, *, lasting: bool = False) -> Iterator[bytes]:
        """A blob's bytes, not verified, none of them empty; `lasting` is from where they last, not a copy nearer.

        Raises:
            MissingBlobError: there is no such blob.
        """

    @abstractmethod
    def publish(self, blobs: Sequence[StagedBlob]) -> None:
        """Make staged blobs last under their digests."""

    @abstractmethod
    def _delete(self, digests: Iterable[str]) -> None:
        """As `delete`, whoever's they are."""

    def prepare(self) -> None:
        """Once a process, before anything is staged: make room, and clear what crashed writers left behind."""
        make_folder(self.tmp)
        oldest_kept = time.time() - STALE_AFTER_S
        for path in self.tmp.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_kept:
                    path.unlink()

    def _compare(self, expected: str, found: str) -> None:
        if found != expected:
            raise IntegrityError(what=f"Blob {expected}", expected=expected, found=found, remedy=_DAMAGED_REMEDY)


def blob_name(digest: str, separator: str = "/") -> str:
    """What a blob is called below the root of a store: `aa/bb...`.

    Raises:
        IntegrityError: it is no digest.
    """
    if not is_digest(digest):
        raise IntegrityError(
            what="A blob's digest", expected="64 hex digits", found=repr(digest)[:80], remedy=_DAMAGED_REMEDY
        )
    return f"{digest[:2]}{separator}{digest[2:]}"


def is_digest(text: object, chars: int = 64) -> TypeGuard[str]:
    """Whether it is text of so many lower-case hex digits."""
    return isinstance(text, str) and len(text) == chars and _HEX_DIGITS.issuperset(text)
