"""What the report and `gc` take for nobody's: by merging two sorted lists, as by comparing sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lorareg.registry import report_queries
from lorareg.registry.blobs import StoredBlob
from lorareg.registry.peft_format import read_folder
from lorareg.registry.report_queries import orphan_bytes, referenced_digests
from lorareg.registry.store import Registry


@pytest.mark.parametrize("at_once", [1, 3, 5000])
def test_orphans_are_what_no_row_names(
    registry: Registry, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(report_queries, "ROWS_AT_ONCE", at_once)
    for seed in range(3):
        registry.ingest(read_folder(make_adapter(f"of-{seed}", seed=seed)), name=f"of-{seed}")
    for number in range(20):
        registry.blobs.put_bytes(b"nobody's" * (number + 1))
    listed = list(registry.blobs.listed())
    with registry.reading() as connection:
        named = referenced_digests(connection)
        assert 3 < len(named) < len(listed)
        for seed in range(10):
            some = [blob for blob in listed if random.Random(f"{seed} {blob.sha256}").random() < 0.5]
            some += [StoredBlob("f" * 64, 7, 0.0)] * (seed % 2)
            expected = sum(blob.size_bytes for blob in some if blob.sha256 not in named)
            assert orphan_bytes(connection, some) == expected
        assert orphan_bytes(connection, []) == 0
