"""The cache of decoded files: made once, bounded, and nothing in use goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorareg.cli.web.decoded import DecodedFiles
from lorareg.registry.errors import ServeError
from lorareg.registry.types import sha256_hex

DATA = [bytes([number]) * 100 for number in range(8)]
NAMES = [sha256_hex(data) for data in DATA]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DecodedFiles]:
    decoded = DecodedFiles(tmp_path / "decoded", 300)
    yield decoded
    decoded.close()


def kept(files: DecodedFiles) -> set[int]:
    return {NAMES.index(path.name) for path in files.root.iterdir() if path.name in NAMES}


def use(files: DecodedFiles, number: int) -> None:
    files.lease(NAMES[number], lambda: DATA[number])
    files.release(NAMES[number])


def test_the_least_recently_used_goes_first(files: DecodedFiles) -> None:
    for number in (0, 1, 2, 0, 3):
        use(files, number)
    assert kept(files) == {0, 2, 3}
    assert files.size_bytes == 300
    assert (files.hits, files.misses) == (1, 4)


def test_what_is_leased_stays(files: DecodedFiles) -> None:
    path = files.lease(NAMES[0], lambda: DATA[0])
    for number in range(1, 8):
        use(files, number)
    assert path.read_bytes() == DATA[0]
    assert len(kept(files)) == 3
    files.release(NAMES[0])
    use(files, 5)
    use(files, 4)
    assert 0 not in kept(files)


def test_more_than_fits_is_kept_while_it_is_leased(files: DecodedFiles) -> None:
    paths = [files.lease(NAMES[number], lambda number=number: DATA[number]) for number in range(5)]  # type: ignore[misc]
    assert all(path.exists() for path in paths)
    assert files.size_bytes == 500
    for number in range(5):
        files.release(NAMES[number])
    assert files.size_bytes == 300


def test_many_who_ask_at_once_wait_for_one(files: DecodedFiles) -> None:
    made, begin = [], threading.Barrier(16)

    def make() -> bytes:
        made.append(1)
        return DATA[0]

    def ask(_: int) -> bytes:
        begin.wait()
        data = files.lease(NAMES[0], make).read_bytes()
        files.release(NAMES[0])
        return data

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(ask, range(16))) == {DATA[0]}
    assert len(made) == 1


def test_what_fails_leaves_nothing_behind(files: DecodedFiles) -> None:
    def fail() -> bytes:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.lease(NAMES[0], fail)
    use(files, 0)
    assert kept(files) == {0}
    assert [path.name for path in files.root.iterdir() if path.name.endswith(".new")] == []


def test_files_of_an_earlier_process_are_hashed_first(files: DecodedFiles) -> None:
    for number in range(3):
        use(files, number)
    files.close()
    (files.root / NAMES[1]).write_bytes(b"rotten")
    (files.root / ".half.new").write_bytes(b"half")
    again = DecodedFiles(files.root, 300)
    assert kept(again) == {0, 2}
    assert not (files.root / ".half.new").exists()
    assert again.size_bytes == 200
    again.close()


def test_a_folder_is_one_servers(files: DecodedFiles) -> None:
    with pytest.raises(ServeError, match="another server uses the cache"):
        DecodedFiles(files.root, 300)
