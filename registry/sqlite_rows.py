"""Reading SQLite's file, in whatever state a killed writer or a full disk left it.

Three things stand in a reader's way, and none of them is a reason not to read. Read-only media cannot have the file of
shared memory that WAL needs: if there is no WAL, SQLite may take the database as it is. A journal that a killed writer
left has to be rolled back, which a connection that may only read cannot do: one that may write does it first. And on a
full disk that shared file cannot be made: then a connection keeps in its own memory what it would share, and others out
meanwhile, so that each question opens one of its own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorareg.registry.backend import KEPT_BUSY, ROWS_AT_ONCE, TRY_AGAIN
from lorareg.registry.errors import LockedError, RegistryError, RegistryRefusedError
from lorareg.registry.forks import FORKED, FORKED_REMEDY, OwnConnection, at_fork, busy
from lorareg.registry.home import BUSY_TIMEOUT_S, DATABASE_FILE

REFUSALS = (sqlite3.Error, OverflowError, UnicodeDecodeError)
"""What a question ends in; the last two where the file is damaged: what SQLite says of it need not be text."""

_NO_ROOM = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}


class SqliteRows:
    """A connection that reads, without the means to change anything; threads may hand it on, one at a time uses it."""

    def __init__(self, home: Path) -> None:
        """Open the database at `home`.

        Raises:
            RegistryError: it cannot be opened.
        """
        self.home, self._is_frozen, self._is_let_go = home, False, False
        self._in_use = threading.Lock()
        self._shared = self._opened()
        at_fork(self, SqliteRows._let_go, SqliteRows._begin_anew)

    def _opened(self) -> sqlite3.Connection | None:
        try:
            return _connect_shared(self.home)
        except REFUSALS as error:
            if not _is_room_missing(error):
                raise database_error(self.home, error) from error
            return None

    def _let_go(self) -> None:
        """Close what nobody uses at this moment, before the process forks."""
        if self._is_frozen or not self._in_use.acquire(blocking=False):
            busy()
            return
        if self._shared is not None:
            self._shared.close()
            self._is_let_go = True
        self._in_use.release()

    def _begin_anew(self) -> None:
        """In the child: whoever used it is no thread of this process."""
        self._in_use = threading.Lock()

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        try:
            with self._in_use, self._connection() as connection:
                return [dict(row) for row in connection.execute(sql, parameters).fetchall()]
        except REFUSALS as error:
            raise database_error(self.home, error) from error

    def freeze(self) -> None:
        try:
            if self._shared is None:
                self._shared = _connect_alone(self.home)
            self._is_frozen = True
            with self._in_use, self._connection() as connection:
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # it begins with its first look
        except REFUSALS as error:
            raise database_error(self.home, error) from error

    def stream(self, sql: str, parameters: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
        try:
            with self._in_use, self._connection() as connection:
                cursor = connection.execute(sql, parameters)
            while rows := self._next_rows(cursor):
                yield from map(dict, rows)
        except REFUSALS as error:
            raise database_error(self.home, error) from error

    def _next_rows(self, cursor: sqlite3.Cursor) -> list[Any]:
        with self._in_use:
            return cursor.fetchmany(ROWS_AT_ONCE)

    def close(self) -> None:
        self._is_frozen = False
        if self._shared is not None:
            self._shared.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if self._is_let_go:
            self._shared, self._is_let_go = self._opened(), False
        if self._shared is not None:
            yield self._shared
        else:
            with closing(_connect_alone(self.home)) as connection:
                yield connection


def _connect_shared(home: Path) -> sqlite3.Connection:
    """A connection beside others, which has read something already."""
    path = (home / DATABASE_FILE).absolute()
    uri = f"{_uri(path)}?mode=ro"
    if os.access(home, os.W_OK):
        if path.with_name(f"{DATABASE_FILE}-journal").exists():
            with closing(sqlite3.connect(f"{_uri(path)}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)) as writer:
                _read_something(writer)
    elif not path.with_name(f"{DATABASE_FILE}-wal").exists():
        uri += "&immutable=1"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False, factory=OwnConnection)
    return _read_something(connection)


def _connect_alone(home: Path) -> sqlite3.Connection:
    """A connection that shares nothing, and locks others out until it is closed."""
    uri = f"{_uri((home / DATABASE_FILE).absolute())}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False, factory=OwnConnection)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA query_only = ON")
    return _read_something(connection)


def _read_something(connection: sqlite3.Connection) -> sqlite3.Connection:
    """SQLite opens its files when they are asked for something; the connection is closed if it cannot."""
    connection.row_factory, connection.text_factory = sqlite3.Row, read_text
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except REFUSALS:
        connection.close()
        raise
    return connection


def _uri(path: Path) -> str:
    return f"file:{quote(path.as_posix())}"


def read_text(data: bytes) -> str:
    """Text as it is stored, also where damage made it no UTF-8: then its row's digest tells, and names the row."""
    return data.decode("utf-8", "surrogateescape")


def _is_room_missing(error: BaseException) -> bool:
    """Whether it may be that a file could not be made; of another reason the next attempt tells as well."""
    return _code(error) in _NO_ROOM


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def database_error(home: Path, error: BaseException) -> RegistryError:
    """Say what SQLite said, and what to do about it."""
    reason, kind = str(error), RegistryError
    if reason == FORKED:
        return RegistryError(home=home, reason=reason, remedy=FORKED_REMEDY)
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(home=home, reason=KEPT_BUSY, remedy=TRY_AGAIN)
    elif "disk I/O" in reason:
        remedy = "The disk may be full or failing: free some space, then run `lorareg check`."
        kind = RegistryRefusedError
    elif "full" in reason:
        remedy, kind = "Free some space; nothing was half written.", RegistryRefusedError
    elif "readonly" in reason or "unable to open" in reason:
        remedy, kind = "Check the permissions of the folder and the files in it.", RegistryRefusedError
    else:
        remedy = "Run `lorareg check`; copies from before each migration are in its backups folder."
    return kind(home=home, reason=f"the database says: {reason}", remedy=remedy)
