"""A second copy: whole, usable as it is, and what damage is mended from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import blob_damage
import pytest

from lorareg.registry.errors import IntegrityError, MissingBlobError, MissingExtraError, ReplicaError
from lorareg.registry.home import STORE
from lorareg.registry.peft_format import read_folder
from lorareg.registry.replicate import blobs_to_copy, open_location, repair, replicate
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE, NewEncoding, NewGenerator, sha256_hex

MakeAdapter = Callable[..., Path]


def ignore(n: int) -> None:
    """No progress."""


@pytest.fixture
def filled(registry: Registry, make_adapter: MakeAdapter) -> Registry:
    """Two adapters, one with a code and a generator."""
    adapter = registry.ingest(read_folder(make_adapter("one")), name="one").adapter
    registry.ingest(read_folder(make_adapter("two", seed=2)), name="two")
    body = registry.blobs.put_bytes(b"generator")
    generator = registry.record_generator(NewGenerator(adapter.cohort_id, body, 9, "mean", "", {}, {}))
    code = registry.blobs.put_bytes(b"code")
    registry.record_encoding(NewEncoding(adapter.id, generator.id, "c", "residual", code, 4, "0" * 64, 9, {}, {}))
    return registry


@pytest.fixture(params=["folder", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "copy")
    pytest.importorskip("fsspec")
    return f"memory://{tmp_path.name}/copy"


def weights(registry: Registry, name: str) -> str:
    files = registry.files(registry.adapter(name))
    return next(file.sha256 for file in files if file.path == WEIGHTS_FILE)


def test_what_must_stay_is_copied_once(filled: Registry, location: str) -> None:
    done = replicate(filled, location, False, ignore)
    wanted, left_out = blobs_to_copy(filled, False)
    assert (done.copied, done.present, done.generators) == (len(wanted), 0, 1)
    assert set(left_out) == {weights(filled, "one")}
    target = open_location(done.location)
    assert all(sha256_hex(target.get(sha256)) == sha256 for sha256 in wanted)
    with pytest.raises(MissingBlobError, match=weights(filled, "one")):
        target.get(weights(filled, "one"))
    again = replicate(filled, location, True, ignore)
    assert (again.copied, again.present) == (1, len(wanted))
    assert [copy.location for copy in filled.generator_copies(1)] == [done.location]


def test_a_place_has_one_registrys_copy(
    filled: Registry, location: str, tmp_path: Path, make_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database of the one would replace that of the other."""
    replicate(filled, location, False, ignore)
    if os.environ.get("LORAREG_DATABASE"):
        monkeypatch.setenv("LORAREG_DATABASE", make_postgres())
    monkeypatch.delenv("LORAREG_STORE", raising=False)
    with Registry.open(tmp_path / "other", create=True) as other:
        with pytest.raises(ReplicaError, match=rf"a copy of registry {filled.identity()}\. Choose another place"):
            replicate(other, location, False, ignore)
        with pytest.raises(ReplicaError, match=rf"no copy of this one\. .* write {filled.identity()} into"):
            replicate(filled, str(tmp_path / "other"), False, ignore)
    assert replicate(filled, location, False, ignore).copied == 0


