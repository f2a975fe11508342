"""Every registry once in PostgreSQL and once in SQLite, and a server of the S3 protocol with a proxy before it."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import s3_server


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a registry may be made, its rows here or in PostgreSQL."""
    if request.param == "postgresql":
        monkeypatch.setenv("LORAREG_DATABASE", request.getfixturevalue("empty_postgres"))
    return tmp_path / "home"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about SQLite's file is not tried on PostgreSQL."""
    items[:] = [one for one in items if not (one.get_closest_marker("sqlite_alone") and "postgresql" in one.name)]


@pytest.fixture(scope="session")
def proxied() -> Iterator[tuple[str, Any]]:
    """The URL of a server of the S3 protocol, and what goes wrong on the way to it."""
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto, a server of the S3 protocol, is not installed")
    with s3_server.s3_server() as (host, port), s3_server.proxy(host, port) as found:
        yield found


@pytest.fixture
def faults(proxied: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `proxied`, with the variables that lead there, and nothing going wrong."""
    url, faults = proxied
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    faults.waiting.clear()
    faults.happened.clear()
    faults.seen.clear()
    return faults


@pytest.fixture
def url(faults: Any) -> str:
    """Of a store that nothing is in."""
    return f"s3://bucket/{uuid.uuid4().hex}"


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
