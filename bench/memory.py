"""How much memory a piece of work takes, in the process that does it."""

from __future__ import annotations

import re
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

from results import Row

STATUS = Path("/proc/self/status")
INTERVAL_S = 0.02


class Peak:
    """Samples this process while it is entered.

    Pages of mapped files count as resident but are the system's to take back, so what is the process's
    own is told apart. Without /proc, only the highest resident size since the process began is known.
    """

    def __init__(self) -> None:
        self.own_bytes = self.resident_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def row(self) -> Row:
        return {"own_bytes": self.own_bytes, "resident_bytes": self.resident_bytes}

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        if not STATUS.exists():
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            self.own_bytes = self.resident_bytes = max(self.resident_bytes, peak)
            return
        found = {name: 1024 * int(kb) for name, kb in re.findall(r"(\w+):\s+(\d+) kB", STATUS.read_text())}
        self.own_bytes = max(self.own_bytes, found.get("RssAnon", 0))
        self.resident_bytes = max(self.resident_bytes, found.get("VmRSS", 0))
