"""What happens to a blob past lorareg, in whichever store it is."""

from __future__ import annotations

from typing import Any

from lorareg.registry.blobs import BlobStore
from lorareg.registry.folder_blobs import FolderBlobs


def overwrite(store: BlobStore, digest: str, data: bytes) -> None:
    """Other bytes under its name, as rot would put them there."""
    if isinstance(store, FolderBlobs):
        path = store.path(digest)
        path.chmod(0o644)
        path.write_bytes(data)
    else:
        objects: Any = store
        objects._api.put(objects._store, f"{digest[:2]}/{digest[2:]}", data)


def lose(store: BlobStore, digest: str) -> None:
    """It is gone."""
    if isinstance(store, FolderBlobs):
        store.path(digest).unlink()
    else:
        objects: Any = store
        objects._api.delete(objects._store, f"{digest[:2]}/{digest[2:]}")
