"""Moving blobs to another store: stopped anywhere, beside writers, and to where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry import store as store_module
from lorareg.registry.blob_stores import move_blobs
from lorareg.registry.errors import RegistryError, StoreError
from lorareg.registry.home import MOVED, STORE
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import sha256_hex

MakeAdapter = Callable[..., Path]


def ignore(n: int) -> None:
    """No progress."""


def errors(registry: Registry) -> list[str]:
    return [finding.problem for finding in registry.check(read_data=True) if finding.severity == "error"]


def test_the_first_to_come_says_where_blobs_are(
    home: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two make one registry at once, one of them with another store in mind."""
    migrate = store_module.migrate

    def come_second(*arguments: Any) -> object:
        monkeypatch.setattr(store_module, "migrate", migrate)
        with monkeypatch.context() as patch:
            patch.delenv("LORAREG_STORE")
            with Registry.open(home, create=True) as first:
                first.ingest(read_folder(make_adapter()), name="task")
        return migrate(*arguments)

    monkeypatch.setattr(store_module, "migrate", come_second)
    with monkeypatch.context() as patch:
        patch.setenv("LORAREG_STORE", f"file://{tmp_path}/elsewhere")
        with Registry.open(home, create=True) as second:
            assert second.setting(STORE) is None
    with Registry.open(home, create=False) as registry:
        assert errors(registry) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_database_that_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool) -> None:
    """Who began it was stopped before its tables were made: whoever makes them says where blobs are."""
    (tmp_path / "registry.sqlite").touch()
    monkeypatch.setenv("LORAREG_STORE", f"file://{tmp_path}/elsewhere")
    with Registry.open(tmp_path, create=create) as registry:
        assert registry.blobs.place == f"{tmp_path}/elsewhere"


def test_a_move_that_was_stopped_brings_what_came_meanwhile(
    registry: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
    count = len(list(registry.blobs))
    first = next(data for data in map(str.encode, map(str, range(9999))) if sha256_hex(data) < min(registry.blobs))
    calls = 0

    def stop(n: int) -> None:
        nonlocal calls
        calls += 1
        if calls == count:  # the list is past it
            registry.put_files(adapter, {"samples.txt": first})
        if calls == count + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move_blobs(registry, f"file://{tmp_path}/elsewhere", stop)
    move_blobs(registry, f"file://{tmp_path}/elsewhere", ignore)
    with Registry.open(registry.home, create=False) as moved:
        assert moved.blobs.place == f"{tmp_path}/elsewhere"
        assert moved.read_file(adapter, "samples.txt") == first
        assert errors(moved) == []


def test_who_wrote_before_a_move_must_not_go_on(registry: Registry, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Its blobs would be in the store that may go."""
    folder = read_folder(make_adapter())
    with Registry.open(registry.home, create=False) as other:
        other.ingest(folder, name="one")
        move_blobs(registry, f"file://{tmp_path}/elsewhere", ignore)
        with pytest.raises(StoreError, match=r"were moved elsewhere meanwhile.*Run the same command again"):
            other.ingest(read_folder(make_adapter("two", seed=2)), name="two")
    with Registry.open(registry.home, create=False) as moved:
        assert moved.names() == ["one"]
        assert moved.ingest(read_folder(make_adapter("two", seed=2)), name="two").kind == "new"
        assert errors(moved) == []


def test_a_move_to_where_they_are(registry: Registry, make_adapter: MakeAdapter, tmp_path: Path, run: Any) -> None:
    """Nothing may be said to be free to go."""
    registry.ingest(read_folder(make_adapter()), name="task")
    (tmp_path / "link").symlink_to(registry.home)
    for url in (f"file://{registry.home}/blobs", f"file://{tmp_path}/link/blobs/"):
        assert "nothing to do" in run("migrate", "--store", url, "--home", registry.home).out
        assert registry.setting(STORE) is None
    with pytest.raises(StoreError, match=r"it lies within .*/blobs"):
        move_blobs(registry, f"file://{registry.home}/blobs/new", ignore)
    move_blobs(registry, f"file://{tmp_path}/else", ignore)
    again = run("migrate", "--store", f"file://{tmp_path}/else", "--home", registry.home)
    assert "may go" not in again.out


def test_rows_that_were_copied_do_not_take_blobs_along(registry: Registry, tmp_path: Path) -> None:
    """The other database would go on with a store that may go."""
    registry.remember(MOVED, "PostgreSQL")
    with pytest.raises(RegistryError, match=r"were copied to PostgreSQL.*Set LORAREG_DATABASE"):
        move_blobs(registry, f"file://{tmp_path}/elsewhere", ignore)
