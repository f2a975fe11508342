"""Blobs in an object store (S3 and what speaks its protocol): objects `prefix/aa/bb...`, created and never changed.

A blob is created on the condition that there is none (If-None-Match), large ones in parts, and read back and hashed
before it counts, so before a row may mention it. Putting the same content twice is the same as once, which is what
makes every step safe to repeat: after a timeout, a reset or an answer that got lost. What was read lies in a folder on
this machine, under a bound on its bytes, and is hashed again whenever it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lorareg.registry.blobs import CHUNK_BYTES, OWNER, BlobStore, StagedBlob, StoredBlob, blob_name, is_digest
from lorareg.registry.errors import IntegrityError, MissingBlobError, MissingExtraError, StoreError

PART_BYTES = 16 << 20
TRIES = 6
PAGE = 1000
TIMEOUT_S = 60
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
Result = TypeVar("Result")

_process: int | None = None
"""The one that uses obstore."""


class ObjectBlobs(BlobStore):
    """Content-addressed objects below a URL; endpoint and credentials come from the variables AWS_..."""

    def __init__(self, url: str, local: Path, cache_bytes: int) -> None:
        """Open it; nothing is asked of the store yet.

        Args:
            url: s3://bucket/prefix.
            local: a folder on this machine, for what is on its way in and what was read.
            cache_bytes: how much of what was read is kept.

        Raises:
            MissingExtraError: obstore or tenacity is not installed.
            StoreError: it is no such URL.
        """
        super().__init__(url, local / "tmp")
        self.url, self._cache, self._cache_bytes = url, local / "read", cache_bytes
        self._open()

    def _open(self) -> None:
        """In one process alone: obstore's threads serve every request, and a fork does not take them along."""
        global _process
        if _process not in (None, os.getpid()):
            raise StoreError(
                store=self.url,
                reason="this process was forked from one that had used a store, whose threads did not come along",
                remedy="Start processes anew (multiprocessing: spawn), or fork before the first use.",
            )
        try:
            import obstore
            import obstore.store
            from tenacity import Retrying
        except ImportError as error:
            raise MissingExtraError(feature="A store at a URL", package="obstore", extra="s3") from error
        _process = os.getpid()
        self._api: Any = obstore
        self._retrying = Retrying
        endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if name in os.environ), None)
        options: Any = {
            "timeout": timedelta(seconds=TIMEOUT_S),
            "allow_http": bool(endpoint and endpoint.startswith("http:")),
        }
        retries: Any = {"max_retries": TRIES, "retry_timeout": timedelta(seconds=2 * TIMEOUT_S)}
        config: Any = {"endpoint": endpoint} if endpoint else {}
        try:
            self._store: Any = obstore.store.from_url(
                self.url, config=config, client_options=options, retry_config=retries
            )
        except Exception as error:  # obstore's own kinds and ValueError
            remedy = "Use s3://bucket/prefix, with AWS_REGION and credentials in the environment."
            raise StoreError(store=self.url, reason=_first_line(error), remedy=remedy) from error

    def __contains__(self, digest: str) -> bool:
        return self._head(digest) is not None

    def stored(self, digest: str) -> StoredBlob:
        found = self._head(digest)
        if found is None:
            raise MissingBlobError(digest=digest, store=self.url)
        return StoredBlob(digest, int(found["size"]), found["last_modified"].timestamp())

    def _listed(self) -> Iterator[StoredBlob]:
        page = self._page("")
        while page:
            for found in page:
                digest = found["path"].replace("/", "")
                if is_digest(digest):
                    yield StoredBlob(digest, found["size"], found["last_modified"].timestamp())
            page = self._page(page[-1]["path"])

    def read_owner(self) -> str | None:
        def read() -> str | None:
            try:
                return bytes(self._api.get(self._store, OWNER).bytes()).decode(errors="replace").strip()
            except FileNotFoundError:
                return None

        return self._asked(read)

    def put_owner(self, owner: str) -> None:
        def create() -> None:
            try:
                self._api.put(self._store, OWNER, f"{owner}\n".encode(), mode="create")
            except self._api.exceptions.AlreadyExistsError as error:
                if self.read_owner() is None:  # two came at once, and neither has it
                    raise self._api.exceptions.GenericError("two claim it at once") from error

        self._asked(create)

    def pieces(self, digest: str, *, lasting: bool = False) -> Iterator[bytes]:
        near = None if lasting or self.cold or not is_digest(digest) else _opened(self._cache / digest)
        if near is not None:
            with near:  # another process may make room meanwhile
                if _digest_of(near) == digest:
                    with suppress(OSError):
                        os.utime(near.name)
                    yield from _chunks(near)
                    return
        data = self._asked(lambda: self._get(digest))
        if not lasting:
            self._keep(digest, data)
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    def publish(self, blobs: Sequence[StagedBlob]) -> None:
        for blob in {blob.sha256: blob for blob in blobs if blob.is_new}.values():
            self._asked(lambda blob=blob: self._put(blob))  # type: ignore[misc]

    def _delete(self, digests: Iterable[str]) -> None:
        for digest in digests:
            name = blob_name(digest)
            with suppress(FileNotFoundError):
                self._asked(lambda name=name: self._api.delete(self._store, name))  # type: ignore[misc]
            (self._cache / digest).unlink(missing_ok=True)

    def _put(self, blob: StagedBlob) -> None:
        """Create an object and read it back; one that is there and damaged is replaced.

        Raises:
            IntegrityError: the store gives back other bytes.
        """
        name = blob_name(blob.sha256)
        mode = "create" if blob.size_bytes <= PART_BYTES else "overwrite"  # parts cannot be created on a condition
        try:
            self._api.put(self._store, name, blob.path, mode=mode, chunk_size=PART_BYTES)
        except self._api.exceptions.AlreadyExistsError:
            # By another, or by a try whose answer was lost; or it is only that two came at once, and it is not there.
            if self._stored_digest(name) == blob.sha256:
                return
            self._api.put(self._store, name, blob.path, chunk_size=PART_BYTES)
        except FileNotFoundError as error:
            if "NoSuchUpload" not in str(error):
                raise
            # Its parts were put together by a try whose answer was lost, or are gone.
            if self._stored_digest(name) != blob.sha256:
                raise self._api.exceptions.GenericError(_first_line(error)) from error
            return
        found = self._stored_digest(name)
        if found != blob.sha256:
            remedy = "Nothing was recorded. Run the same command again; if it stays so, the store cannot be trusted."
            raise IntegrityError(
                what=f"Blob {blob.sha256} as {self.url} has it", expected=blob.sha256, found=found, remedy=remedy
            )

    def _page(self, after: str) -> list[Any]:
        """The objects after a name; a request each, so that one that fails is asked again and nothing is left out."""

        def page() -> list[Any]:
            return list(next(self._api.list(self._store, offset=after or None, chunk_size=PAGE), []))

        return self._asked(page)

    def _stored_digest(self, name: str) -> str | None:
        digest = hashlib.sha256()
        try:
            for piece in self._api.get(self._store, name):
                digest.update(piece)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _get(self, digest: str) -> bytes:
        try:
            return bytes(self._api.get(self._store, blob_name(digest)).bytes())
        except FileNotFoundError as error:
            raise MissingBlobError(digest=digest, store=self.url) from error

    def _head(self, digest: str) -> Any:
        name = blob_name(digest)

        def head() -> Any:
            try:
                return self._api.head(self._store, name)
            except FileNotFoundError:
                return None

        return self._asked(head)

    def _keep(self, digest: str, data: bytes) -> None:
        """Remember what was read, if it is what it should be; a cache that cannot be written is none."""
        if len(data) > self._cache_bytes or hashlib.sha256(data).hexdigest() != digest:
            return
        with suppress(OSError):
            self._cache.mkdir(parents=True, exist_ok=True)
            fresh = self._cache / f".{digest}.{os.getpid()}-{os.urandom(4).hex()}.new"
            fresh.write_bytes(data)
            fresh.replace(self._cache / digest)
            self._make_room()

    def _make_room(self) -> None:
        kept = []
        for entry in os.scandir(self._cache):
            with suppress(FileNotFoundError):
                status = entry.stat()
                kept.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._cache_bytes:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _asked(self, question: Callable[[], Result]) -> Result:
        """Ask, again where nothing is known of the outcome: everything asked here may be asked twice.

        Raises:
            StoreError: the store refused, or does not answer.
        """
        from tenacity import retry_if_exception_type, stop_after_attempt, wait_random_exponential

        if _process != os.getpid():
            self._open()
        kinds = self._api.exceptions
        tries = self._retrying(
            retry=retry_if_exception_type(kinds.GenericError),
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            reraise=True,
        )
        try:
            return tries(question)
        except FileNotFoundError as error:
            remedy = "Make the bucket, or name another one in LORAREG_STORE."
            raise StoreError(store=self.url, reason="there is no such bucket", remedy=remedy) from error
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError) as error:
            remedy = "Check the credentials in the environment (AWS_ACCESS_KEY_ID, ...) and what they allow."
            raise StoreError(store=self.url, reason=_first_line(error), remedy=remedy) from error
        except kinds.BaseError as error:
            remedy = "Nothing was recorded. Check the network and AWS_ENDPOINT_URL, and run the same command again."
            raise StoreError(store=self.url, reason=_first_line(error), remedy=remedy) from error


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:
        return None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _digest_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    with suppress(OSError):
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    """What a store said, without what its library tells programmers."""
    return str(error).partition("\n")[0].strip().rstrip(":")[:300]
