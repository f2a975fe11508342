"""What is PostgreSQL's alone: many writers, other machines' failures, and the way there and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lorareg.registry import postgres as postgres_module
from lorareg.registry.backend import BASE_REVISION, backend_of
from lorareg.registry.blobs import StoredBlob
from lorareg.registry.errors import MissingExtraError, NewerSchemaError, RegistryError, RegistryRefusedError
from lorareg.registry.migrate import move_schema
from lorareg.registry.peft_format import read_folder
from lorareg.registry.postgres import Postgres
from lorareg.registry.reader import Reader
from lorareg.registry.schema import Base, SettingRow
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans

MakeAdapter = Callable[..., Path]
Run = Callable[..., Any]
Raw = Callable[..., list[dict[str, Any]]]

CUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid != pg_backend_pid()
"""
"""Drops whoever else is connected."""

WRITER = """
import sys
from pathlib import Path
from lorareg.registry.store import Registry
from lorareg.registry.peft_format import read_folder
home, folder, who, times = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with Registry.open(home, create=True) as registry:
    mine = registry.ingest(read_folder(folder), name=f"task-{who}").adapter
    same = registry.ingest(read_folder(folder), name="shared").adapter
    for number in range(times):
        registry.tag(mine, f"label-{number}")
        registry.describe(mine, f"Description {number}.")
        registry.remember(f"{who}-{number}", number)
"""


