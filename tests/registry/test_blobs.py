from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from lorareg.registry import blobs as blobs_module
from lorareg.registry import folder_blobs
from lorareg.registry.blobs import STALE_AFTER_S
from lorareg.registry.errors import IntegrityError, InvalidAdapterError, MissingBlobError
from lorareg.registry.folder_blobs import FolderBlobs
from lorareg.registry.types import sha256_hex

ABSENT = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_put_and_get(store: FolderBlobs, tmp_path: Path) -> None:
    digest = store.put_bytes(b"some bytes")
    assert digest == sha256_hex(b"some bytes")
    assert store.get(digest) == b"some bytes"
    assert store.size(digest) == 10
    assert digest in store
    assert list(store) == [digest]
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    digest, size_bytes = store.put_file(source)
    assert (digest, size_bytes) == (sha256_hex(b"x" * 3_000_000), 3_000_000)
    assert store.verify(digest) == 3_000_000
    assert store.copy_to(digest, tmp_path / "copy") == 3_000_000
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert not list(store.tmp.iterdir())


def test_putting_again_keeps_one_blob(store: FolderBlobs) -> None:
    assert store.put_bytes(b"") == store.put_bytes(b"")
    assert len(list(store)) == 1


def test_a_store_that_was_never_written_is_empty(store: FolderBlobs) -> None:
    assert list(store) == []
    assert ABSENT not in store
    assert not store.root.exists()


def test_a_missing_blob_is_named(store: FolderBlobs, tmp_path: Path) -> None:
    for ask in (store.get, store.size, store.verify, lambda digest: store.copy_to(digest, tmp_path / "x")):
        with pytest.raises(MissingBlobError, match=ABSENT):
            ask(ABSENT)


def test_a_flipped_bit_is_caught_on_every_way_out(store: FolderBlobs, tmp_path: Path) -> None:
    digest = store.put_bytes(b"some bytes")
    damage(store.path(digest))
    for ask in (store.get, store.verify, lambda digest: store.copy_to(digest, tmp_path / "x")):
        with pytest.raises(IntegrityError, match=f"expected {digest}"):
            ask(digest)
    assert not (tmp_path / "x").exists()


def test_putting_a_damaged_blob_again_heals_it(store: FolderBlobs) -> None:
    digest = store.put_bytes(b"some bytes")
    damage(store.path(digest))
    store.put_bytes(b"some bytes")
    assert store.get(digest) == b"some bytes"


@pytest.mark.parametrize("digest", ["", "../../../etc/passwd", "A" * 64, "0" * 63])
def test_what_is_not_a_digest_is_refused(store: FolderBlobs, digest: str) -> None:
    with pytest.raises(IntegrityError, match="expected 64 hex digits"):
        store.get(digest)


def test_links_fifos_folders_and_growing_files_are_refused(store: FolderBlobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("link", "symbolic link"), ("fifo", "not a regular"), (".", "not a regular"), ("no", "read")):
        with pytest.raises(InvalidAdapterError, match=reason):
            store.put_file(tmp_path / name)
    with store.staging() as staging, pytest.raises(InvalidAdapterError, match="more than the 4 allowed"):
        staging.add_file(tmp_path / "file", max_bytes=4)
    assert list(store) == []


def test_a_file_that_grows_past_its_cap_is_refused(
    store: FolderBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(blobs_module, "open_regular", lambda path, max_bytes: path.open("rb"))
    with store.staging() as staging, pytest.raises(InvalidAdapterError, match="it grew"):
        staging.add_file(tmp_path / "file", max_bytes=4)
    assert not list(store.tmp.iterdir())


def test_what_is_staged_but_not_published_is_dropped(store: FolderBlobs) -> None:
    with store.staging() as staging:
        blob = staging.add_bytes(b"never mind")
        assert blob.path.read_bytes() == b"never mind"
    assert list(store) == []
    assert not list(store.tmp.iterdir())


def test_a_crash_leaves_a_temporary_file_that_a_later_day_removes(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put_bytes(b"some bytes")
    monkeypatch.undo()
    assert list(store) == []
    left, young = store.tmp / "left-behind", store.tmp / "young"
    for path in (left, young):
        path.write_bytes(b"half")
    old = time.time() - STALE_AFTER_S - 60
    os.utime(left, (old, old))
    FolderBlobs(store.root).put_bytes(b"other")
    assert [path.name for path in store.tmp.iterdir()] == ["young"]


def test_the_blob_is_on_disk_before_its_name_and_its_name_before_publish_returns(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = {"file": folder_blobs.sync_file, "folder": folder_blobs.sync_folder}
    store.put_bytes(b"warm up")
    replace = os.replace
    monkeypatch.setattr(folder_blobs, "sync_file", lambda path: (done.append("file"), real["file"](path)))
    monkeypatch.setattr(folder_blobs, "sync_folder", lambda path: (done.append("folder"), real["folder"](path)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    store.put_bytes(b"some bytes")
    assert done == ["file", "rename", "folder"]
