"""Processes that were forked from one with an open registry: workers of a data loader, of a pool, of a server."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from forks import expect_done, fork, in_a_fork

from lorareg.registry.check import check
from lorareg.registry.errors import RegistryError
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

MakeAdapter = Callable[..., Path]
FORKS, TIMES = 3, 12


class suppress_in_child:  # noqa: N801, as contextlib's
    """A block that a forked process leaves as well; there it ends with it, well if the error was of this kind."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind, self.number = kind, -1

    def fork(self) -> None:
        self.number = os.fork()

    @property
    def is_child(self) -> bool:
        return self.number == 0

    def end(self) -> None:
        expect_done(self.number)

    def __enter__(self) -> suppress_in_child:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_child:
            traceback.print_exception(error)
            os._exit(0 if isinstance(error, self.kind) else 1)


def errors(lookup: Any) -> list[Any]:
    return [finding for finding in check(lookup, read_data=True) if finding.severity == "error"]


def work(registry: Registry, reader: Reader, folder: Path, who: int) -> None:
    """Write and read with what was opened before this process was forked."""
    mine = registry.ingest(read_folder(folder), name=f"task-{who}").adapter
    for number in range(TIMES):
        registry.tag(mine, f"label-{number}")
        assert reader.adapter(f"task-{who}@label-{number}") == mine
        assert len(registry.adapters()) >= 2
        assert registry.read_file(mine, "adapter_config.json") == (folder / "adapter_config.json").read_bytes()


def test_forked_processes_work_at_once_with_what_was_open(home: Path, make_adapter: MakeAdapter) -> None:
    folders = [make_adapter(f"a{number}", seed=number) for number in range(FORKS + 1)]
    with Registry.open(home, create=True) as registry, Reader(home) as reader:
        registry.ingest(read_folder(folders[0]), name="before")
        assert reader.adapter("before").version == 1
        children = [fork(lambda who=who: work(registry, reader, folders[who], who)) for who in range(1, FORKS + 1)]  # type: ignore[misc]
        work(registry, reader, folders[0], 0)
        for child in children:
            expect_done(child)
        assert len(registry.adapters()) == len(reader.adapters()) == FORKS + 2
        assert all(len(reader.tags(reader.adapter(f"task-{who}"))) == TIMES for who in range(FORKS + 1))
        assert errors(reader) == errors(registry) == []


def test_a_child_closes_what_is_its_own(home: Path, make_adapter: MakeAdapter) -> None:
    """It leaves blocks that its parent entered; the parent goes on with what it had."""
    folder = make_adapter()
    with Registry.open(home, create=True) as registry, Reader(home) as reader:
        registry.ingest(read_folder(folder), name="before")
        reader.adapter("before")

        def child() -> None:
            registry.close()
            reader.close()
            with Registry.open(home, create=False) as own, Reader(home) as mine:
                own.tag(mine.adapter("before"), "child")

        in_a_fork(child)
        assert reader.adapter("before@child") == registry.adapter("before")
        registry.tag(registry.adapter("before"), "parent")
        assert reader.adapter("before@parent") == registry.adapter("before")


def expect_refused_or(act: Callable[[], object], *, is_sqlite: bool) -> Callable[[], None]:
    """SQLite's connections cannot be told apart in a child of a process that was using one."""

    def child() -> None:
        if not is_sqlite:
            act()
            return
        with pytest.raises(RegistryError, match=r"was forked from one that was reading or writing.*spawn"):
            act()

    return child


def test_a_fork_while_another_thread_writes(home: Path, make_adapter: MakeAdapter) -> None:
    """The transaction is the parent's, and is committed there; the child waits for its turn, or is refused."""
    folder = make_adapter()
    with Registry.open(home, create=True) as registry, Reader(home) as reader:
        adapter = registry.ingest(read_folder(folder), name="before").adapter
        begun, goes_on = threading.Event(), threading.Event()

        def write() -> None:
            with registry.writing() as session:
                registry.remember_in(session, "parent", 1)
                session.flush()
                begun.set()
                goes_on.wait(30)

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait(30)
        is_sqlite = registry.backend.name == "SQLite"
        writes = fork(expect_refused_or(lambda: registry.tag(adapter, "child"), is_sqlite=is_sqlite))
        reads = fork(expect_refused_or(lambda: reader.adapter("before"), is_sqlite=is_sqlite))
        opens = fork(expect_refused_or(lambda: Registry.open(home, create=False), is_sqlite=is_sqlite))
        goes_on.set()
        thread.join()
        for child in (writes, reads, opens):
            expect_done(child)
        assert registry.setting("parent") == reader.setting("parent") == 1
        assert [tag.label for tag in registry.tags(adapter)] == ([] if is_sqlite else ["child"])
        assert errors(registry) == []


def test_a_fork_within_a_transaction(home: Path, make_adapter: MakeAdapter) -> None:
    """What is left of it in the child commits nothing, and takes nothing back."""
    with Registry.open(home, create=True) as registry:
        adapter = registry.ingest(read_folder(make_adapter()), name="before").adapter
        with suppress_in_child(RegistryError) as own, registry.writing() as session:
            registry.remember_in(session, "parent", 1)
            session.flush()
            own.fork()
            registry.remember_in(session, "child" if own.is_child else "parent", 2)
        own.end()
        assert registry.setting("parent") == 2
        assert registry.setting("child") is None
        assert registry.tag(adapter, "after").label == "after"
        assert errors(registry) == []
