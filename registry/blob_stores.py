"""Which store holds a registry's blobs: a folder in its own, another one, or an object store at a URL.

LORAREG_STORE says so when a registry is made. From then on the registry remembers it, so that the variable may be left
out and cannot lead to a store where the blobs are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lorareg.registry.blobs import BlobStore
from lorareg.registry.errors import BlobsElsewhereError, RegistryError, StoreError
from lorareg.registry.folder_blobs import FolderBlobs
from lorareg.registry.home import (
    BLOBS_FOLDER,
    READ_CACHE_BYTES,
    READ_CACHE_VARIABLE,
    STORE,
    STORE_VARIABLE,
)
from lorareg.registry.urls import may_have_secrets, without_secrets

if TYPE_CHECKING:
    from lorareg.registry.store import Registry


@dataclass(frozen=True, slots=True)
class Moved:
    """From where to where blobs were brought, and how many were not there."""

    before: str
    after: str
    copied: int
    copied_bytes: int
    may_go: bool  # the place before, when somebody has looked; not where it is another registry's


def asked_store() -> str | None:
    """The URL that LORAREG_STORE names, if it does, without a slash at its end.

    Raises:
        StoreError: there is no such kind of store.
    """
    url = (os.environ.get(STORE_VARIABLE) or "").rstrip("/")
    if not url:
        return None
    _expect_no_secrets(url)
    store_at(url, Path())
    return url


def open_blobs(home: Path, remembered: str | None, identity: str | None) -> BlobStore:
    """The store of the registry at `home`, which remembers that URL, or none, and that it is the one of this number.

    Raises:
        RegistryError: LORAREG_STORE names another one.
    """
    asked = asked_store()
    if asked is not None and asked != remembered:
        place = f"at {remembered}" if remembered else "in its folder"
        remedy = f"Unset {STORE_VARIABLE}, or move them with `lorareg migrate --store {asked}`."
        raise BlobsElsewhereError(home=home, reason=f"its blobs are {place}, not at {asked}", remedy=remedy)
    blobs = FolderBlobs(home / BLOBS_FOLDER) if remembered is None else store_at(remembered, home / BLOBS_FOLDER)
    blobs.remembered, blobs.owner = remembered, identity
    return blobs


def move_blobs(registry: Registry, url: str, reporter: Callable[[int], object]) -> Moved:
    """Bring a registry's blobs to another store, each read back there, and make the registry remember it.

    What is there already is left, so that a stopped move goes on. What was stored meanwhile is brought, and the other
    store remembered, in one transaction: until it is committed the registry goes on with the store it had, and after it
    nothing that a row mentions is missing. Nothing is taken from the store before: it can be deleted when somebody has
    looked.

    Args:
        registry: the registry; nobody else should be writing to it.
        url: s3://bucket/prefix, or file:///folder.
        reporter: called with 1 for each blob.

    Raises:
        IntegrityError: a blob is damaged; nothing is remembered.
        StoreError: the store refuses, lies within the one before, or has the blobs of another registry.
        RegistryError: somebody else moved them meanwhile.
    """
    _expect_no_secrets(url)
    url, identity = url.rstrip("/"), registry.identity()
    remembered = registry.setting(STORE)
    before = (
        FolderBlobs(registry.home / BLOBS_FOLDER)
        if remembered is None
        else store_at(remembered, registry.home / BLOBS_FOLDER)
    )
    after = store_at(url, registry.home / BLOBS_FOLDER)
    if _place(after) == _place(before):
        return Moved(before.place, before.place, 0, 0, may_go=False)
    if _place(after).startswith(f"{_place(before)}/"):
        remedy = "Name one beside it: whoever deletes the one before would delete both."
        raise StoreError(store=url, reason=f"it lies within {before.place}", remedy=remedy)
    after.owner = identity  # that before may be another's, which is a reason to move
    expect_free(after)
    after.expect_ours(claim=True)
    brought: dict[str, int | None] = {}  # bytes by digest; None for what was there

    def bring() -> None:
        for blob in before.listed():
            if blob.sha256 not in brought:
                reporter(1)
                is_there = after.is_intact(blob.sha256, blob.size_bytes)
                if not is_there:
                    after.put_bytes(before.get(blob.sha256))
                brought[blob.sha256] = None if is_there else blob.size_bytes

    bring()
    with registry.writing() as session:
        if registry.setting(STORE) != remembered:
            reason = f"its blobs were moved to {registry.setting(STORE)} meanwhile"
            raise RegistryError(home=registry.home, reason=reason, remedy="Nothing was changed; look where they are.")
        registry.remember_in(session, STORE, url)
        session.flush()
        bring()
    copied = [size_bytes for size_bytes in brought.values() if size_bytes is not None]
    may_go = remembered is None or before.read_owner() in (None, identity)
    return Moved(before.place, url, len(copied), sum(copied), may_go)


def expect_free(store: BlobStore) -> None:
    """A registry can have its blobs here: there are none, or its own, of a move that was stopped.

    Raises:
        ForeignStoreError: it is another registry's, or may be.
    """
    found = store.read_owner()
    if found is None and next(store.listed(), None) is not None:
        raise store.foreign("nothing, though there are blobs")
    if found is not None and found != store.owner:
        raise store.foreign(found)


def _place(store: BlobStore) -> str:
    return str(store.root.resolve()) if isinstance(store, FolderBlobs) else store.place


def _expect_no_secrets(url: str) -> None:
    """Raises StoreError where a URL has what would be kept in the registry, and printed."""
    if may_have_secrets(url):
        reason = "a user's name, password, query or fragment in its URL would be kept in the registry, and printed"
        remedy = "Leave it out; credentials come from the environment (AWS_ACCESS_KEY_ID, ...)."
        raise StoreError(store=without_secrets(url), reason=reason, remedy=remedy)


def store_at(url: str, local: Path) -> BlobStore:
    """The store at a URL; `local` is a folder of this machine for what is on its way.

    Raises:
        StoreError: there is no such kind of store.
        MissingExtraError: it needs packages that are not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FolderBlobs(Path(unquote(parts.path)))
    if parts.scheme != "s3" or not parts.netloc:
        raise StoreError(
            store=url, reason="there is no such kind of store", remedy="Use s3://bucket/prefix or file:///folder."
        )
    from lorareg.registry.object_blobs import ObjectBlobs

    return ObjectBlobs(url, local, int(os.environ.get(READ_CACHE_VARIABLE) or READ_CACHE_BYTES))
