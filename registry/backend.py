"""What a database has to do for a registry, and which one it is: SQLite in its folder, or PostgreSQL at a URL.

LORAREG_DATABASE names the URL; without it there is SQLite. Only the two modules behind this one know which it is. What
reads imports neither SQLAlchemy nor Alembic; the methods that write import them when they are called.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorareg.registry.errors import RegistryError, RowsMovedError
from lorareg.registry.files import make_folder
from lorareg.registry.home import DATABASE_FILE, DATABASE_VARIABLE, POSTGRES_FILE

KEPT_BUSY = "another process kept its database busy all the while"
TRY_AGAIN = "Try again when it is done."
ROWS_AT_ONCE = 1000

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

BASE_REVISION = "base"
"""What Alembic calls a database with no tables yet."""

WRITES = "lorareg_writes"
"""The execution option by which an engine's transaction is known to be a writer's."""

SQLITE = "sqlite"

Fetch = Callable[[str], Sequence[Mapping[str, Any]]]


class Rows(Protocol):
    """A connection that reads."""

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        """Run a SELECT with `:named` parameters.

        Raises:
            RegistryError: the database refused.
        """

    def freeze(self) -> None:
        """From here on rows are those of one moment."""

    def stream(self, sql: str, parameters: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
        """As `fetch`, but no more rows are held than a few; frozen rows alone."""

    def close(self) -> None:
        """Close it."""


class Backend(ABC):
    """The database of the registry at `home`."""

    name: str
    size_query: str  # a SELECT of the bytes that the database takes
    statistics: str | None = None  # what makes its planner know of many new rows, where it does not do so at once

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    @abstractmethod
    def place(self) -> str:
        """Which database it is, told from others of its kind; it may have a password in it."""

    def make_home(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            RegistryError: something else is in its place.
        """
        try:
            make_folder(self.home)
        except (FileExistsError, NotADirectoryError) as error:
            reason = "it is not a folder"
            raise RegistryError(home=self.home, reason=reason, remedy="Choose another folder with --home.") from error

    def spend_reserve(self) -> bool:
        """Make room for deleting, where the database lies on a full disk; whether it had to be made."""
        return False

    def keep_reserve(self) -> None:  # noqa: B027
        """Keep the room that was spent, where there is some again."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether there is a database with a registry in it, of whatever schema."""

    @abstractmethod
    def revision(self) -> str:
        """The schema revision, `BASE_REVISION` if there are no tables.

        Raises:
            RegistryError: it cannot be read, or is not a registry's.
        """

    @abstractmethod
    def connect(self) -> Rows:
        """A connection without the means to change anything; threads may hand it on, one at a time uses it.

        Raises:
            RegistryError: it cannot be opened.
        """

    @abstractmethod
    def problems(self, fetch: Fetch) -> Iterator[tuple[str, str]]:
        """What the database itself finds wrong, and with what."""

    def remarks(self) -> Iterator[tuple[str, str]]:
        """What is worth knowing beside the database, and of what, though nothing of it is wrong."""
        yield from ()

    @abstractmethod
    def error(self, error: BaseException) -> RegistryError:
        """What the database said, and what to do about it."""

    @abstractmethod
    def engine(self, *, migrates: bool = False) -> Engine:
        """An engine whose transactions are whole or nothing, a writer's one after another."""

    @abstractmethod
    def migrating(self) -> AbstractContextManager[None]:
        """One process at a time; the lock goes with its process.

        Raises:
            RegistryError: the folder or the database cannot be used.
        """

    @abstractmethod
    def working(self) -> AbstractContextManager[None]:
        """One process at a time compresses, or deletes what it takes for nobody's; the lock goes with its process.

        Raises:
            BusyError: another one is at work.
            RegistryError: the folder or the database cannot be used.
        """

    @abstractmethod
    def back_up(self, revision: str) -> Path | None:
        """A copy of the database from before a migration, where the database can make one."""

    @abstractmethod
    def retire(self) -> Path | None:
        """Take the database, whose rows are elsewhere now, out of the way; where it is.

        Raises:
            RegistryError: somebody is using it.
        """

    @abstractmethod
    def expect_references(self, connection: Connection) -> None:
        """After a migration: every row that another refers to is there.

        Raises:
            RegistryError: one is gone.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Before the first tables are made in a new database.

        Raises:
            RegistryError: the folder is another database's.
        """

    @abstractmethod
    def acknowledge(self, number: int | None) -> None:
        """Remember outside the database, where it needs that, that this change of the ledger was committed.

        None forgets: a new ledger begins.
        """

    @abstractmethod
    def acknowledged(self) -> int:
        """The number of the last change that is remembered so; 0 where none is."""

    @abstractmethod
    def rebuild_indexes(self) -> None:
        """Make every index anew from its table.

        Raises:
            RegistryError: a table cannot be read, or has two rows where one may be.
        """

    @abstractmethod
    def complete(self, connection: Connection) -> None:
        """After the first tables were made, in the same transaction."""

    @abstractmethod
    def expect_folder(self, fetch: Fetch) -> None:
        """The folder, whose blobs are about to be used, is this database's: what it does not name may be deleted.

        Raises:
            RegistryError: it is another's.
        """


