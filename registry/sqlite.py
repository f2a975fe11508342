"""A registry's rows in SQLite: one file in its folder, durable, with one writer at a time and readers beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorareg.registry.backend import BASE_REVISION, WRITES, Backend, Fetch
from lorareg.registry.errors import BusyError, IntegrityError, LockedError, LoraregError, RegistryError
from lorareg.registry.files import make_folder, sync_file, sync_folder
from lorareg.registry.forks import OwnConnection, at_fork, busy
from lorareg.registry.head import advance_head, forget_head, read_head
from lorareg.registry.home import (
    BACKUPS_FOLDER,
    BUSY_TIMEOUT_S,
    DATABASE_FILE,
    HEAD_FILE,
    LOCK_FILE,
    LOCK_TIMEOUT_S,
    WORK_FILE,
)
from lorareg.registry.ledger import TABLE as LEDGER
from lorareg.registry.reserve import keep_reserve, spend_reserve
from lorareg.registry.sqlite_rows import SqliteRows, database_error, read_text

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

UNFINISHED = ".part"


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

    def spend_reserve(self) -> bool:
        return spend_reserve(self.home)

    def keep_reserve(self) -> None:
        keep_reserve(self.home)

    def is_there(self) -> bool:
        return self.path.exists()

    def revision(self) -> str:
        if not self.path.exists():
            return BASE_REVISION
        acknowledged = self.acknowledged()  # before the database: others go on writing
        with closing(self.connect()) as rows:
            found = rows.fetch("SELECT name FROM sqlite_master WHERE type = 'table'", {})
            tables = {row["name"] for row in found}
            versions = rows.fetch("SELECT version_num FROM alembic_version", {}) if "alembic_version" in tables else []
            numbers = rows.fetch("SELECT number FROM ledger", {}) if LEDGER in tables else []
        if LEDGER in tables:
            self._expect_all(acknowledged, numbers[0]["number"] if numbers else 0)
        if tables - {"alembic_version"} and not versions:
            reason = f"{DATABASE_FILE} is not a lorareg database"
            raise RegistryError(home=self.home, reason=reason, remedy="Choose another folder with --home.")
        return str(versions[0]["version_num"]) if versions else BASE_REVISION

    def acknowledged(self) -> int:
        """0 also where the file is damaged, which `check` says."""
        try:
            return read_head(self.home) or 0
        except ValueError:
            return 0

    def _expect_all(self, acknowledged: int, number: object) -> None:
        if not isinstance(number, int) or number < acknowledged:
            raise IntegrityError(
                what=f"The database of {self.home}",
                expected=f"all {acknowledged} changes that were acknowledged",
                found=f"{number!r} of them",
                remedy=f"Its log is damaged, or {DATABASE_FILE} is an older copy. Restore it from a newer one; to go "
                f"on without those changes, delete {HEAD_FILE} and run `lorareg check`.",
            )

    def connect(self) -> SqliteRows:
        return SqliteRows(self.home)

    def problems(self, fetch: Fetch) -> Iterator[tuple[str, str]]:
        for row in fetch("PRAGMA integrity_check"):
            (answer,) = row.values()
            if answer != "ok":
                yield "database", f"SQLite finds: {answer}"

    def remarks(self) -> Iterator[tuple[str, str]]:
        try:
            read_head(self.home)
        except ValueError as error:
            yield HEAD_FILE, f"{error}, as after a power loss; until it is written again, lost changes are not missed"

    def error(self, error: BaseException) -> RegistryError:
        return database_error(self.home, error)

    def acknowledge(self, number: int | None) -> None:
        if number is None:
            forget_head(self.home)
        else:
            advance_head(self.home, number)

    def rebuild_indexes(self) -> None:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
                connection.execute("REINDEX")
        except sqlite3.Error as error:
            raise self.error(error) from error

    def engine(self, *, migrates: bool = False) -> Engine:
        """sqlite3's own handling of transactions is switched off: each is opened by hand, a writer's with BEGIN
        IMMEDIATE, so that it waits for its turn at the start instead of failing in the middle. Foreign keys are off
        for migrations, whose batch rebuilds would delete rows that refer to a table otherwise.
        """
        from sqlalchemy import create_engine, event
        from sqlalchemy.engine import URL

        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None, "factory": OwnConnection},
        )
        at_fork(engine, _close_idle, lambda _: None)

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
        self.make_home()
        with self._locked(LOCK_FILE, LOCK_TIMEOUT_S):
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._locked(WORK_FILE, BUSY_TIMEOUT_S, BusyError(home=self.home, waited_s=BUSY_TIMEOUT_S)):
            yield

    @contextmanager
    def _locked(self, name: str, timeout_s: float, busy: LoraregError | None = None) -> Iterator[None]:
        """The lock is an exclusive transaction on an empty SQLite file, which dies with its process.

        `busy` is raised where another process has it all the while.
        """
        try:
            lock = sqlite3.connect(self.home / name, timeout=timeout_s, isolation_level=None)
        except sqlite3.Error as error:
            raise self.error(error) from error
        with closing(lock):
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                found = self.error(error)
                raise busy if busy is not None and isinstance(found, LockedError) else found from error
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
        self.acknowledge(None)
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            raise self.error(error) from error
        sync_folder(self.home)
        keep_reserve(self.home)

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


def _close_idle(engine: Engine) -> None:
    """Before a fork; a pool that is disposed of forgets what is in use."""
    if engine.pool.checkedout():  # type: ignore[attr-defined]
        busy()
    else:
        engine.dispose()
