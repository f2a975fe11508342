"""A registry's rows in PostgreSQL, for many writers on many machines.

Writers come one after another, by an advisory lock that goes with their transaction: what they decide rests on rows
that nobody else is changing, exactly as in SQLite. Readers see one snapshot and wait for nobody. Text is compared by
its bytes (COLLATE "C"), so that lists have one order everywhere. Copies of the database are pg_dump's business.

Blobs in a folder belong to one database. It has a number, as the comment on a table, which dumps keep and rows do not
know; the folder has it in a file.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorareg.registry.backend import BASE_REVISION, KEPT_BUSY, ROWS_AT_ONCE, TRY_AGAIN, WRITES, Backend, Fetch
from lorareg.registry.errors import (
    BlobsElsewhereError,
    BusyError,
    LockedError,
    LoraregError,
    MissingExtraError,
    RegistryError,
    RegistryRefusedError,
)
from lorareg.registry.files import sync_file, sync_folder
from lorareg.registry.folder_blobs import FolderBlobs
from lorareg.registry.forks import at_fork
from lorareg.registry.home import (
    BLOBS_FOLDER,
    BUSY_TIMEOUT_S,
    DATABASE_FILE,
    DATABASE_VARIABLE,
    LOCK_TIMEOUT_S,
    POSTGRES_FILE,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

CONNECT_TIMEOUT_S = 10
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""What a URL does not say. A server that is gone without a word is noticed within a minute, not in two hours."""

WRITING_LOCK, MIGRATING_LOCK, WORKING_LOCK = 0x6C6F7261, 0x6C6F7262, 0x6C6F7263  # "lora", and the numbers after it
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")
_REVISION = re.compile(r"[0-9]{4}")
_NUMBER = re.compile(r"[0-9a-f]{32}")
_LOCKED = ("55P03", "57014")
_FULL = ("53100", "53200")
_FORBIDDEN = ("25006", "42501")


