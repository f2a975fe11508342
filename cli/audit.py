"""The audit log: who changed what through a server, and who may. One JSON object a line, in the registry's folder.

Lines are appended whole (O_APPEND), so that several processes may write, and flushed before the answer goes out. What
is asked without leave is not here but in the server's log: anybody can ask, and fill a disk with it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

AUDIT_FILE = "audit.jsonl"


def record_event(home: Path, event: str, **fields: object) -> None:
    """Add a line: the time, the event and what belongs to it; secrets never do."""
    told = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
    line = (json.dumps(told, ensure_ascii=True, default=str) + "\n").encode()
    descriptor = os.open(home / AUDIT_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
