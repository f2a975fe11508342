"""The one validator: every name and path that enters lorareg passes here, whichever door it uses.

Task names follow the Hugging Face Hub's rules for repository ids, so that a registry can be served
under them: one or two parts, ASCII, at most 96 characters a part.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from lorareg.registry.errors import InvalidNameError

MAX_PART_CHARS = 96
MAX_PATH_CHARS = 512

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?", re.ASCII)
_EXPECTED_NAME = f"'task' or 'namespace/task' in ASCII letters, digits, '_', '.', '-', up to {MAX_PART_CHARS} each"
_EXPECTED_NAMESPACE = f"ASCII letters, digits, '_', '.', '-', up to {MAX_PART_CHARS}; or '*' for every task"
_EXPECTED_LABEL = "a label such as 'stable' that is not a number, since 'task@3' means version 3"
_EXPECTED_PATH = "a relative path such as 'adapter_config.json', with '/' between its parts"


@dataclass(frozen=True, slots=True)
class Ref:
    """What `task`, `task@3` or `task@label` asks for; with neither, the newest version."""

    name: str
    version: int | None = None
    label: str | None = None


def validate_task_name(name: str) -> str:
    """Return `name` if it may name a task.

    Raises:
        InvalidNameError: it may not; the message says why.
    """
    parts = name.split("/")
    if len(parts) > 2:
        raise InvalidNameError(
            kind="Task name", value=_shown(name), reason="it has more than two parts", expected=_EXPECTED_NAME
        )
    for part in parts:
        reason = _part_problem(part)
        if reason:
            raise InvalidNameError(kind="Task name", value=_shown(name), reason=reason, expected=_EXPECTED_NAME)
    return name


def validate_namespace(namespace: str) -> str:
    """Return `namespace` if it may be the first of a task name's two parts.

    Raises:
        InvalidNameError: it may not; the message says why.
    """
    reason = _part_problem(namespace)
    if reason:
        raise InvalidNameError(kind="Namespace", value=_shown(namespace), reason=reason, expected=_EXPECTED_NAMESPACE)
    return namespace


def validate_label(label: str) -> str:
    """Return `label` if it may tag a version.

    Raises:
        InvalidNameError: it may not; the message says why.
    """
    reason = "it is a number" if label.isdecimal() else _part_problem(label)
    if label == "latest":
        reason = "it would go stale with the next version, and the bare name means the latest already"
    if reason:
        raise InvalidNameError(kind="Label", value=_shown(label), reason=reason, expected=_EXPECTED_LABEL)
    return label


def validate_relative_path(path: str) -> str:
    """Return `path` if it names a file inside an adapter's folder and nothing outside it.

    Raises:
        InvalidNameError: it may not; the message says why.
    """
    reason = _path_problem(path)
    if reason:
        raise InvalidNameError(kind="File path", value=_shown(path), reason=reason, expected=_EXPECTED_PATH)
    return path


def parse_ref(text: str) -> Ref:
    """Read `task`, `task@3` or `task@label`.

    Raises:
        InvalidNameError: the name, version or label is not valid.
    """
    name, at, selector = text.partition("@")
    validate_task_name(name)
    if not at:
        return Ref(name)
    if not (selector.isascii() and selector.isdecimal()):
        return Ref(name, label=validate_label(selector))
    if len(selector) > 9 or int(selector) == 0:
        raise InvalidNameError(
            kind="Version",
            value=_shown(selector),
            reason="versions count from 1",
            expected="one that `lorareg show` lists",
        )
    return Ref(name, version=int(selector))


def suggest(name: str, known: Iterable[str]) -> str:
    """End an error message with names near `name`: ` Did you mean 'man-nl'?`, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `layers.2` comes before `layers.10`."""
    # Long digit runs stay text: int() of thousands of digits is slow, and refused by Python past 4300.
    parts = (p for p in re.split(r"([0-9]{1,18})", text) if p)
    return tuple((0, int(p)) if p.isascii() and p.isdecimal() else (1, p) for p in parts)


def _shown(value: str) -> str:
    """A name as an error repeats it; one of a megabyte is not to fill a log."""
    return value if len(value) <= MAX_PATH_CHARS else f"{value[:MAX_PATH_CHARS]}…"


def _part_problem(part: str) -> str | None:
    if not part:
        return "it is empty, or has an empty part"
    if len(part) > MAX_PART_CHARS:
        return f"it has a part of {len(part)} characters"
    if not _PART.fullmatch(part):
        return "it has characters that are not allowed, or starts or ends with punctuation"
    if "--" in part or ".." in part:
        return "it has '--' or '..' in it"
    return None


def _path_problem(path: str) -> str | None:
    if not path or len(path) > MAX_PATH_CHARS:
        return f"it has {len(path)} characters"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        return "it has control characters or lone surrogates"
    if "\\" in path:
        return "it has a backslash"
    if path != unicodedata.normalize("NFC", path):
        return "it is not in Unicode normal form C"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "it is absolute, or has an empty part, '.' or '..'"
    return None