class PostgresRows:
    """A connection that reads, in a session that refuses to write."""

    def __init__(self, backend: Postgres) -> None:
        self._backend = backend
        self._open()

    def _open(self) -> None:
        self._connection, self._process = self._backend.open("SET default_transaction_read_only = on"), os.getpid()

    def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        from psycopg.rows import dict_row

        if self._process != os.getpid():
            self._open()
        try:
            with self._connection.cursor(row_factory=dict_row) as cursor:
                return list(cursor.execute(_in_psycopg(sql), dict(parameters)).fetchall())
        except self._backend.errors as error:
            raise self._backend.error(error) from error

    def stream(self, sql: str, parameters: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
        from psycopg.rows import dict_row

        name = f"stream_{os.urandom(8).hex()}"  # one with a name stays at the server, which gives its rows as asked
        try:
            with self._connection.cursor(name, row_factory=dict_row) as cursor:
                cursor.itersize = ROWS_AT_ONCE
                yield from cursor.execute(_in_psycopg(sql), dict(parameters))
        except self._backend.errors as error:
            raise self._backend.error(error) from error

    def freeze(self) -> None:
        try:
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            self._connection.execute("SELECT 1")  # a transaction begins with its first look
        except self._backend.errors as error:
            raise self._backend.error(error) from error

    def close(self) -> None:
        self._connection.close()


def _in_psycopg(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


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
            RegistryError: the URL cannot be read.
        """
        super().__init__(home)
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            raise MissingExtraError(feature="PostgreSQL", package="psycopg", extra="postgres") from error
        self.url = "postgresql://" + url.partition("://")[2]
        self.errors = psycopg.Error
        try:
            self._parts = parts = conninfo_to_dict(self.url)
            is_clear = not any("@" in str(parts.get(key, "")) for key in ("host", "port", "dbname"))
        except psycopg.Error:
            is_clear = False
        if not is_clear:
            # What libpq says of such a URL quotes it, and with it the password; so it is not even kept as a cause.
            form = "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
            remedy = f"Use {form}; write what is special in names and passwords as %XX: @ as %40, % as %25, / as %2F."
            raise RegistryError(home=home, reason="the database's URL cannot be read", remedy=remedy)

    @property
    def place(self) -> str:
        return self.url

    def is_there(self) -> bool:
        return self.revision() != BASE_REVISION

    def revision(self) -> str:
        with closing(self.connect()) as rows:
            found = rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()", {})
            tables = {row["tablename"] for row in found}
            versions = rows.fetch("SELECT version_num FROM alembic_version", {}) if "alembic_version" in tables else []
        version = str(versions[0]["version_num"]) if versions else None
        if _REVISION.fullmatch(version or "") is None and (version or tables - {"alembic_version"}):
            reason = "the database has tables that are not lorareg's"
            remedy = "Name a database of its own, or a schema: ...?options=-csearch_path%3DNAME."
            raise RegistryError(home=self.home, reason=reason, remedy=remedy)
        return version or BASE_REVISION

    def connect(self) -> PostgresRows:
        return PostgresRows(self)

    def open(self, *statements: str) -> Any:
        """A connection whose statements are transactions of their own, after these.

        Raises:
            RegistryError: the server does not answer, or refuses.
        """
        try:
            with ExitStack() as until_ready:
                connection = until_ready.enter_context(closing(self._connect(autocommit=True)))
                for statement in statements:
                    connection.execute(statement)
                until_ready.pop_all()
        except self.errors as error:
            raise self.error(error) from error
        return connection

    def _connect(self, **options: Any) -> Any:
        import psycopg

        options |= {name: value for name, value in KEEPALIVES.items() if name not in self._parts}
        connection = psycopg.connect(self.url, connect_timeout=CONNECT_TIMEOUT_S, **options)
        at_fork(connection, lambda _: None, _cut_off)
        return connection

    def problems(self, fetch: Fetch) -> Iterator[tuple[str, str]]:
        """None: it holds its pages to checksums itself, where it is set up so."""
        return iter(())

    def error(self, error: BaseException) -> RegistryError:
        state = getattr(error, "sqlstate", None)
        said = " ".join(str(error).split()) or type(error).__name__
        kind: type[RegistryError] = RegistryError
        if state in _LOCKED:
            return LockedError(home=self.home, reason=KEPT_BUSY, remedy=TRY_AGAIN)
        if state in _FULL:
            remedy, kind = "Free some space on the database's server; nothing was half written.", RegistryRefusedError
        elif state is None or state.startswith(("08", "57P", "28", "3D")):
            remedy, kind = (
                "Check that the server runs, LORAREG_DATABASE, and the network; then run the same command again.",
                RegistryRefusedError,
            )
        elif state in _FORBIDDEN:
            remedy, kind = "Nothing was recorded. Check what its user may do there.", RegistryRefusedError
        else:
            remedy = "Nothing was recorded. Run `lorareg check`."
        return kind(home=self.home, reason=f"the database says: {said}", remedy=remedy)

    def engine(self, *, migrates: bool = False) -> Engine:
        """Connections are made here, so that libpq alone reads the URL, the same for whoever reads and writes."""
        from sqlalchemy import create_engine, event

        engine = create_engine("postgresql+psycopg://", creator=self._connect, pool_pre_ping=True)
        at_fork(engine, lambda _: None, lambda engine: engine.dispose(close=False))

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get(WRITES, False):
                # Whatever the database's own is: a snapshot from before the lock would miss what the writer before did.
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S:.0f}s'")
                # Who moves blobs asks the database nothing meanwhile, and must not lose the lock over it.
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITING_LOCK})")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

        return engine

    @contextmanager
    def migrating(self) -> Iterator[None]:
        self.make_home()
        with self._locked(MIGRATING_LOCK, LOCK_TIMEOUT_S):
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._locked(WORKING_LOCK, BUSY_TIMEOUT_S, BusyError(home=self.home, waited_s=BUSY_TIMEOUT_S)):
            yield

    @contextmanager
    def _locked(self, number: int, timeout_s: float, busy: LoraregError | None = None) -> Iterator[None]:
        """An advisory lock of a connection; `busy` is raised where another process has it all the while."""
        with closing(self.open(f"SET lock_timeout = '{timeout_s * 1000:.0f}ms'")) as connection:
            try:
                connection.execute(f"SELECT pg_advisory_lock({number})")
            except self.errors as error:
                found = self.error(error)
                raise busy if busy is not None and isinstance(found, LockedError) else found from error
            yield

    def prepare(self) -> None:
        # Beside rows in SQLite, which `migrate --to` alone comes to, the blobs are theirs and come along.
        has_rows = (self.home / DATABASE_FILE).exists()
        if self._number() and not has_rows and any(FolderBlobs(self.home / BLOBS_FOLDER).listed()):
            raise self._not_together("Name the database that it had, or another folder.")
        if not self._number():
            path = self.home / POSTGRES_FILE
            path.write_text(f"{uuid.uuid4().hex}\n")
            sync_file(path)
            sync_folder(self.home)

    def complete(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS '{self._number()}'")

    def expect_folder(self, fetch: Fetch) -> None:
        (row,) = fetch("SELECT obj_description(to_regclass('alembic_version'), 'pg_class') AS number")
        expected, found = row["number"], self._number()
        if expected is None:
            say = f"COMMENT ON TABLE alembic_version IS '{found or 'NUMBER'}'"
            reason = (
                "its database has lost the number of the folder that has its blobs, as a dump without comments does"
            )
            remedy = f"Have the database run: {say}, with the number in that folder's file {POSTGRES_FILE}."
            raise BlobsElsewhereError(home=self.home, reason=reason, remedy=remedy)
        from_a_copy = f"A folder that was brought back from a copy needs {expected} in its file {POSTGRES_FILE}."
        if found is None:
            reason = "the blobs of its database are in another folder, that of the machine where the registry was made"
            remedy = (
                "Have them where every machine reaches them: there, run `lorareg migrate --store s3://bucket/prefix`; "
            )
            remedy += f"or share that folder, and name it with --home. {from_a_copy}"
            raise BlobsElsewhereError(home=self.home, reason=reason, remedy=remedy)
        if found != expected:
            raise self._not_together(f"Name the two that do. {from_a_copy}")

    def _number(self) -> str | None:
        """What the folder says is the number of its database."""
        path = self.home / POSTGRES_FILE
        found = path.read_text(errors="replace").strip() if path.is_file() else ""
        return found if _NUMBER.fullmatch(found) else None

    def _not_together(self, remedy: str) -> BlobsElsewhereError:
        reason = f"its blobs are not those of the database that {DATABASE_VARIABLE} names"
        return BlobsElsewhereError(home=self.home, reason=reason, remedy=remedy)

    def back_up(self, revision: str) -> None:
        return None

    def retire(self) -> None:
        return None

    def acknowledge(self, number: int | None) -> None:
        """Nothing: the server keeps its own log, and may be another machine's."""

    def acknowledged(self) -> int:
        return 0

    def rebuild_indexes(self) -> None:
        """Nothing: whether they need it is amcheck's business."""

    def expect_references(self, connection: Connection) -> None:
        """PostgreSQL has held every row to them all along."""


def _cut_off(connection: Any) -> None:
    """In a forked process: what it inherited leads nowhere, so that nothing it says is taken for its parent's."""
    if not connection.closed:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, connection.pgconn.socket)
        os.close(nowhere)
