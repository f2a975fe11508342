"""Transactions on a registry's database, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from lorareg.registry.backend import WRITES, Backend
from lorareg.registry.schema import LEDGER_NUMBER


@contextmanager
def reading(engine: Engine, backend: Backend) -> Iterator[Connection]:
    """One consistent snapshot.

    Raises:
        RegistryError: the database refused.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise backend.error(error.orig or error) from error
    except (UnicodeDecodeError, OverflowError) as error:  # what a damaged file says
        raise backend.error(error) from error


@contextmanager
def writing(engine: Engine, backend: Backend) -> Iterator[Session]:
    """One transaction that is committed whole when the block ends, or not at all; nobody else writes from its start.

    Raises:
        RegistryError: the database refused, or stayed busy.
    """
    try:
        with Session(engine.execution_options(**{WRITES: True})) as session, session.begin():
            session.connection()  # a session begins with its first statement: what is looked at before may change
            yield session
        if LEDGER_NUMBER in session.info:
            backend.acknowledge(session.info[LEDGER_NUMBER])
    except DBAPIError as error:
        raise backend.error(error.orig or error) from error
    except UnicodeDecodeError as error:  # as above
        raise backend.error(error) from error