def test_the_copy_is_a_registry(filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicate(filled, str(tmp_path / "copy"), False, ignore)
    replicate(filled, str(tmp_path / "copy"), False, ignore)
    monkeypatch.delenv("LORAREG_DATABASE", raising=False)  # a second copy is a folder, whatever it is one of
    monkeypatch.delenv("LORAREG_STORE", raising=False)
    with Registry.open(tmp_path / "copy", create=False) as copy:
        assert copy.adapters() == filled.adapters()
        assert not [finding for finding in copy.check(read_data=True) if finding.severity == "error"]
        assert copy.read_file(copy.adapter("two"), WEIGHTS_FILE) == filled.read_file(
            filled.adapter("two"), WEIGHTS_FILE
        )


@pytest.mark.folder_alone
def test_the_copy_has_its_own_blobs(
    home: Path, tmp_path: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning in it, or losing what it is a copy of, must not reach from one to the other."""
    with Registry.open(home, create=True) as registry:
        registry.remember(STORE, f"file://{tmp_path}/store")
        registry.ingest(read_folder(make_adapter()), name="one")
        replicate(registry, str(tmp_path / "copy"), False, ignore)
    monkeypatch.delenv("LORAREG_DATABASE", raising=False)
    shutil.rmtree(tmp_path / "store")
    with Registry.open(tmp_path / "copy", create=False) as copy:
        assert copy.blobs.place == str(tmp_path / "copy" / "blobs")
        assert list(copy.check(read_data=True)) == []


def test_the_copy_is_of_one_moment(filled: Registry, tmp_path: Path, make_adapter: MakeAdapter) -> None:
    """An adapter that comes while blobs are copied is in it with its blobs, or not at all."""
    late = iter([read_folder(make_adapter("late", seed=9))])

    def ingest(n: int) -> None:
        for folder in late:
            filled.ingest(folder, name="late")

    replicate(filled, str(tmp_path / "copy"), True, ingest)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAREG_DATABASE", raising=False)
        patch.delenv("LORAREG_STORE", raising=False)
        with Registry.open(tmp_path / "copy", create=False) as copy:
            assert [finding for finding in copy.check() if finding.severity == "error"] == []
            assert copy.names() == ["one", "two"]


def test_damage_is_mended_from_it(filled: Registry, location: str) -> None:
    replicate(filled, location, True, ignore)
    blob_damage.overwrite(filled.blobs, weights(filled, "one"), b"other")
    blob_damage.lose(filled.blobs, weights(filled, "two"))
    assert set(repair(filled, location, ignore)) == {weights(filled, "one"), weights(filled, "two")}
    assert repair(filled, location, ignore) == []
    assert not [finding for finding in filled.check(read_data=True) if finding.severity == "error"]


def test_a_missing_original_of_a_coded_adapter_is_mended(filled: Registry, location: str) -> None:
    replicate(filled, location, True, ignore)
    blob_damage.lose(filled.blobs, weights(filled, "one"))
    assert filled.original(filled.adapter("one")) == "missing"
    assert repair(filled, location, ignore) == [weights(filled, "one")]
    assert filled.original(filled.adapter("one")) == "kept"


def test_a_damaged_copy_does_not_count(filled: Registry, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    for location in (str(tmp_path / "copy"), f"file://{tmp_path}/copy"):
        replicate(filled, location, False, ignore)
        body = filled.generator(1).sha256
        path = tmp_path / "copy" / "blobs" / body[:2] / body[2:]
        path.chmod(0o644)
        path.write_bytes(b"generatoR")
        with pytest.raises(IntegrityError, match=body):
            open_location(location).get(body)
        path.unlink()


def test_no_copy_within_the_registry(filled: Registry) -> None:
    with pytest.raises(ReplicaError, match=r"it is inside the registry\. Choose another disk"):
        replicate(filled, str(filled.home / "copy"), False, ignore)
    with pytest.raises(ReplicaError, match="it is inside the registry"):
        replicate(filled, f"file://{filled.home}", False, ignore)  # would write over the database in use


@pytest.mark.folder_alone
@pytest.mark.parametrize("there", ["", "/blobs", "/blobs/copy"])
def test_no_copy_that_is_the_store(home: Path, tmp_path: Path, make_adapter: MakeAdapter, there: str) -> None:
    """Its blobs would be the registry's very own, and count as a second copy of themselves."""
    with Registry.open(home, create=True) as registry:
        registry.remember(STORE, f"file://{tmp_path}/shared/blobs")
        registry.ingest(read_folder(make_adapter()), name="one")
        for location in (f"{tmp_path}/shared{there}", f"file://{tmp_path}/shared{there}/"):
            with pytest.raises(ReplicaError, match="it is inside the registry"):
                replicate(registry, location, False, ignore)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ReplicaError, match=r"it cannot be used .Permission denied"):
        replicate(filled, str(tmp_path / "closed" / "copy"), False, ignore)


def test_a_file_in_the_way(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ReplicaError, match=r"it cannot be used .Not a directory"):
        replicate(filled, str(tmp_path / "file" / "copy"), False, ignore)


def test_urls_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ReplicaError, match="nosuch:// is not known"):
        open_location("nosuch://bucket")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'fsspec'.*lorareg\[remote\]"):
        open_location("s3://bucket")
