"""What is kept back for deleting on a full disk; tests/torture fills a real one."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorareg.registry.reserve import PIECE_BYTES, RESERVE_BYTES, RESERVE_FILE, keep_reserve
from lorareg.registry.store import Registry

pytestmark = pytest.mark.sqlite_alone


def say_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_it_is_spent_where_there_is_no_other_room(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (home / RESERVE_FILE).stat().st_size == RESERVE_BYTES
    with Registry.open(home, create=False, frees=True):
        assert (home / RESERVE_FILE).exists()
    say_free(monkeypatch, 0)
    with Registry.open(home, create=False):
        assert (home / RESERVE_FILE).exists()
    with Registry.open(home, create=False, frees=True):
        assert not (home / RESERVE_FILE).exists()
    assert (home / RESERVE_FILE).stat().st_size == RESERVE_BYTES


def test_as_much_is_kept_as_there_is_room_for(tmp_path: Path) -> None:
    (tmp_path / RESERVE_FILE).write_bytes(bytes(5000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        keep_reserve(tmp_path)
        assert (tmp_path / RESERVE_FILE).stat().st_size == 100_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    keep_reserve(tmp_path)
    assert RESERVE_BYTES <= (tmp_path / RESERVE_FILE).stat().st_size < RESERVE_BYTES + PIECE_BYTES
