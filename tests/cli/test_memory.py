"""Ten times the adapters, and not twice the memory: commands that look at every row hold a few of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorareg.cli.report_html import render
from lorareg.compress.proofs.verify import check_encodings
from lorareg.registry.check import check, expect_sound_rows
from lorareg.registry.damage import Damage
from lorareg.registry.ledger import sums_of
from lorareg.registry.reader import Reader
from lorareg.registry.report import build_report
from lorareg.registry.rows import row_digest
from lorareg.registry.schema import AdapterFileRow, AdapterRow, EncodingRow, record_changes
from lorareg.registry.store import Registry
from lorareg.registry.types import CONFIG_FILE, WEIGHTS_FILE, canonical_json, sha256_hex

FEW, MANY = 150, 1500


@pytest.fixture
def grown(encoded_home: Path) -> Callable[[int], Path]:
    """A registry with so many adapters that are intact, each with weights, a code and blobs of its own."""
    blobs = Registry.open(encoded_home, create=False).blobs

    def blob(text: str) -> dict[str, Any]:
        data = text.encode()
        path = blobs.path(sha256_hex(data))  # type: ignore[attr-defined]
        path.write_bytes(data)
        return {"sha256": path.parent.name + path.name, "size_bytes": len(data)}

    def grow(count: int) -> Path:
        with Registry.open(encoded_home, create=False) as registry, registry.writing() as session:
            connection = session.connection()
            [first], [code] = (
                registry.fetch(f"SELECT * FROM {table} WHERE id = 1") for table in ("adapter", "encoding")
            )
            config = next(one for one in registry.files(registry.adapters()[0]) if one.path == CONFIG_FILE)
            rows: dict[Any, list[dict[str, Any]]] = {AdapterRow: [], AdapterFileRow: [], EncodingRow: []}
            for number in range(len(registry.adapters()) + 1, count + 1):
                weights = blob(f"weights {number}")
                files = [[CONFIG_FILE, config.sha256], [WEIGHTS_FILE, weights["sha256"]]]
                digest = sha256_hex(canonical_json(files).encode())
                rows[AdapterRow].append({**first, "id": number, "name": f"made-up/{number:05}", "digest": digest})
                of_config = {"sha256": config.sha256, "size_bytes": config.size_bytes}
                for path, what in ((CONFIG_FILE, of_config), (WEIGHTS_FILE, weights)):
                    rows[AdapterFileRow].append({"adapter_id": number, "path": path, **what})
                own = {"id": 1000 + number, "adapter_id": number, "superseded_at": None, **blob(f"code {number}")}
                rows[EncodingRow].append({**code, **own, "generator_id": None})
            for model, several in rows.items():
                for values in several:
                    values["row_digest"] = row_digest(model.__tablename__, values)
                connection.execute(model.__table__.insert(), several)
            record_changes(connection, sums_of({model.__tablename__: several for model, several in rows.items()}))
        return encoded_home

    return grow


def listed(reader: Reader, _: Registry) -> int:
    return sum(len(page) for page in reader.pages(Damage()))


def checked(reader: Reader, _: Registry) -> int:
    expect_sound_rows(reader)
    assert [found for found in check(reader, read_data=True) if found.severity == "error"] == []
    return sum(1 for _ in check_encodings(reader))  # their codes are made up


def reported(_: Reader, registry: Registry) -> int:
    with registry.reading() as connection:
        return sum(1 for _ in build_report(connection, registry).adapters)


def drawn(_: Reader, registry: Registry) -> int:
    with registry.reading() as connection:
        built = build_report(connection, registry)
        render(built)
        return built.totals.adapters


@pytest.mark.parametrize("walk", [listed, checked, reported, drawn])
def test_memory_does_not_grow_with_the_registry(
    grown: Callable[[int], Path], walk: Callable[[Reader, Registry], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ("cli.report_html.MAX_ROWS", "cli.report_html.MAX_POINTS", "registry.listings.ROWS_A_PAGE")
    for bound in (*held, "registry.sqlite_rows.ROWS_AT_ONCE", "registry.report_queries.ROWS_AT_ONCE"):
        monkeypatch.setattr(f"lorareg.{bound}", 50)
    peaks = []
    for count in (FEW, MANY):
        with Reader(grown(count)) as reader, Registry.open(reader.home, create=False) as registry:
            walk(reader, registry)  # what is made once, for all
            tracemalloc.start()
            assert walk(reader, registry) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
