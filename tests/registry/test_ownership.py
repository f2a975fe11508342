"""A store is one registry's: of two, each would delete the other's blobs as nobody's."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry.blob_stores import move_blobs, store_at
from lorareg.registry.blobs import OWNER
from lorareg.registry.errors import ForeignStoreError
from lorareg.registry.home import IDENTITY, STORE
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.replicate import replicate
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, find_orphans
from lorareg.registry.types import WEIGHTS_FILE

MakeAdapter = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # moto's


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store that LORAREG_STORE names."""
    url = f"file://{tmp_path}/blobs" if request.param == "file" else str(request.getfixturevalue("url"))
    monkeypatch.setenv("LORAREG_STORE", url)
    return url


def ignore(n: int) -> None:
    """No progress."""


def errors(home: Path) -> list[str]:
    with Reader(home) as reader:
        from lorareg.registry.check import check

        return [finding.problem for finding in check(reader, read_data=True) if finding.severity == "error"]


def fill(home: Path, folder: Path, name: str = "task") -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(folder), name=name)


def test_another_registry_is_refused_before_it_is_made(
    place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Any
) -> None:
    fill(home, make_adapter())
    said = run("ingest", make_adapter("two", seed=2), "--home", tmp_path / "other")
    assert said.exit_code == 28
    assert f"{OWNER} says" in said.err
    assert said.err.endswith("Choose another prefix or folder.\n")
    assert run("list", "--home", tmp_path / "other").exit_code == 20  # nothing was made
    assert errors(home) == []