@pytest.fixture
def home(tmp_path: Path, empty_postgres: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    return tmp_path / "home"


def test_many_processes_make_and_fill_one_registry(home: Path, make_adapter: MakeAdapter) -> None:
    """The first to come makes the tables, and nothing that any of them writes is lost."""
    folder, count, times = make_adapter(), 6, 20
    command = [sys.executable, "-c", WRITER, str(home), str(folder)]
    writers = [subprocess.Popen([*command, str(who), str(times)], stderr=subprocess.PIPE) for who in range(count)]
    said = [writer.communicate(timeout=120)[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * count, said
    with Registry.open(home, create=False) as registry:
        assert len(registry.adapters()) == count + 1
        assert all(len(registry.tags(registry.adapter(f"task-{who}"))) == times for who in range(count))
        settings = {f"{who}-{number}" for who in range(count) for number in range(times)}
        assert {row["name"] for row in registry.fetch("SELECT name FROM setting")} == settings
        assert not [finding for finding in registry.check(read_data=True) if finding.severity == "error"]


def test_a_writer_waits_and_then_says_so(
    home: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "BUSY_TIMEOUT_S", 1)
    with Registry.open(home, create=True) as registry, Registry.open(home, create=False) as other:
        with other.writing() as session:
            session.connection()
            assert registry.adapters() == []  # readers wait for nobody
            with pytest.raises(RegistryError, match="another process kept its database busy all the while"):
                registry.ingest(read_folder(make_adapter()), name="task")
        assert registry.ingest(read_folder(make_adapter()), name="task").kind == "new"


def test_a_snapshot_is_one_moment(home: Path, make_adapter: MakeAdapter) -> None:
    with Registry.open(home, create=True) as registry, registry.reading() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM adapter").scalar()
        registry.ingest(read_folder(make_adapter()), name="task")
        assert connection.exec_driver_sql("SELECT count(*) FROM adapter").scalar() == before == 0
        with pytest.raises(RegistryError, match="read-only transaction"), registry.reading() as reading:
            reading.exec_driver_sql("DELETE FROM adapter")


def test_a_writer_sees_what_the_writer_before_did(home: Path, empty_postgres: str) -> None:
    """Also where the database's own isolation would have it see the moment at which it began to wait."""
    import psycopg

    seen: list[object] = []
    with psycopg.connect(empty_postgres, autocommit=True) as admin:
        (name,) = admin.execute("SELECT current_database()").fetchone() or ("",)
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")

        def read() -> None:
            with Registry.open(home, create=False) as other, other.writing() as session:
                seen.append(session.get(SettingRow, "before"))

        with Registry.open(home, create=True) as registry:
            second = threading.Thread(target=read)
            with registry.writing() as session:
                session.connection()
                second.start()
                waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                while not admin.execute(waiting).fetchone():
                    time.sleep(0.01)
                registry.remember_in(session, "before", 1)
            second.join()
    assert seen[0] is not None


@pytest.mark.parametrize("password", ["very%secret", "very@secret"])
def test_a_password_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("LORAREG_DATABASE", f"postgresql+psycopg://someone:{password}@127.0.0.1:9/db")
    with pytest.raises(RegistryError, match=r"URL cannot be read.*@ as %40") as raised:
        Reader(tmp_path)
    assert "secret" not in str(raised.value)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("LORAREG_DATABASE", "postgresql+psycopg://someone:verysecret@127.0.0.1:9/db")
    for act in (lambda: Reader(tmp_path), lambda: Registry.open(tmp_path, create=True)):
        with pytest.raises(RegistryRefusedError, match=r"Connection refused.*Check that the server runs") as raised:
            act()
        assert "verysecret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert run("list", "--home", tmp_path).exit_code == 74


def test_a_server_that_goes_away(home: Path, empty_postgres: str, make_adapter: MakeAdapter) -> None:
    import psycopg

    with Registry.open(home, create=True) as registry, Reader(home) as reader:
        registry.ingest(read_folder(make_adapter()), name="task")
        with psycopg.connect(empty_postgres, autocommit=True) as admin:
            admin.execute(CUT)
        with pytest.raises(RegistryRefusedError, match="Check that the server runs"):
            reader.adapters()
        assert len(registry.adapters()) == 1  # a pool finds out by itself


def test_a_server_that_vanishes_is_noticed(home: Path, empty_postgres: str) -> None:
    """Its machine, or the network, is gone: nobody closes the connection."""
    backend = Postgres(home, f"{empty_postgres}&keepalives_idle=7")
    with closing(backend.open()) as connection:
        said = connection.info.get_parameters()
    expected = {
        "keepalives_idle": "7",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
    }
    assert {name: said[name] for name in expected} == expected


def test_who_lost_the_lock_deletes_nothing(
    home: Path, empty_postgres: str, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While gc looks at files, the server drops it, and somebody else comes to need one of them."""
    import psycopg

    with Registry.open(home, create=True) as registry, Registry.open(home, create=False) as other:
        orphan = registry.blobs.put_bytes(b"wanted after all")
        adapter = registry.ingest(read_folder(make_adapter()), name="task").adapter
        look = registry.blobs.stored

        def look_slowly(digest: str) -> StoredBlob:
            found = look(digest)
            with psycopg.connect(empty_postgres, autocommit=True) as admin:
                admin.execute(CUT)
            other.put_files(adapter, {"extras/late": b"wanted after all"})
            return found

        monkeypatch.setattr(registry.blobs, "stored", look_slowly)
        with pytest.raises(RegistryRefusedError, match="Check that the server runs"):
            delete_orphans(registry, timedelta(0))
        assert orphan in other.blobs
        assert not [finding for finding in other.check(read_data=True) if finding.severity == "error"]


def test_a_server_that_goes_away_under_who_deletes(home: Path, empty_postgres: str) -> None:
    """Its lock is gone with it: whoever writes now may need a blob that was going to be deleted."""
    import psycopg

    unlink = Path.unlink

    def cut(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        with psycopg.connect(empty_postgres, autocommit=True) as admin:
            admin.execute(CUT)

    with Registry.open(home, create=True) as registry:
        for data in (b"one", b"two", b"three"):
            registry.blobs.put_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", cut)
            with pytest.raises(RegistryRefusedError, match="Check that the server runs"):
                delete_orphans(registry, timedelta(0))
        assert len(list(registry.blobs)) == 2


def test_kinds_of_databases_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, reason in (("mysql://x/y", "'mysql' cannot be used"), ("sqlite:///x", "names SQLite")):
        monkeypatch.setenv("LORAREG_DATABASE", url)
        with pytest.raises(RegistryError, match=reason):
            Registry.open(tmp_path / "home", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rest",
    [
        "u:verysecret%zz@127.0.0.1/db",
        "u:very@secret@127.0.0.1:9/db",
        "u:very/secret@127.0.0.1:9/db",
        "u:99/secret@127.0.0.1:9/db",
        "u:verysecret@[::1/db",
        "u:very secret@127.0.0.1:9/db",
        "u:very?secret@127.0.0.1:9/db",
        "u@127.0.0.1:9/db?password=verysecret&x",
        "u:verysecret@127.0.0.1:9/db",
    ],
)
def test_no_password_is_ever_printed(rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    url = f"postgresql+psycopg://{rest}"
    home = tmp_path / "home"
    Registry.open(home, create=True).close()
    moved = run("migrate", "--to", url, "--home", home)
    monkeypatch.setenv("LORAREG_DATABASE", url)
    monkeypatch.setenv("LORAREG_DEBUG", "1")
    listed = run("list", "--home", tmp_path / "elsewhere")
    for done in (moved, listed):
        assert done.exit_code in (20, 74)
        assert "very" not in done.out + done.err
        assert "secret" not in done.out + done.err


@pytest.mark.parametrize("text", ["postgresql:u:verysecret", "u:verysecret@h/db", "mysql://u:verysecret@h/db"])
def test_no_password_of_another_kind_either(text: str, home: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("LORAREG_DATABASE", text)
    done = run("list", "--home", home)
    assert done.exit_code == 20
    assert "verysecret" not in done.err


@pytest.mark.parametrize(
    "made",
    [
        ["CREATE TABLE songs (id int)"],
        ["CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('1975ea83b712')"],
        ["CREATE TABLE alembic_version (version_num text)", "CREATE TABLE songs (id int)"],
    ],
)
def test_a_database_of_something_else_is_left_alone(home: Path, made: list[str], raw: Raw) -> None:
    for sql in made:
        raw(sql)
    for act in (lambda: Registry.open(home, create=True), lambda: Reader(home)):
        with pytest.raises(RegistryError, match=r"has tables that are not lorareg's\. Name a database of its own"):
            act()


def test_a_schema_of_its_own_will_do(home: Path, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    url = os.environ["LORAREG_DATABASE"]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE TABLE songs (id int)")
        admin.execute("CREATE SCHEMA ours")
    monkeypatch.setenv("LORAREG_DATABASE", f"{url}&options=-csearch_path%3Dours")
    with Registry.open(home, create=True) as registry, Reader(home) as reader:
        registry.ingest(read_folder(make_adapter()), name="task")
        assert reader.adapter("task").version == 1


def test_migrating_waits_for_its_turn_and_then_says_so(
    home: Path, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(postgres_module, "LOCK_TIMEOUT_S", 0.1)
    with psycopg.connect(empty_postgres, autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({postgres_module.MIGRATING_LOCK})")
        with pytest.raises(RegistryError, match="another process kept its database busy all the while"):
            Registry.open(home, create=True)


def test_a_folder_that_is_a_file(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="it is not a folder"):
        Registry.open(tmp_path / "file", create=True)


def test_a_user_who_may_only_read(home: Path, empty_postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    Registry.open(home, create=True).close()
    with psycopg.connect(empty_postgres, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS watcher")
        admin.execute("CREATE ROLE watcher LOGIN")
        admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO watcher")
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres.replace("postgres:@", "watcher@"))
    with Registry.open(home, create=False) as registry:
        assert registry.adapters() == []
        with pytest.raises(RegistryRefusedError, match=r"permission denied.*Check what its user may do"):
            registry.remember("base_model:tiny", "/models/tiny")


def test_without_the_driver(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'psycopg'.*lorareg\[postgres\]"):
        Reader(home)


def test_an_empty_database_holds_no_registry(home: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry here"):
        Reader(home)


def test_migrations_give_what_creating_gives(home: Path) -> None:
    Registry.open(home, create=True).close()
    backend = backend_of(home)
    move_schema(backend, BASE_REVISION)
    assert backend.revision() == BASE_REVISION
    Registry.open(home, create=True).close()
    move_schema(backend, "0002")
    assert Registry.migrate(home).backup is None
    with Registry.open(home, create=False) as registry, registry.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        kinds = connection.exec_driver_sql(
            "SELECT DISTINCT data_type, collation_name FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name != 'alembic_version'"
        ).all()
    assert sorted(kinds, key=str) == [("bigint", None), ("bytea", None), ("character varying", "C")]


def test_a_newer_schema_is_refused(home: Path) -> None:
    with Registry.open(home, create=True) as registry, registry.writing() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerSchemaError, match="9999"):
        Reader(home)


def test_names_are_ordered_by_their_bytes(home: Path, make_adapter: MakeAdapter) -> None:
    folder = read_folder(make_adapter())
    names = ["B", "Z-a", "a", "a.b", "a_b", "ab", "b/c", "b"]
    with Registry.open(home, create=True) as registry:
        for name in names:
            registry.ingest(folder, name=name)
        assert [adapter.name for adapter in registry.adapters()] == sorted(names)
    with Reader(home) as reader:
        assert reader.names() == sorted(names)
        assert [one.adapter.name for one in reader.newest(names)] == sorted(names)


def test_the_whole_way(
    home: Path, tmp_path: Path, sample_adapters: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that people use, on rows in PostgreSQL; what comes out is what SQLite gives."""
    url = os.environ["LORAREG_DATABASE"]
    small = tmp_path / "small"
    small.mkdir()
    for name in ("man-de", "man-nl"):
        (small / name).symlink_to(sample_adapters / name)
    for where, at in (("postgresql", home), ("sqlite", tmp_path / "sqlite")):
        if where == "sqlite":
            monkeypatch.delenv("LORAREG_DATABASE")
        for name in ("man-de", "man-nl"):
            assert run("ingest", sample_adapters / name, "--name", f"team/{name}", "--home", at).exit_code == 0
        assert run("compress", "--arch", "none", "--home", at).exit_code == 0
        assert run("tag", "team/man-nl", "stable", "--home", at).exit_code == 0
        for words in (("list",), ("show", "team/man-nl"), ("cohorts",), ("search", "German"), ("verify", "--all"),
                      ("check", "--read-data"), ("token", "create", "ci"), ("prune",)):  # fmt: skip
            assert run(*words, "--home", at).exit_code == 0, words
        assert run("replicate", tmp_path / f"copy-{where}", "--home", at).exit_code == 0
        assert run("materialize", "team/man-nl@stable", "-o", tmp_path / f"out-{where}", "--home", at).exit_code == 0
        assert run("export", "--no-originals", "-o", tmp_path / f"{where}.tar", "--home", at).exit_code == 0
    weights = [
        (tmp_path / f"out-{where}" / "adapter_model.safetensors").read_bytes() for where in ("postgresql", "sqlite")
    ]
    assert weights[0] == weights[1]
    reports = []
    for database, at in ((url, home), (None, tmp_path / "sqlite")):
        if database:
            monkeypatch.setenv("LORAREG_DATABASE", database)
        else:
            monkeypatch.delenv("LORAREG_DATABASE")
        reports.append(run("report", "--home", at, "--json").data["totals"])
    assert reports[0]["stored"]["codes"] == reports[1]["stored"]["codes"]
    assert reports[0]["original_bytes"] == reports[1]["original_bytes"]


def test_bundles_go_both_ways(
    home: Path, tmp_path: Path, make_adapter: MakeAdapter, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = os.environ["LORAREG_DATABASE"]
    with Registry.open(home, create=True) as registry:
        for seed in range(3):
            adapter = registry.ingest(read_folder(make_adapter(f"a{seed}", seed=seed)), name=f"task-{seed}").adapter
        registry.tag(adapter, "stable")
    assert run("export", "-o", tmp_path / "one.tar", "--home", home).exit_code == 0
    monkeypatch.delenv("LORAREG_DATABASE")
    assert run("import", tmp_path / "one.tar", "--home", tmp_path / "sqlite").exit_code == 0
    assert run("export", "-o", tmp_path / "two.tar", "--home", tmp_path / "sqlite").exit_code == 0
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    monkeypatch.setenv("LORAREG_DATABASE", url)
    assert run("import", tmp_path / "two.tar", "--home", home, "--json").exit_code == 0
    assert run("check", "--read-data", "--home", home).exit_code == 0


def test_reading_imports_no_sqlalchemy(home: Path, make_adapter: MakeAdapter) -> None:
    with Registry.open(home, create=True) as registry:
        registry.ingest(read_folder(make_adapter()), name="task")
    program = (
        "import json, sys; from pathlib import Path; from lorareg.registry.reader import Reader\n"
        "print(json.dumps([Reader(Path(sys.argv[1])).adapter('task').version,\n"
        "      sorted({'torch', 'sqlalchemy', 'alembic', 'numpy'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(home)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, []]
