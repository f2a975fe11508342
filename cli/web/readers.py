"""Open readers of one registry, handed from request to request: opening one takes longer than most answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

from lorareg.registry.errors import RegistryError
from lorareg.registry.reader import Reader

MOST_KEPT = 16


class Readers:
    """Readers that threads borrow, each used by one at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._idle: LifoQueue[Reader] = LifoQueue(MOST_KEPT)

    @contextmanager
    def borrow(self) -> Iterator[Reader]:
        """A reader for the time of the block; it is not used again after the database failed under it.

        Raises:
            RegistryError: the registry cannot be read.
        """
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = Reader(self.home)
        try:
            yield reader
        except RegistryError:
            reader.close()
            raise
        except BaseException:
            self._put_back(reader)
            raise
        self._put_back(reader)

    def close(self) -> None:
        """Close those that are idle."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _put_back(self, reader: Reader) -> None:
        if self._idle.full():
            reader.close()
        else:
            self._idle.put(reader)
