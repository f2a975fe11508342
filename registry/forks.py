"""Open databases where a process forks: a connection is one process's, and its child gets connections of its own.

To PostgreSQL two processes would speak over one socket. SQLite keeps locks for each process within its library, so that
a child that inherited a connection would take its parent's locks for its own, with new connections too. So idle
connections are closed before the fork, and opened again when they are next used; and in a child of a process that was
in the middle of reading or writing a registry in SQLite, whatever is asked of one is refused.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable
from typing import Any

FORKED = "this process was forked from one that was reading or writing the registry"
FORKED_REMEDY = "Fork before that, or start processes with `spawn`."

Hook = Callable[[Any], None]
_hooks: weakref.WeakKeyDictionary[Any, tuple[Hook, Hook]] = weakref.WeakKeyDictionary()
_is_busy = _is_refused = False


def at_fork(thing: object, before: Hook, in_child: Hook) -> None:
    """Call these with `thing`, if it is still there, before this process forks, and then in its child."""
    _hooks[thing] = (before, in_child)


def busy() -> None:
    """Say, before a fork, that a connection to SQLite is in use."""
    global _is_busy
    _is_busy = True


class OwnConnection(sqlite3.Connection):
    """A connection of one process: in its child it can do nothing, not even be closed, which would end what it does."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Raises sqlite3.OperationalError in a process that may open none."""
        if _is_refused:
            raise sqlite3.OperationalError(FORKED)
        self._process = os.getpid()
        super().__init__(*arguments, **named)

    @property
    def is_inherited(self) -> bool:
        """Whether it was opened in another process."""
        return self._process != os.getpid()

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        """Raises sqlite3.OperationalError where it is inherited."""
        if self.is_inherited:
            raise sqlite3.OperationalError(FORKED)
        return super().cursor(*arguments, **named)

    def commit(self) -> None:
        """Raises sqlite3.OperationalError where it is inherited."""
        if self.is_inherited:
            raise sqlite3.OperationalError(FORKED)
        super().commit()

    def rollback(self) -> None:
        """The transaction is left to the process that began it."""
        if not self.is_inherited:
            super().rollback()

    def close(self) -> None:
        """It is left to the process that opened it."""
        if not self.is_inherited:
            super().close()


def _before() -> None:
    global _is_busy
    _is_busy = False
    for thing, (before, _) in list(_hooks.items()):
        before(thing)


def _in_child() -> None:
    global _is_refused
    _is_refused = _is_refused or _is_busy
    for thing, (_, in_child) in list(_hooks.items()):
        in_child(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
