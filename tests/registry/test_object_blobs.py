"""Blobs in an object store, through a real server of its protocol: what goes wrong on the way loses nothing."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from forks import in_a_fork

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, a server of the S3 protocol, is not installed")

from lorareg.registry import object_blobs
from lorareg.registry.errors import IntegrityError, MissingBlobError, RegistryError, StoreError
from lorareg.registry.home import STORE
from lorareg.registry.object_blobs import ObjectBlobs
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, find_orphans
from lorareg.registry.types import WEIGHTS_FILE, sha256_hex

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # moto's
ABSENT = "0" * 64


@pytest.fixture
def store(url: str, tmp_path: Path) -> ObjectBlobs:
    return ObjectBlobs(url, tmp_path / "local", 1000)


def raw(store: ObjectBlobs, digest: str, data: bytes) -> None:
    """Put other bytes under a digest, as rot would."""
    store._api.put(store._store, f"{digest[:2]}/{digest[2:]}", data)


def test_put_and_get(store: ObjectBlobs, tmp_path: Path) -> None:
    digest = store.put_bytes(b"some bytes")
    assert digest == sha256_hex(b"some bytes")
    assert (store.get(digest), store.size(digest), digest in store) == (b"some bytes", 10, True)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    digest, size_bytes = store.put_file(source)
    assert store.verify(digest) == size_bytes == 3_000_000
    assert store.copy_to(digest, tmp_path / "copy") == 3_000_000
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert not list(store.tmp.iterdir())
    assert sorted(store) == sorted([digest, sha256_hex(b"some bytes")])


def test_large_blobs_go_in_parts(store: ObjectBlobs, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_blobs, "PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (48 << 10)
    digest = store.put_bytes(data)
    assert store.get(digest) == data
    assert [method for method, path in faults.seen if "partNumber" in path] == ["PUT"] * 3
    faults.waiting.append(("PUT", "reset"))
    assert store.put_bytes(data[:-1]) == sha256_hex(data[:-1])
    assert store.get(sha256_hex(data[:-1])) == data[:-1]


def test_parts_that_were_put_together_unheard(store: ObjectBlobs, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer to that is lost; what cleans up after it finds no parts."""
    monkeypatch.setattr(object_blobs, "PART_BYTES", 5 << 20)
    data = bytes((5 << 20) + 1)
    faults.waiting += [("POST", ""), *[("POST", "lost answer")] * 7]
    assert store.get(store.put_bytes(data)) == data
    assert faults.waiting == []


def test_what_is_not_there(store: ObjectBlobs, tmp_path: Path) -> None:
    assert ABSENT not in store
    assert list(store) == []
    for ask in (store.get, store.size, store.verify, lambda digest: store.copy_to(digest, tmp_path / "x")):
        with pytest.raises(MissingBlobError, match=ABSENT):
            ask(ABSENT)
    assert not (tmp_path / "x").exists()
    store.delete([ABSENT])
    for bad in ("../../x", "A" * 64, ""):
        with pytest.raises(IntegrityError, match="64 hex digits"):
            store.get(bad)


