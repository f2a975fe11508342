"""A registry's rows in SQLite: one file in its folder, durable, with one writer at a time and readers beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lorareg.registry.backend import BASE_REVISION, WRITES, Backend, Fetch
from lorareg.registry.errors import RegistryError, RegistryRefusedError
from lorareg.registry.files import make_folder, sync_file, sync_folder
from lorareg.registry.home import BACKUPS_FOLDER, BUSY_TIMEOUT_S, DATABASE_FILE, LOCK_FILE, LOCK_TIMEOUT_S

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

UNFINISHED = ".part"


class SqliteRows:
    """A connection that reads, without the means to change anything."""

    def __init__(self, backend: Sqlite) -> None:
        self._backend = backend
        self._connection = connect_read_only(backend.home)

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        try:
            return [dict(row) for row in self._connection.execute(sql, parameters).fetchall()]
        except sqlite3.Error as error:
            raise self._backend.error(error) from error

    def close(self) -> None:
        self._connection.close()


class Sqlite(Backend):
    """The file `registry.sqlite` in the folder."""

    name = "SQLite"
    size_query = "SELECT page_count * page_size AS n FROM pragma_page_count(), pragma_page_size()"

    @property
    def path(self) -> Path:
        """The file."""
        return self.home / DATABASE_FILE

    @property
    def place(self) -> str:
        return str(self.path)

    def is_there(self) -> bool:
        return self.path.exists()

    def revision(self) -> str:
        if not self.path.exists():
            return BASE_REVISION
        try:
            with closing(connect_read_only(self.home)) as connection:
                found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                tables = {name for (name,) in found}
                is_ours = "alembic_version" in tables
                version = is_ours and connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error as error:
            raise self.error(error) from error
        if tables - {"alembic_version"} and not version:
            reason = f"{DATABASE_FILE} is not a lorareg database"
            raise RegistryError(home=self.home, reason=reason, remedy="Choose another folder with --home.")
        return str(version[0]) if version else BASE_REVISION

    def connect(self) -> SqliteRows:
        return SqliteRows(self)

    def problems(self, fetch: Fetch) -> Iterator[tuple[str, str]]:
        for row in fetch("PRAGMA integrity_check"):
            (answer,) = row.values()
            if answer != "ok":
                yield "database", f"SQLite finds: {answer}"

    def error(self, error: BaseException) -> RegistryError:
        return database_error(self.home, error)

    def engine(self, *, migrates: bool = False) -> Engine:
        """sqlite3's own handling of transactions is switched off: each is opened by hand, a writer's with BEGIN
        IMMEDIATE, so that it waits for its turn at the start instead of failing in the middle. Foreign keys are off
        for migrations, whose batch rebuilds would delete rows that refer to a table otherwise.
        """
        from sqlalchemy import create_engine, event
        from sqlalchemy.engine import URL

        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        )

        @event.listens_for(engine, "connect")
        def set_pragmas(connection: Any, record: object) -> None:
            connection.text_factory = read_text
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA foreign_keys = {'OFF' if migrates else 'ON'}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get(WRITES, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """The lock is an exclusive transaction on an empty SQLite file, which dies with its process."""
        self.make_home()
        try:
            lock = sqlite3.connect(self.home / LOCK_FILE, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise self.error(error) from error
        with closing(lock):
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                raise self.error(error) from error
            yield

    def back_up(self, revision: str) -> Path:
        """What goes by a backup's name is whole: until it is, it has another, and one that was never finished goes."""
        backup = self._backup(revision)
        for unfinished in backup.parent.glob(f"registry-*{UNFINISHED}"):
            if unfinished.is_file():
                unfinished.unlink()
        fresh = backup.with_name(backup.name + UNFINISHED)
        try:
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute("VACUUM INTO ?", (str(fresh),))
        except sqlite3.Error as error:
            raise self.error(error) from error
        sync_file(fresh)
        fresh.rename(backup)
        sync_folder(backup.parent)
        return backup

    def retire(self) -> Path:
        backup = self._backup("moved")
        self.finished().rename(backup)
        sync_folder(backup.parent)
        sync_folder(self.home)
        return backup

    def _backup(self, what: str) -> Path:
        folder = self.home / BACKUPS_FOLDER
        make_folder(folder)
        return folder / f"registry-{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.sqlite"

    def expect_references(self, connection: Connection) -> None:
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken:
            reason = f"after migrating, row {broken[1]} of table {broken[0]!r} would refer to one that is gone"
            raise RegistryError(home=self.home, reason=reason, remedy="Nothing was changed; run `lorareg check`.")

    def prepare(self) -> None:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            raise self.error(error) from error
        sync_folder(self.home)

    def complete(self, connection: Connection) -> None:
        """Nothing is left to do."""

    def expect_folder(self, fetch: Fetch) -> None:
        """It is: the database lies in it."""

    def finished(self) -> Path:
        """The file, whole by itself: nothing of it is in the files beside it any more."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise self.error(error) from error
        return self.path


def connect_read_only(home: Path) -> sqlite3.Connection:
    """Open the database at `home` without the means to change it; read-only media will do.

    Threads may hand the connection on; one at a time uses it.

    Raises:
        RegistryError: it cannot be opened.
    """
    path = (home / DATABASE_FILE).absolute()
    uri = f"file:{quote(path.as_posix())}?mode=ro"
    if not os.access(home, os.W_OK) and not path.with_name(f"{DATABASE_FILE}-wal").exists():
        # WAL needs a shared-memory file beside the database, which read-only media cannot be given.
        uri += "&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    except sqlite3.Error as error:
        raise database_error(home, error) from error
    connection.row_factory = sqlite3.Row
    connection.text_factory = read_text
    return connection


def read_text(data: bytes) -> str:
    """Text as it is stored, also where damage made it no UTF-8: then its row's digest tells, and names the row."""
    return data.decode("utf-8", "surrogateescape")


def database_error(home: Path, error: BaseException) -> RegistryError:
    """Say what SQLite said, and what to do about it."""
    reason, kind = str(error), RegistryError
    if "locked" in reason or "busy" in reason:
        remedy = f"Another process has been writing for {BUSY_TIMEOUT_S:.0f} s; try again when it is done."
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
