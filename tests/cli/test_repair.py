"""`check --repair`: damage of every kind is mended from what there is, and what cannot be is named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import small_registry

from lorareg.compress import repair as repair_module
from lorareg.compress.materialize import restore_weights
from lorareg.registry.errors import BusyError, LoraregError, NewerFormatError, StoreError
from lorareg.registry.home import DATABASE_FILE
from lorareg.registry.reader import Reader
from lorareg.registry.replicate import replicate
from lorareg.registry.store import Registry
from lorareg.registry.types import CARD_FILE, WEIGHTS_FILE, sha256_hex

pytest.importorskip("torch")

NAMES = ("one@1", "one@2", "two", "three", "four", "exact", "raw")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry, `home`, and a second copy that it does not know, `copy`."""
    folder = tmp_path_factory.mktemp("made")
    with Registry.open(folder / "home", create=True) as registry:
        small_registry.fill(registry, folder)
    shutil.copytree(folder / "home", folder / "other")
    with Registry.open(folder / "other", create=False) as registry:
        replicate(registry, str(folder / "copy"), True, lambda n: None)
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "home", tmp_path / "home")
    return tmp_path / "home"


def outputs(home: Path) -> dict[str, str]:
    with Reader(home) as reader:
        adapters = {name: reader.adapter(name) for name in NAMES}
        return {
            name: sha256_hex(restore_weights(reader, adapter, reader.encoding(adapter.id)))
            for name, adapter in adapters.items()
        }


def digests(home: Path, name: str) -> dict[str, str]:
    """Of the blobs of an adapter: by path, and its `code` and `generator`."""
    with Reader(home) as reader:
        adapter = reader.adapter(name)
        found = {file.path: file.sha256 for file in reader.files(adapter)}
        encoding = reader.encoding(adapter.id)
        if encoding is not None:
            found["code"] = encoding.sha256
            if encoding.generator_id is not None:
                found["generator"] = reader.generator(encoding.generator_id).sha256
        return found


def flip(home: Path, sha256: str) -> None:
    path = home / "blobs" / sha256[:2] / sha256[2:]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def sql(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / DATABASE_FILE)) as connection, connection:
        connection.execute(statement)


def test_there_is_nothing_to_mend(home: Path, run: Callable[..., Any]) -> None:
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, done.data["mended"], done.data["failed"], done.data["problems"]) == (0, [], [], 0)


def test_blobs_come_from_a_copy(home: Path, made: Path, run: Callable[..., Any]) -> None:
    before, damaged = outputs(home), digests(home, "three")
    for sha256 in damaged.values():
        flip(home, sha256)
    assert run("check", "--read-data", "--home", home).exit_code == 26
    done = run("check", "--from", made / "copy", "--home", home, "--json")
    assert (done.exit_code, done.data["problems"]) == (0, 0)
    assert {one["what"] for one in done.data["mended"]} == {f"blob {sha256}" for sha256 in damaged.values()}
    assert outputs(home) == before


def test_copies_that_it_knows_need_no_naming(home: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    with Registry.open(home, create=False) as registry:
        replicate(registry, str(tmp_path / "known"), False, lambda n: None)
    flip(home, digests(home, "two")["code"])
    (mended,) = run("check", "--repair", "--home", home, "--json").data["mended"]
    assert mended["how"] == f"copied from {tmp_path / 'known'}"


def test_a_copy_that_is_damaged_itself_is_passed_by(home: Path, made: Path, tmp_path: Path, run: Any) -> None:
    shutil.copytree(made / "copy", tmp_path / "copy")
    code, card = (digests(home, "three")[path] for path in ("code", CARD_FILE))
    for place in (home, tmp_path / "copy"):
        flip(place, code)
    flip(home, card)
    done = run("check", "--from", tmp_path / "copy", "--from", tmp_path / "nowhere", "--home", home, "--json")
    assert [one["what"] for one in done.data["mended"]] == [f"blob {card}", "adapter three@1"]
    assert done.exit_code == 0


@pytest.mark.parametrize("what", ["code", "generator"])
def test_a_code_is_given_up_for_its_original(home: Path, run: Callable[..., Any], what: str) -> None:
    originals = {name: digests(home, name)[WEIGHTS_FILE] for name in NAMES}
    before, users = (
        outputs(home),
        [name for name in NAMES if digests(home, name).get(what) == digests(home, "two")[what]],
    )
    flip(home, digests(home, "two")[what])
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, len(done.data["mended"])) == (0, len(users) + (what == "generator"))  # `gone` uses it too
    assert outputs(home) == before | {name: originals[name] for name in users}
    assert run("compress", "--arch", "mean", "--home", home).exit_code == 0
    assert "code" in digests(home, "two")
    assert run("check", "--read-data", "--home", home).exit_code == 0


