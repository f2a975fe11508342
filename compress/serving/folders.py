"""Adapters in folders that engines read from, each named by the digest of what is in it.

    decode --> the engine's form --> digest over config and weights --> temporary folder --> rename to INTO/DIGEST

Engines go back to a path after they let an adapter go, and keep what they computed under it: so what is at a path never
changes and is never deleted here, and other content has another path. A folder is there whole or not at all, whoever
else is writing it. Only what engines read is in it, config and weights, so that a new certificate in a card is no
reason to load an adapter again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorareg.compress.materialize import restore, write_file
from lorareg.compress.serving.adapt import Adapted
from lorareg.registry.errors import IntegrityError
from lorareg.registry.files import make_folder, sync_folder
from lorareg.registry.home import SERVING_FOLDER
from lorareg.registry.lookup import Lookup
from lorareg.registry.meanwhile import look_again
from lorareg.registry.types import CONFIG_FILE, WEIGHTS_FILE, Adapter, canonical_json, sha256_hex

STALE_AFTER_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Served:
    """A folder that an engine can load."""

    adapter: Adapter
    path: Path  # absolute
    digest: str
    adapted: Adapted
    is_new: bool  # whether it was written now


def serving_folder(home: Path, profile: str) -> Path:
    """Where the folders for an engine are, unless somebody says otherwise."""
    return home / SERVING_FOLDER / profile


def serve(lookup: Lookup, adapter: Adapter, profile: str, into: Path) -> Served:
    """A folder below `into` with the adapter in the form of an engine; one that is there already is read, not written.

    Raises:
        ProfileError: the engine cannot compute what the adapter does.
        IntegrityError: stored bytes are damaged, or the folder holds something else than its name says.
    """
    config = lookup.read_file(adapter, CONFIG_FILE)
    form = look_again(lambda: restore(lookup, adapter, lookup.encoding(adapter.id), config, profile))
    assert form.adapted is not None, "profiles of engines adapt"
    files = {CONFIG_FILE: form.config, WEIGHTS_FILE: form.weights}
    digest = sha256_hex(canonical_json({name: sha256_hex(data) for name, data in files.items()}).encode())
    path = into.absolute() / digest
    is_new = not path.exists() and _put(path, files)
    if not is_new:
        _expect(path, files)
    return Served(adapter, path, digest, form.adapted, is_new)


def _put(path: Path, files: Mapping[str, bytes]) -> bool:
    """Write a folder; False if another process was first, whose folder then stays."""
    make_folder(path.parent)
    _drop_stale(path.parent)
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(8).hex()}.new")
    fresh.mkdir()
    try:
        for name, data in files.items():
            write_file(fresh / name, data)
        sync_folder(fresh)
        try:
            fresh.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            return False
        sync_folder(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _drop_stale(into: Path) -> None:
    """Remove what processes that were killed a day ago left half written: no engine was ever told of it."""
    for left in into.glob(".*.new"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)


def _expect(path: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        try:
            found = sha256_hex((path / name).read_bytes())
        except OSError as error:
            found = f"none ({error.strerror})"
        if found != sha256_hex(data):
            raise IntegrityError(
                what=f"File {path / name}",
                expected=f"sha256 {sha256_hex(data)}",
                found=found,
                remedy="Delete its folder once no engine has it loaded; it is then written anew.",
            )