def rows_moved(home: Path, database: str) -> RowsMovedError:
    """What to say where rows were copied to that kind of database."""
    use, here = f"Set {DATABASE_VARIABLE} to its URL", SQLITE
    if database == "SQLite":
        use, here = f"Unset {DATABASE_VARIABLE}, in the folder that has its file", "URL"
    remedy = f"{use}; if that move was stopped, run it again. If that database is no more, and these rows are to count "
    remedy += f"again: `lorareg migrate --to {here}`, where they are."
    return RowsMovedError(home=home, database=database, remedy=remedy)


def database_url() -> str | None:
    """What LORAREG_DATABASE says."""
    return os.environ.get(DATABASE_VARIABLE) or None


def backend_of(home: Path) -> Backend:
    """The database of the registry at `home`.

    A folder has one database. With two, by a variable that was forgotten or meant for another folder, each would take
    the other's blobs for files that nobody names.

    Raises:
        RegistryError: LORAREG_DATABASE names one of another kind, or the folder has another one.
        MissingExtraError: it needs a package that is not installed.
    """
    url = database_url()
    if url is None or url.startswith(SQLITE):
        from lorareg.registry.sqlite import Sqlite

        if url is not None:
            remedy = f"Unset {DATABASE_VARIABLE}: SQLite is what a registry has without it."
            raise RegistryError(home=home, reason=f"{DATABASE_VARIABLE} names SQLite", remedy=remedy)
        if (home / POSTGRES_FILE).exists() and not (home / DATABASE_FILE).exists():
            remedy = f"Set {DATABASE_VARIABLE} to the URL of its database."
            raise RegistryError(home=home, reason="its rows are in PostgreSQL", remedy=remedy)
        return Sqlite(home)
    backend = backend_at(url, home)
    if (home / DATABASE_FILE).exists():
        reason = f"its rows are in its {DATABASE_FILE}, and {DATABASE_VARIABLE} names another database"
        remedy = f"Unset {DATABASE_VARIABLE}; `lorareg migrate --to URL` brings the rows there."
        raise RegistryError(home=home, reason=reason, remedy=remedy)
    return backend


def backend_at(url: str, home: Path) -> Backend:
    """The PostgreSQL database at a URL, or `sqlite`: the one that a folder has without any.

    Raises:
        RegistryError: it is a URL of another kind.
        MissingExtraError: psycopg is not installed.
    """
    if url == SQLITE:
        from lorareg.registry.sqlite import Sqlite

        return Sqlite(home)
    scheme = url.partition(":")[0]
    if scheme not in ("postgresql", "postgresql+psycopg", "postgres") or not url.startswith(f"{scheme}://"):
        remedy = "Use postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, or `--to sqlite` to bring rows back."
        raise RegistryError(home=home, reason=f"a database of kind {scheme!r} cannot be used", remedy=remedy)
    from lorareg.registry.postgres import Postgres

    return Postgres(home, url)