@pytest.mark.parametrize(
    "error",
    [
        StoreError(store="s3://bucket", reason="it does not answer", remedy="Try again."),
        NewerFormatError(what="Adapter 'two@1'", found="codec 99", expected="codec 7"),
    ],
    ids=["a store that is away", "a later format"],
)
def test_a_code_that_nothing_is_known_against_is_not_given_up(
    error: LoraregError, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(home, "two")["code"]

    def refuse(*of: Any) -> bytes:
        raise error

    monkeypatch.setattr(repair_module, "restore_weights", refuse)
    with Registry.open(home, create=False) as registry:
        assert set(repair_module.repair(registry)) == {error}
    assert digests(home, "two")["code"] == before


def test_nothing_is_mended_while_another_process_compresses_or_deletes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def busy() -> Iterator[None]:
        raise BusyError(home=home, waited_s=30)
        yield

    with Registry.open(home, create=False) as registry:
        monkeypatch.setattr(registry.backend, "working", busy)
        with pytest.raises(BusyError):
            list(repair_module.repair(registry))


def test_an_original_comes_from_a_code_without_loss(home: Path, run: Callable[..., Any]) -> None:
    weights = digests(home, "exact")[WEIGHTS_FILE]
    flip(home, weights)
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, [one["what"] for one in done.data["mended"]]) == (0, [f"blob {weights}"])


def test_what_cannot_be_mended_is_named(home: Path, run: Callable[..., Any]) -> None:
    raw, code = digests(home, "raw")[WEIGHTS_FILE], digests(home, "two")["code"]
    for sha256 in (raw, code, digests(home, "two")[WEIGHTS_FILE]):
        flip(home, sha256)
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, done.data["mended"]) == (26, [])
    named = {one["what"] for one in done.data["findings"] if one["severity"] == "error"}
    assert {f"blob {raw}", f"blob {code}", "adapter two@1"} <= named
    assert "could not be mended" in run("check", "--repair", "--home", home).err


# -- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE adapter SET description = 'x' WHERE name = 'two'",
        "UPDATE encoding SET row_digest = 'x' WHERE id = 3",
        "UPDATE adapter_file SET path = 'x' WHERE adapter_id = 1 AND path = 'README.md'",
        "DELETE FROM adapter_file WHERE adapter_id = 1",
        "DELETE FROM tag",
        "DELETE FROM certificate WHERE encoding_id > 3",
    ],
)
def test_rows_come_from_a_copy(home: Path, made: Path, run: Callable[..., Any], damage: str) -> None:
    before = outputs(home)
    with Reader(home) as reader:
        shown = [(reader.versions(name.partition("@")[0]), reader.labels(name.partition("@")[0])) for name in NAMES]
    with Registry.open(home, create=False) as registry:
        registry.remember("later", 1)  # what the copy does not know
    sql(home, damage)
    assert run("check", "--home", home).exit_code == 26
    assert run("check", "--repair", "--home", home).exit_code == 26
    done = run("check", "--from", made / "copy", "--home", home, "--json")
    assert (done.exit_code, done.data["failed"]) == (0, [])
    assert [one["how"] for one in done.data["mended"]] == [
        f"rows as they were, with those at {made / 'copy'}; the ledger proves it"
    ]
    assert outputs(home) == before
    with Reader(home) as reader:
        assert shown == [
            (reader.versions(name.partition("@")[0]), reader.labels(name.partition("@")[0])) for name in NAMES
        ]


def test_rows_that_came_after_the_copy_stay(home: Path, made: Path, run: Callable[..., Any]) -> None:
    """What the copy has and was taken away here does not come back; what it lacks stays."""
    with Registry.open(home, create=False) as registry:
        registry.untag(registry.adapter("one@1"), "old")
        registry.tag(registry.adapter("two"), "new")
    sql(home, "UPDATE tag SET created_at = 'x' WHERE label = 'stable'")
    assert run("check", "--from", made / "copy", "--home", home).exit_code == 0
    with Reader(home) as reader:
        assert [tag.label for name in ("one", "two") for tag in reader.labels(name)] == ["stable", "new"]


def test_rows_that_nothing_proves_are_left(home: Path, made: Path, run: Callable[..., Any]) -> None:
    with Registry.open(home, create=False) as registry:
        registry.tag(registry.adapter("two"), "stable")
    sql(home, "DELETE FROM tag WHERE adapter_name = 'two'")
    done = run("check", "--from", made / "copy", "--home", home, "--json")
    assert (done.exit_code, done.data["mended"]) == (26, [])
    assert [one["what"] for one in done.data["findings"]][:1] == ["table 'tag'"]


def test_a_damaged_ledger_is_written_anew(home: Path, run: Callable[..., Any]) -> None:
    sql(home, "UPDATE ledger SET sums = '{}'")
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, [one["what"] for one in done.data["mended"]]) == (0, ["table 'ledger'"])
    assert run("tag", "two", "new", "--home", home).exit_code == 0
    assert run("check", "--home", home).exit_code == 0


def test_an_index_is_built_again(home: Path, run: Callable[..., Any]) -> None:
    path = home / DATABASE_FILE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'uq_encoding_current'").fetchone()
    start = (page - 1) * 4096
    cells = bytearray(data[start : start + 4096])
    cells[-1] ^= 1  # a row's number
    path.write_bytes(data[:start] + cells + data[start + 4096 :])
    assert run("check", "--home", home).exit_code == 26
    done = run("check", "--repair", "--home", home, "--json")
    assert (done.exit_code, [one["what"] for one in done.data["mended"]]) == (0, ["database"])
