"""Decoded files on disk: each made once however many ask, so many bytes in all, none taken away while it is read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

from lorareg.registry.errors import ServeError

CHUNK_BYTES = 1 << 20
LOCK_FILE = "lock"


class DecodedFiles:
    """Files named by their SHA-256, the least recently used first to go. Threads of one process share it.

    Whoever leases a file is promised that it stays until the release; with everything leased, there may be more than
    `most_bytes` for so long. Files of an earlier process are hashed before they are believed.

    Raises:
        ServeError: another process uses the folder.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root, self.most_bytes = root, most_bytes
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._leases: Counter[str] = Counter()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of what is known to be intact, oldest use first
        self.size_bytes = 0  # of all these
        root.mkdir(parents=True, exist_ok=True)
        self._lock_file = (root / LOCK_FILE).open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            remedy = "Give each server a folder of its own with --cache."
            raise ServeError(reason=f"another server uses the cache {root}", remedy=remedy) from error
        self._take_over()

    def close(self) -> None:
        """Let another process have the folder; the files stay for it."""
        self._lock_file.close()

    def lease(self, sha256: str, make: Callable[[], bytes]) -> Path:
        """A file that stays until `release`, made where it is not there.

        Raises:
            LoraregError: what `make` raises.
            OSError: it cannot be written.
        """
        path = self.root / sha256
        with self._lock:
            self._leases[sha256] += 1
            if sha256 in self._sizes:
                self._sizes.move_to_end(sha256)
                self.hits += 1
                return path
            making = self._making.setdefault(sha256, threading.Lock())
        try:
            with making:
                if sha256 not in self._sizes:
                    self._add(sha256, path, make())
        except BaseException:
            self.release(sha256)
            raise
        return path

    def release(self, sha256: str) -> None:
        """Let a file go when its turn comes."""
        with self._lock:
            self._leases[sha256] -= 1
            if self._leases[sha256] <= 0:
                del self._leases[sha256]
                self._making.pop(sha256, None)
            self._make_room()

    def _add(self, sha256: str, path: Path, data: bytes) -> None:
        fresh = path.with_name(f".{sha256}.{os.getpid()}.new")
        try:
            fresh.write_bytes(data)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        with self._lock:
            self.misses += 1
            self._keep(sha256, len(data))
            self._make_room()

    def _keep(self, sha256: str, size_bytes: int) -> None:
        self._sizes[sha256] = size_bytes
        self.size_bytes += size_bytes

    def _make_room(self) -> None:
        if self.size_bytes <= self.most_bytes:
            return
        for sha256 in [one for one in self._sizes if one not in self._leases]:
            self.size_bytes -= self._sizes.pop(sha256)
            (self.root / sha256).unlink(missing_ok=True)
            if self.size_bytes <= self.most_bytes:
                return

    def _take_over(self) -> None:
        """Believe what is intact of what an earlier process left, and remove the rest."""
        left = [path for path in self.root.iterdir() if path.is_file() and path.name != LOCK_FILE]
        for path in sorted(left, key=lambda path: path.stat().st_mtime):
            if digest_of_file(path) == path.name:
                self._keep(path.name, path.stat().st_size)
            else:
                path.unlink()
        self._make_room()


def digest_of_file(path: Path) -> str:
    """SHA-256, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
