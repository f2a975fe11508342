"""Decoding and encoding in processes that were forked from one that did both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from forks import expect_done, fork

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import materialize, restore_present
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

FORKS = 3


def test_forked_processes_decode_and_encode(registry: Registry, add_group: Callable[..., None], tmp_path: Path) -> None:
    """With the generator that their parent has unpacked, and numpy's threads, which stayed behind."""
    names = ("a", "b", "c", "d")
    add_group(registry, *names)
    compress(registry, (), CompressOptions(arch="mean"), Silent())
    with Reader(registry.home) as reader:
        given = {name: restore_present(reader, reader.adapter(name)) for name in names}

        def child(number: int) -> None:
            for name in names:
                assert restore_present(reader, reader.adapter(name)) == given[name]
                materialize(registry.home, name, tmp_path / f"{name}-{number}")
            if number == 0:
                compress(registry, (), CompressOptions(Contract(tolerance=0.0), arch="none"), Silent())

        children = [fork(lambda number=number: child(number)) for number in range(1, FORKS)]  # type: ignore[misc]
        for one in children:
            expect_done(one)
        expect_done(fork(lambda: child(0)))
        for name in names:
            adapter = reader.adapter(name)
            original = registry.read_file(adapter, "adapter_model.safetensors")
            assert restore_present(reader, adapter) == original != given[name]
