"""Who reads while adapters are encoded anew, and what they were before is let go of, is told what is there now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.compress import materialize as materialize_module
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs import prune as prune_module
from lorareg.compress.proofs import verify as verify_module
from lorareg.compress.proofs.prune import prune
from lorareg.compress.proofs.verify import check_encodings, verify
from lorareg.registry import bundle as bundle_module
from lorareg.registry import check as check_module
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.sweep import sweep

NO_GRACE = timedelta(0)


def verify_here(home: Path, refs: list[str]) -> list[dict[str, Any]]:
    with Registry.open(home, create=False) as registry:
        return [verify(registry, registry.adapter(ref)).to_dict() for ref in refs]


class Meanwhile:
    """Encodes everything anew and lets go of what was there before, when it is called for the first time."""

    def __init__(self, home: Path) -> None:
        self.home, self.went, self.is_done = home, 0, False

    def __call__(self) -> None:
        if self.is_done:
            return
        self.is_done = True
        with Registry.open(self.home, create=False) as registry:
            compress(registry, (), CompressOptions(Contract(tolerance=0.1), arch="none"), Silent())
            prune(registry, Silent())
            self.went = len(sweep(registry, NO_GRACE).deleted)


@pytest.fixture
def coded(registry: Registry, add_group: Callable[..., None]) -> Registry:
    add_group(registry, "a", "b")
    compress(registry, (), CompressOptions(Contract(tolerance=0.3), arch="none"), Silent())
    return registry


@pytest.fixture
def meanwhile(coded: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meanwhile]:
    monkeypatch.setattr(prune_module, "_verify_cold", verify_here)
    others = Meanwhile(coded.home)
    yield others
    assert others.went == 4, "two originals and two older codes"


def before(act: Callable[[], None], of: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does something else first."""

    def function(*arguments: Any, **named: Any) -> Any:
        act()
        return of(*arguments, **named)

    return function


def test_what_is_materialized_is_what_is_there_now(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(materialize_module, "restore", before(meanwhile, materialize_module.restore))
    done = materialize(coded.home, "a", tmp_path / "out")
    encoding = coded.encoding(coded.adapter("a").id)
    assert encoding is not None
    assert done.output_digest == encoding.output_digest
    assert json.loads(encoding.tolerance) == {"relative_error": 0.1}


def test_what_is_verified_is_what_is_there_now(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = verify_module.restore_weights
    monkeypatch.setattr(verify_module, "restore_weights", before(meanwhile, restore))
    verdict = verify(coded, coded.adapter("a"))
    assert (verdict.problems, verdict.original) == ([], "pruned")


def test_codes_that_are_checked_are_those_that_are_there_now(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize_module, "restore_weights", before(meanwhile, materialize_module.restore_weights))
    assert list(check_encodings(coded)) == []


@pytest.mark.parametrize("step", ["every_row", "named_blobs", "_unclear_problems", "_content_problems"])
def test_a_check_finds_nothing_wrong_with_what_others_do(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(check_module, step, before(meanwhile, getattr(check_module, step)))
    with Reader(coded.home) as reader:
        assert [one for one in check_module.check(reader, read_data=True) if one.severity == "error"] == []


def test_a_check_is_of_one_moment(
    registry: Registry, add_group: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come between one table and the next would refer to others that were not seen."""
    every_row, asked = check_module.every_row, []

    def ingest_between(table: str) -> str:
        asked.append(table)
        with Registry.open(registry.home, create=False) as other:
            add_group(other, f"task-{len(asked)}")
        return every_row(table)

    monkeypatch.setattr(check_module, "every_row", ingest_between)
    for lookup in (registry, Reader(registry.home)):
        with lookup:
            assert list(check_module.check(lookup, read_data=False)) == []
    assert len(asked) > 20


def test_a_plan_is_of_one_moment(
    coded: Registry, add_group: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorareg.registry import prune as plan_module

    every_row, asked = plan_module.every_row, []

    def encode_between(table: str) -> str:
        asked.append(table)
        with Registry.open(coded.home, create=False) as other:
            add_group(other, f"task-{len(asked)}")
            for tolerance in (0.1, 0.2):
                compress(other, (), CompressOptions(Contract(tolerance=tolerance), arch="none"), Silent())
        return every_row(table)

    monkeypatch.setattr(plan_module, "every_row", encode_between)
    assert {blob.what for blob in prune_module.plan_of(coded).fresh} <= {"a@1", "b@1"}


@pytest.mark.parametrize("step", ["make_bundle", "write_bundle"])
def test_what_is_exported_is_whole(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    from lorareg.cli.export import export
    from lorareg.cli.import_ import import_bundle

    if step == "make_bundle":
        numbered = bundle_module._Numbered
        rows = numbered._rows

        def between(self: Any, table: str, column: str, value: object) -> Any:
            if table == "encoding":
                meanwhile()
            return rows(self, table, column, value)

        monkeypatch.setattr(numbered, "_rows", between)
    else:
        monkeypatch.setattr(bundle_module, step, before(meanwhile, bundle_module.write_bundle))
    export([], [], tmp_path / "bundle.tar", home=coded.home, quiet=True)
    import_bundle(tmp_path / "bundle.tar", home=tmp_path / "other", quiet=True)
    with Registry.open(tmp_path / "other", create=False) as other:
        assert [one for one in other.check(read_data=True) if one.severity == "error"] == []
        for name in ("a", "b"):
            here, there = (one.encoding(one.adapter(name).id) for one in (coded, other))
            assert here is not None
            assert there is not None
            assert here.output_digest == there.output_digest


def test_a_second_copy_is_made_of_what_is_there_now(
    coded: Registry, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lorareg.registry import replicate as replicate_module

    snapshot = replicate_module._snapshot

    def then_others(*arguments: Any) -> Any:
        found = snapshot(*arguments)
        meanwhile()
        return found

    monkeypatch.setattr(replicate_module, "_snapshot", then_others)
    replicate_module.replicate(coded, str(tmp_path / "copy"), True, lambda _: None)
    with Registry.open(tmp_path / "copy", create=False) as copy:
        assert [one for one in copy.check(read_data=True) if one.severity == "error"] == []
        assert list(check_encodings(copy)) == []