def test_two_that_were_made_at_once(
    place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked while it was nobody's. Who stores first has it; the other neither stores, lists nor deletes."""
    Registry.open(home, create=True).close()
    with Registry.open(tmp_path / "other", create=True) as other:
        fill(home, make_adapter())
        for act in (
            lambda: other.ingest(read_folder(make_adapter("two", seed=2)), name="two"),
            lambda: other.blobs.put_bytes(b"x"),
            lambda: other.blobs.delete(["0" * 64]),
            lambda: list(other.check()),
            lambda: find_orphans(other, timedelta(0)),
            lambda: delete_orphans(other, timedelta(0)),
        ):
            with pytest.raises(ForeignStoreError, match=rf"says \w{{32}}\..*write {other.identity()} there"):
                act()
        assert other.adapters() == []
    monkeypatch.delenv("LORAREG_STORE")
    moved = run("migrate", "--store", f"file://{tmp_path}/elsewhere", "--home", tmp_path / "other")
    assert "is another registry's and must stay" in moved.out
    monkeypatch.setenv("LORAREG_STORE", f"file://{tmp_path}/elsewhere")
    fill(tmp_path / "other", make_adapter("two", seed=2), "two")
    with Registry.open(tmp_path / "other", create=False) as other:
        delete_orphans(other, timedelta(0))
    assert errors(tmp_path / "other") == []
    monkeypatch.setenv("LORAREG_STORE", place)
    assert errors(home) == []


def test_one_of_many_who_claim_it(place: str, tmp_path: Path) -> None:
    stores, refused = [store_at(place, tmp_path / str(number)) for number in range(8)], []

    def claim(number: int) -> None:
        stores[number].owner = f"{number}" * 32
        try:
            stores[number].expect_ours(claim=True)
        except ForeignStoreError:
            refused.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (owner,) = {0, 1, 2, 3, 4, 5, 6, 7} - set(refused)
    assert stores[0].read_owner() == f"{owner}" * 32


def test_blobs_that_are_nobody_knows_whose(place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter) -> None:
    store_at(place, tmp_path / "local").put_bytes(b"another's")
    with pytest.raises(ForeignStoreError, match=r"says nothing, though there are blobs.*Choose another prefix"):
        Registry.open(home, create=True)


def test_another_registrys_own_folder(home: Path, tmp_path: Path, make_adapter: MakeAdapter) -> None:
    fill(home, make_adapter())
    fill(tmp_path / "other", make_adapter("two", seed=2))
    with Registry.open(tmp_path / "other", create=False) as other:
        with pytest.raises(ForeignStoreError, match="says nothing, though there are blobs"):
            move_blobs(other, f"file://{home}/blobs", ignore)
        assert other.setting(STORE) is None
    assert errors(home) == errors(tmp_path / "other") == []


def test_moving_to_anothers_store(
    place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(home, make_adapter())
    monkeypatch.delenv("LORAREG_STORE")
    fill(tmp_path / "other", make_adapter())  # even with the same blobs
    with Registry.open(tmp_path / "other", create=False) as other:
        with pytest.raises(ForeignStoreError, match=OWNER):
            move_blobs(other, place, ignore)
        assert other.setting(STORE) is None
        elsewhere = f"file://{tmp_path}/elsewhere"
        assert move_blobs(other, elsewhere, ignore).copied == 3
    with Registry.open(tmp_path / "other", create=False) as other:
        assert other.blobs.read_owner() == other.setting(IDENTITY)
    assert errors(home) == errors(tmp_path / "other") == []


def test_moving_away_and_back(place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Any) -> None:
    fill(home, make_adapter())
    for url in (f"file://{tmp_path}/elsewhere", place):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("LORAREG_STORE")
            assert run("migrate", "--store", url, "--home", home).exit_code == 0
        assert errors_at(home) == []


def errors_at(home: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAREG_STORE")
        return errors(home)


def test_a_copy_of_the_database_is_the_same_registry(
    place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    fill(home, make_adapter())
    (tmp_path / "restored").mkdir()
    shutil.copy(home / "registry.sqlite", tmp_path / "restored")
    fill(tmp_path / "restored", make_adapter("two", seed=2), "two")
    assert errors(tmp_path / "restored") == []


def test_what_stands_in_for_a_lost_registry(
    place: str, home: Path, tmp_path: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy is another registry; it takes the store over when it is told to as the error says."""
    fill(home, make_adapter())
    with Registry.open(home, create=False) as registry:
        replicate(registry, str(tmp_path / "copy"), True, ignore)
    shutil.rmtree(home)
    monkeypatch.delenv("LORAREG_STORE")
    with Registry.open(tmp_path / "copy", create=False) as copy:
        assert copy.setting(IDENTITY) is None
        with pytest.raises(ForeignStoreError) as raised:
            move_blobs(copy, place, ignore)
        assert f"write {copy.setting(IDENTITY)} there" in str(raised.value)
        assert raised.value.fields["mark"] == f"{place.removeprefix('file://')}/{OWNER}"
        write_mark(place, copy.setting(IDENTITY))
        assert move_blobs(copy, place, ignore).copied == 0
    assert errors(tmp_path / "copy") == []


def write_mark(place: str, owner: str | None) -> None:
    """As a person would, past lorareg."""
    if place.startswith("file://"):
        mark = Path(place.removeprefix("file://")) / OWNER
        mark.write_text(owner) if owner else mark.unlink()
        return
    store: Any = store_at(place, Path())
    store._api.put(store._store, OWNER, owner.encode()) if owner else store._api.delete(store._store, OWNER)


def test_a_registry_from_before_there_were_marks(place: str, home: Path, make_adapter: MakeAdapter) -> None:
    fill(home, make_adapter())
    with Registry.open(home, create=False) as registry:
        registry.remember(IDENTITY, None)
    write_mark(place, None)
    with Reader(home) as reader:
        assert reader.read_file(reader.adapter("task"), WEIGHTS_FILE)
    fill(home, make_adapter("two", seed=2), "two")
    with Registry.open(home, create=False) as registry:
        assert registry.blobs.read_owner() == registry.setting(IDENTITY)
    assert errors(home) == []


@pytest.mark.parametrize("fault", ["reset", "500", "503", "409", "412", "lost answer"])
def test_a_claim_whose_answer_is_lost(url: str, faults: Any, tmp_path: Path, fault: str) -> None:
    store = store_at(url, tmp_path)
    store.owner = "a" * 32
    faults.waiting += [("PUT", fault)] * 2
    store.expect_ours(claim=True)
    assert store.read_owner() == "a" * 32
    assert faults.happened == [("PUT", fault)] * 2
