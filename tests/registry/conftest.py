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


@pytest.fixture(params=["sqlite", "postgresql", "postgresql-s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a registry may be made: rows and blobs here, rows in PostgreSQL, or those and blobs in an object store."""
    if request.param != "sqlite":
        monkeypatch.setenv("LORAREG_DATABASE", request.getfixturevalue("empty_postgres"))
    if request.param == "postgresql-s3":
        request.getfixturevalue("s3")
        monkeypatch.setenv("LORAREG_STORE", f"s3://bucket/{uuid.uuid4().hex}")
    return tmp_path / "home"


FOLDER_ALONE = frozenset(
    {
        "test_blob_stores",
        "test_blobs",
        "test_forks",  # after which no store is used
        "test_lookup",
        "test_migrations",
        "test_object_blobs",
        "test_tokens",
    }
)
"""Files with nothing about the blobs of a registry, or much about where they are."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about SQLite's file is not tried on PostgreSQL, what is about the folder of blobs not on S3."""

    def is_tried(one: pytest.Item) -> bool:
        if one.get_closest_marker("sqlite_alone") and "postgresql" in one.name:
            return False
        is_about_folder = one.path.stem in FOLDER_ALONE or one.get_closest_marker("folder_alone")
        return not (is_about_folder and "postgresql-s3" in one.name)

    items[:] = [one for one in items if is_tried(one)]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a server of the S3 protocol."""
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto, a server of the S3 protocol, is not installed")
    with s3_server.s3_server() as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3_endpoint`, with the variables that lead there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return s3_endpoint


@pytest.fixture(scope="session")
def proxied(s3_endpoint: str) -> Iterator[tuple[str, Any]]:
    """The URL of a proxy to it, and what goes wrong on the way."""
    host, _, port = s3_endpoint.removeprefix("http://").partition(":")
    with s3_server.proxy(host, int(port)) as found:
        yield found


@pytest.fixture
def faults(s3: str, proxied: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What goes wrong on the way, with the variables that lead there; nothing as yet."""
    url, faults = proxied
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
