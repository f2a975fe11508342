"""A registry's rows in PostgreSQL, for many writers on many machines.

Writers come one after another, by an advisory lock that goes with their transaction: what they decide rests on rows
that nobody else is changing, exactly as in SQLite. Readers see one snapshot and wait for nobody. Text is compared by
its bytes (COLLATE "C"), so that lists have one order everywhere. Copies of the database are pg_dump's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorareg.registry.backend import BASE_REVISION, WRITES, Backend, Fetch
from lorareg.registry.errors import MissingExtraError, RegistryError, RegistryRefusedError
from lorareg.registry.home import BUSY_TIMEOUT_S

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

CONNECT_TIMEOUT_S = 10
WRITING_LOCK, MIGRATING_LOCK = 0x6C6F7261, 0x6C6F7262  # "lora", and the number after it
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")
_UNREADABLE = re.compile(r"@.*@|%(?![0-9a-fA-F]{2})")
_LOCKED = ("55P03", "57014")
_FULL = ("53100", "53200")


class PostgresRows:
    """A connection that reads, in a session that refuses to write."""

    def __init__(self, backend: Postgres) -> None:
        self._backend = backend
        self._connection = backend.open()
        self._connection.execute("SET default_transaction_read_only = on")

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        from psycopg.rows import dict_row

        psycopg_sql = _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))
        try:
            with self._connection.cursor(row_factory=dict_row) as cursor:
                return list(cursor.execute(psycopg_sql, dict(parameters)).fetchall())
        except self._backend.errors as error:
            raise self._backend.error(error) from error

    def close(self) -> None:
        self._connection.close()


class Postgres(Backend):
    """A database of a PostgreSQL server; the search path's first schema has the tables."""

    name = "PostgreSQL"
    statistics = "ANALYZE"
    size_query = (
        "SELECT CAST(COALESCE(SUM(pg_total_relation_size(c.oid)), 0) AS BIGINT) AS n FROM pg_class c "
        "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
    )

    def __init__(self, home: Path, url: str) -> None:
        """Name it; nothing is asked of it yet.

        Raises:
            MissingExtraError: psycopg is not installed.
        """
        super().__init__(home)
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError(feature="PostgreSQL", package="psycopg", extra="postgres") from error
        self.url = "postgresql://" + url.partition("://")[2]
        self.errors = psycopg.Error

    def is_there(self) -> bool:
        return self.revision() != BASE_REVISION

    def revision(self) -> str:
        with closing(self.connect()) as rows:
            (there,) = rows.fetch("SELECT to_regclass('alembic_version') IS NOT NULL AS there", {})
            if not there["there"]:
                return BASE_REVISION
            found = rows.fetch("SELECT version_num FROM alembic_version", {})
        return str(found[0]["version_num"]) if found else BASE_REVISION

    def connect(self) -> PostgresRows:
        return PostgresRows(self)

    def open(self) -> Any:
        """A connection whose statements are transactions of their own.

        Raises:
            RegistryError: the server does not answer, or refuses, or the URL is none.
        """
        import psycopg

        # libpq's own message quotes what it cannot read, and that is in the password.
        if _UNREADABLE.search(self.url.partition("?")[0]):
            remedy = "Write what is special in its password as %XX: @ as %40, % as %25, / as %2F."
            raise RegistryError(home=self.home, reason="the database's URL cannot be read", remedy=remedy)
        try:
            return psycopg.connect(self.url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        except psycopg.Error as error:
            raise self.error(error) from error

    def problems(self, fetch: Fetch) -> Iterator[tuple[str, str]]:
        """None: PostgreSQL holds rows to their references itself, and its pages to checksums where it is set up so."""
        return iter(())

    def error(self, error: BaseException) -> RegistryError:
        state = getattr(error, "sqlstate", None)
        said = " ".join(str(error).split()) or type(error).__name__
        kind: type[RegistryError] = RegistryError
        if state in _LOCKED:
            remedy = f"Another process has been writing for {BUSY_TIMEOUT_S:.0f} s; try again when it is done."
        elif state in _FULL:
            remedy, kind = "Free some space on the database's server; nothing was half written.", RegistryRefusedError
        elif state is None or state.startswith(("08", "57P", "28", "3D")):
            remedy, kind = (
                "Check that the server runs, LORAREG_DATABASE, and the network; then run the same command again.",
                RegistryRefusedError,
            )
        else:
            remedy = "Nothing was recorded. Run `lorareg check`."
        return kind(home=self.home, reason=f"the database says: {said}", remedy=remedy)

    def engine(self, *, migrates: bool = False) -> Engine:
        from sqlalchemy import create_engine, event

        engine = create_engine(
            "postgresql+psycopg" + self.url.removeprefix("postgresql"),
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            pool_pre_ping=True,
        )

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get(WRITES, False):
                # Whatever the database's own is: a snapshot from before the lock would miss what the writer before did.
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S:.0f}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITING_LOCK})")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

        return engine

    @contextmanager
    def migrating(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with closing(self.open()) as connection:
            try:
                connection.execute(f"SELECT pg_advisory_lock({MIGRATING_LOCK})")
            except self.errors as error:
                raise self.error(error) from error
            yield

    def prepare(self) -> None:
        """Nothing: whoever made the database has set it up."""

    def back_up(self, revision: str) -> None:
        return None

    def expect_references(self, connection: Connection) -> None:
        """PostgreSQL has held every row to them all along."""