def test_listing_is_paged(store: ObjectBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = sorted(store.put_bytes(bytes([number])) for number in range(7))
    monkeypatch.setattr(object_blobs, "PAGE", 3)
    assert list(store) == digests
    assert [blob.size_bytes for blob in store.listed()] == [1] * 7
    store.delete(digests[:2])
    assert list(store) == digests[2:]


def test_rot_is_found_and_healed(store: ObjectBlobs) -> None:
    digest = store.put_bytes(b"some bytes")
    raw(store, digest, b"some bytez")
    with pytest.raises(IntegrityError, match=digest):
        store.get(digest)
    assert not store.is_intact(digest, 10)


def test_what_lasts_is_judged_not_a_copy_nearer(store: ObjectBlobs) -> None:
    digest = store.put_bytes(b"some bytes")
    store.get(digest)
    raw(store, digest, b"some bytez")
    with pytest.raises(IntegrityError, match=digest):
        store.verify(digest)
    assert not store.is_intact(digest, 10)
    assert store.put_bytes(b"some bytes") == digest
    assert store.get(digest) == b"some bytes"


def test_the_cache_is_bounded_and_never_believed(store: ObjectBlobs, faults: Any) -> None:
    digests = [store.put_bytes(bytes([number]) * 400) for number in range(4)]
    for digest in digests:
        store.get(digest)
    near = store._cache
    assert sum(path.stat().st_size for path in near.iterdir()) <= 1000
    faults.seen.clear()
    store.get(digests[3])
    assert faults.seen == []
    (near / digests[3]).write_bytes(b"rotten")
    assert store.get(digests[3]) == b"\3" * 400
    assert len(faults.seen) == 1
    store.cold = True
    store.get(digests[3])
    assert len(faults.seen) == 2
    shutil.rmtree(near)
    near.write_bytes(b"in the way")  # a cache that cannot be written is none
    assert store.get(digests[0]) == b"\0" * 400


@pytest.mark.parametrize("fault", ["reset", "500", "503", "lost answer"])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_what_passes_is_tried_again(store: ObjectBlobs, faults: Any, method: str, fault: str) -> None:
    faults.waiting += [(method, fault)] * 2
    digest = store.put_bytes(b"some bytes")
    assert store.get(digest) == b"some bytes"
    assert list(store) == [digest]
    assert faults.happened == [(method, fault)] * 2


@pytest.mark.parametrize("fault", ["409", "412"])
def test_a_conflict_that_leaves_nothing(store: ObjectBlobs, faults: Any, fault: str) -> None:
    """S3 says so when two write at once, and asks to do it again."""
    faults.waiting += [("PUT", fault)]
    assert store.get(store.put_bytes(b"some bytes")) == b"some bytes"
    assert faults.happened == [("PUT", fault)]


def test_wrong_bytes_are_never_believed(store: ObjectBlobs, faults: Any) -> None:
    faults.waiting.append(("GET", "wrong bytes"))
    with pytest.raises(IntegrityError, match="as s3://bucket"):
        store.put_bytes(b"some bytes")
    digest = store.put_bytes(b"some bytes")
    store.cold = True
    faults.waiting.append(("GET", "wrong bytes"))
    with pytest.raises(IntegrityError, match=digest):
        store.get(digest)
    assert store.get(digest) == b"some bytes"


def test_a_body_that_breaks_off(store: ObjectBlobs, faults: Any) -> None:
    digest = store.put_bytes(b"some bytes" * 100_000)
    faults.waiting.append(("GET", "short body"))
    assert store.get(digest) == b"some bytes" * 100_000


def test_another_writer_at_the_same_time(store: ObjectBlobs, url: str, tmp_path: Path) -> None:
    other = ObjectBlobs(url, tmp_path / "other", 0)
    with store.staging() as staging, other.staging() as theirs:
        digest = staging.add_bytes(b"some bytes").sha256
        theirs.add_bytes(b"some bytes")
        theirs.publish()
        staging.publish()
    assert store.get(digest) == b"some bytes"
    assert list(store) == [digest]


def test_a_store_that_does_not_answer(store: ObjectBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_blobs, "TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    silent = ObjectBlobs("s3://bucket/x", tmp_path / "silent", 0)
    for ask in (silent.size, silent.get, lambda digest: list(silent), lambda digest: silent.put_bytes(b"x")):
        with pytest.raises(StoreError, match="Check the network") as raised:
            ask(ABSENT)
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)


def test_a_bucket_that_is_not_there(faults: Any, tmp_path: Path) -> None:
    store = ObjectBlobs("s3://elsewhere/x", tmp_path / "local", 0)
    with pytest.raises(StoreError, match="no such bucket"):
        store.put_bytes(b"x")


def test_a_forked_process_is_refused_and_its_parent_goes_on(store: ObjectBlobs, url: str, tmp_path: Path) -> None:
    digest = store.put_bytes(b"before")

    def child() -> None:
        for ask in (lambda: store.get(digest), lambda: ObjectBlobs(url, tmp_path / "anew", 0)):
            with pytest.raises(StoreError, match=r"was forked from one that had used a store.*spawn"):
                ask()

    in_a_fork(child)
    assert store.get(store.put_bytes(b"after")) == b"after"


def test_a_registry_in_it(url: str, home: Path, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAREG_STORE", url + "/")
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
        weights = registry.read_file(registry.adapter("task"), WEIGHTS_FILE)
        orphan = registry.blobs.put_bytes(b"nobody's")
        assert next(iter(registry.check(read_data=True))).what == f"blob {orphan}"
        assert [one.sha256 for one in find_orphans(registry, timedelta(0))] == [orphan]
        delete_orphans(registry, timedelta(0))
        assert orphan not in registry.blobs
    monkeypatch.delenv("LORAREG_STORE")
    with Reader(home) as reader:  # it remembers
        assert isinstance(reader.blobs, ObjectBlobs)
        assert reader.read_file(reader.adapter("task"), WEIGHTS_FILE) == weights
        assert reader.original(reader.adapter("task")) == "kept"
    assert not [path for path in (home / "blobs").rglob("*") if path.is_file() and path.parent.name != "read"]


def test_a_pin_keeps_what_lasts(
    url: str, home: Path, tmp_path: Path, make_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this machine read once may be gone by another machine's sweep."""
    monkeypatch.setenv("LORAREG_STORE", url)
    with Registry.open(home, create=True) as registry:
        adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
        registry.read_file(adapter, WEIGHTS_FILE)
        digest = next(file.sha256 for file in registry.files(adapter) if file.path == WEIGHTS_FILE)
        ObjectBlobs(url, tmp_path / "other", 0).delete([digest])
        with pytest.raises(MissingBlobError, match=digest):
            registry.put_pin(adapter, "for a customer")
        assert registry.pin(adapter.id) is None


def test_room_that_is_made_while_it_is_read(
    store: ObjectBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, compare = store.put_bytes(b"some bytes"), object_blobs._digest_of
    assert store.get(digest) == b"some bytes"

    def compare_and_evict(near: Any) -> str:
        found = compare(near)
        (tmp_path / "local" / "read" / digest).unlink()
        return found

    monkeypatch.setattr(object_blobs, "_digest_of", compare_and_evict)
    assert store.get(digest) == b"some bytes"


def test_moving_there_and_back(url: str, home: Path, tmp_path: Path, make_adapter: Any, run: Any, faults: Any) -> None:
    with Registry.open(home, create=True) as registry:
        for seed in range(3):
            registry.ingest(read_folder(make_adapter(f"a{seed}", seed=seed)), name=f"task-{seed}")
        digests = list(registry.blobs)
    (home / "blobs" / digests[0][:2] / digests[0][2:]).chmod(0o600)
    whole = (home / "blobs" / digests[0][:2] / digests[0][2:]).read_bytes()
    (home / "blobs" / digests[0][:2] / digests[0][2:]).write_bytes(b"rotten")
    assert run("migrate", "--store", url, "--home", home).exit_code == 22
    with Reader(home) as reader:
        assert reader.setting(STORE) is None
    (home / "blobs" / digests[0][:2] / digests[0][2:]).write_bytes(whole)
    moved = run("migrate", "--store", url, "--home", home, "--json")
    assert moved.data["copied"] <= len(digests)
    shutil.rmtree(home / "blobs")
    with Reader(home) as reader:
        assert list(reader.blobs) == digests
    assert run("check", "--read-data", "--home", home).exit_code == 0
    assert run("migrate", "--store", url, "--home", home, "--json").data["copied"] == 0
    back = run("migrate", "--store", f"file://{tmp_path}/back", "--home", home, "--json")
    assert back.data["copied"] == len(digests)
    assert run("check", "--read-data", "--home", home).exit_code == 0


def test_a_variable_that_leads_elsewhere(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry.open(home, create=True).close()
    monkeypatch.setenv("LORAREG_STORE", url)
    with Reader(home) as reader, pytest.raises(RegistryError, match="its blobs are in its folder, not at s3://"):
        _ = reader.blobs
    with Registry.open(home, create=False) as registry:
        registry.remember(STORE, "s3://bucket/another")
    with Reader(home) as reader, pytest.raises(RegistryError, match="its blobs are at s3://bucket/another"):
        _ = reader.blobs


@pytest.mark.parametrize("bad", ["gs://bucket/x", "/folder", "s3://", "file://host/x", "nonsense"])
def test_no_such_kind_of_store(home: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("LORAREG_STORE", bad)
    with pytest.raises(StoreError, match="no such kind of store"):
        Registry.open(home, create=True)
    assert not home.exists()


def test_a_folder_elsewhere(home: Path, tmp_path: Path, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAREG_STORE", f"file://{tmp_path}/else%20where")
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    monkeypatch.delenv("LORAREG_STORE")
    with Reader(home) as reader:
        assert reader.read_file(reader.adapter("task"), WEIGHTS_FILE)
    assert (tmp_path / "else where").is_dir()
    assert not (home / "blobs").exists()
