"""Blobs in a folder: files `root/aa/bb...`, flushed, renamed into their place, and their folder flushed after that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lorareg.registry.blobs import CHUNK_BYTES, OWNER, BlobStore, StagedBlob, StoredBlob, blob_name, is_digest
from lorareg.registry.errors import MissingBlobError
from lorareg.registry.files import make_folder, sync_all, sync_file, sync_folder


class FolderBlobs(BlobStore):
    """Content-addressed files under `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), root / "tmp")
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be. Read it through `get`, which verifies."""
        return self.root / blob_name(digest)

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def stored(self, digest: str) -> StoredBlob:
        try:
            status = self.path(digest).stat()
        except FileNotFoundError as error:
            raise MissingBlobError(digest=digest, store=self.root) from error
        return StoredBlob(digest, status.st_size, status.st_mtime)

    def _listed(self) -> Iterator[StoredBlob]:
        with suppress(FileNotFoundError):
            for folder in sorted(os.listdir(self.root)):
                if is_digest(folder, 2):
                    for rest in sorted(os.listdir(self.root / folder)):
                        with suppress(FileNotFoundError):
                            status = (self.root / folder / rest).stat()
                            yield StoredBlob(folder + rest, status.st_size, status.st_mtime)

    def read_owner(self) -> str | None:
        try:
            return (self.root / OWNER).read_text(errors="replace").strip()
        except FileNotFoundError:
            return None

    def put_owner(self, owner: str) -> None:
        path = self.root / OWNER
        self.tmp.mkdir(parents=True, exist_ok=True)
        fresh = self.tmp / f"{OWNER}.{os.urandom(8).hex()}"
        fresh.write_text(f"{owner}\n")
        sync_file(fresh)
        try:
            os.link(fresh, path)  # whole or not at all, and never over another's
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(self.root)

    def pieces(self, digest: str, *, lasting: bool = False) -> Iterator[bytes]:
        try:
            file = open(self.path(digest), "rb")  # noqa: SIM115, the block below closes it
        except FileNotFoundError as error:
            raise MissingBlobError(digest=digest, store=self.root) from error
        with file:
            if self.cold and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def publish(self, blobs: Sequence[StagedBlob]) -> None:
        new = list({blob.sha256: blob for blob in blobs if blob.is_new}.values())
        sync_all(sync_file, {blob.path for blob in new})
        for blob in new:
            os.replace(blob.path, self.path(blob.sha256))
        # Also for blobs that were there: who renamed them may not have come to this line yet.
        sync_all(sync_folder, {self.path(blob.sha256).parent for blob in blobs})

    def _delete(self, digests: Iterable[str]) -> None:
        folders = set()
        try:
            for path in map(self.path, digests):
                path.unlink(missing_ok=True)
                folders.add(path.parent)
        finally:
            for folder in sorted(folders):
                if folder.is_dir():
                    sync_folder(folder)

    def prepare(self) -> None:
        make_folder(self.root)
        super().prepare()
        present = set(os.listdir(self.root))
        for name in (f"{number:02x}" for number in range(256)):
            if name not in present:
                (self.root / name).mkdir(exist_ok=True)
        sync_folder(self.root)
