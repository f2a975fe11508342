"""A commit of the Hub as its clients send it: ndjson of a header, files, and names that go.

It is spooled to disk, since it may be large, and read a line at a time; a line is in memory whole.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lorareg.cli.web.replies import bad_request
from lorareg.registry.names import validate_relative_path
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EVAL_FILE,
    EVAL_SUMMARY_FILE,
    LONE_SUFFIX,
    PICKLE_FILES,
    SAMPLES_FILE,
)

LOOKED_AT = frozenset({CARD_FILE, SAMPLES_FILE, EVAL_FILE, EVAL_SUMMARY_FILE, CONFIG_FILE, *PICKLE_FILES})
LONGEST_SHORT_LINE = 1 << 20
MOST_LINES = 10_000
MOST_PARTS = 1000
"""Of a long line, which holds a file and little else: lists within lists take twenty times their bytes in memory."""


@dataclass(slots=True)
class Changes:
    """What a commit asks for: files written into a folder, and names that go."""

    folder: Path
    parent: str | None = None
    added: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    deletes_all: bool = False

    @property
    def is_card_alone(self) -> bool:
        """Whether nothing but a card is new: then weights need not be at hand."""
        return self.added <= {CARD_FILE} and not self.deleted and not self.deletes_all


def read_changes(body: IO[bytes], folder: Path) -> Changes:
    """The operations of a commit, its files written into `folder`, which comes to be.

    Raises:
        RefusedError: 400.
        InvalidNameError: a path leads out of the folder.
    """
    folder.mkdir()
    changes = Changes(folder)
    for number, line in enumerate(body, start=1):
        if number > MOST_LINES:
            raise bad_request(f"A commit may have {MOST_LINES} lines.")
        if not line.strip():
            continue
        if len(line) > LONGEST_SHORT_LINE and sum(map(line.count, (b"[", b"{", b","))) > MOST_PARTS:
            raise bad_request(f"Line {number} of the commit is not an operation: it has too many parts.")
        try:
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            _apply(changes, key, value)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise bad_request(f"Line {number} of the commit is not an operation.") from error
    return changes


def _apply(changes: Changes, key: str, value: Mapping[str, Any]) -> None:
    if key == "header":
        parent = value.get("parentCommit")
        changes.parent = parent if parent is None else str(parent)
    elif key == "file":
        path = validate_relative_path(value["path"])
        if value.get("encoding", "base64") != "base64":
            raise bad_request(f"{path} has to come in base64.")
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise bad_request(f"{path} is not base64.") from error
        if is_looked_at(path):
            (changes.folder / path).write_bytes(data)
            changes.added.add(path)
    elif key == "deletedFile":
        changes.deleted.add(validate_relative_path(value["path"]))
    elif key == "deletedFolder":
        changes.deletes_all |= str(value["path"]).strip("/") in ("", ".")
    elif key == "lfsFile":
        raise bad_request(f"{str(value['path'])[:200]} has to be sent as it is; this server stores nothing as LFS.")
    else:
        raise bad_request(f"A commit cannot have {str(key)[:40]!r} here.")


def is_looked_at(path: str) -> bool:
    """Whether a file may be part of an adapter; all others are left where they are."""
    return path in LOOKED_AT or (path.endswith(LONE_SUFFIX) and "/" not in path)
