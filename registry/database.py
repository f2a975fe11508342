"""The registry's SQLAlchemy engine: durable, patient, and with explicit transactions.

sqlite3's own transaction handling is switched off (`isolation_level=None`); the engine's `begin`
event opens every transaction by hand, with BEGIN IMMEDIATE for writers, so that a writer waits for
its turn at the start instead of failing in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from lorareg.registry.home import BUSY_TIMEOUT_S, DATABASE_FILE
from lorareg.registry.revision import database_error

_WRITES = "lorareg_writes"


def create_registry_engine(home: Path, *, foreign_keys: bool = True) -> Engine:
    """An engine on the database at `home`; migrations alone switch foreign keys off."""
    engine = create_engine(
        URL.create("sqlite", database=str(home / DATABASE_FILE)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def reading(engine: Engine, home: Path) -> Iterator[Connection]:
    """One consistent snapshot.

    Raises:
        RegistryError: the database refused.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise database_error(home, error.orig or error) from error


@contextmanager
def writing(engine: Engine, home: Path) -> Iterator[Session]:
    """One transaction that is committed whole when the block ends, or not at all.

    Raises:
        RegistryError: the database refused, or stayed busy.
    """
    try:
        with Session(engine.execution_options(**{_WRITES: True})) as session, session.begin():
            yield session
    except DBAPIError as error:
        raise database_error(home, error.orig or error) from error
