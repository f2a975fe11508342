"""Registries, bundles and certificates of every schema and format there was, made by the lorareg of their time.

`frozen/freeze.py` made them, and says which commits did. They are opened, migrated and given back for ever.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from frozen_registries import FROZEN, NAMES, known, rows_of, thaw

from lorareg.compress.codec.codecs import CODECS, LoadedGenerator, decode
from lorareg.compress.codec.container import Code, pack_code, unpack_code
from lorareg.compress.codec.extras import SMALL_FILE, unpack_extras
from lorareg.compress.generators.generator import DECODERS, unpack_generator
from lorareg.compress.materialize import decode_parcel, materialize
from lorareg.compress.proofs.verify import verify
from lorareg.registry.bundle import make_bundle, selected, write_bundle
from lorareg.registry.bundle_file import BundleFile
from lorareg.registry.errors import NewerFormatError, NewerSchemaError
from lorareg.registry.reader import Reader
from lorareg.registry.rows import SCHEMA_REVISION
from lorareg.registry.signatures import check_export
from lorareg.registry.sqlite import Sqlite
from lorareg.registry.store import Registry
from lorareg.registry.tokens import find_token
from lorareg.registry.types import CARD_FILE, Adapter, Certificate, Layout, sha256_hex
from lorareg.registry.unbundle import import_bundle

OF_0002 = {"alone/one@1", "extras/1@1", "linear/far@1", "lossless/f16@1", "whole/ia3@1"}
BUNDLED = {"0002": OF_0002, "0003": OF_0002, "0004": {"linear/borrower@1", "pipeline/style@1"}}
"""Those with a bundle, and what is in each at least."""
MOST_BYTES = 370_000
FOR_EVER = "What was written once can be read for ever"

Thaw = Callable[[str], Path]


@pytest.fixture
def thawed(tmp_path: Path) -> Thaw:
    """Unpack a frozen registry, with its bundle and its certificate beside it; the folder."""
    return lambda name: thaw(name, tmp_path)


def given_back(home: Path, ref: str, out: Path) -> dict[str, str]:
    """What an adapter comes back as. Cards are for people: their wording may change."""
    folder = materialize(home, ref, out / ref.replace("/", "-"), force=True).path
    return {path.name: sha256_hex(path.read_bytes()) for path in folder.iterdir() if path.name != CARD_FILE}


def expected_back(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    for ref, files in known(name)["given_back"].items():
        yield ref, {path: digest for path, digest in files.items() if path != CARD_FILE}


def certificate_of(registry: Registry, adapter: Adapter) -> Certificate | None:
    encoding = registry.encoding(adapter.id)
    return encoding and registry.certificate(encoding.id)


def expect_intact(name: str, home: Path, out: Path) -> int:
    """It checks clean, its certificates hold, and all of it comes back; how many adapters that are."""
    with Registry.open(home, create=False) as registry:
        assert [finding for finding in registry.check(read_data=True) if finding.severity == "error"] == []
        for adapter in registry.adapters():
            certified = certificate_of(registry, adapter)
            if certified is not None:
                assert verify(registry, adapter).problems == []
    refs = list(expected_back(name))
    for ref, files in refs:
        assert given_back(home, ref, out) == files, ref
    return len(refs)


def test_every_schema_and_codec_is_frozen(thawed: Thaw) -> None:
    older = {f"{number:04}" for number in range(1, int(SCHEMA_REVISION))}
    assert {name[:4] for name in NAMES} >= older  # before a schema is replaced, `freeze.py` makes one of it
    codecs: set[str] = set()
    arches: set[str] = set()
    for name in NAMES:
        rows = rows_of(thawed(name) / "home" / "registry.sqlite")
        codecs |= {row[3] for row in rows["encoding"]}
        arches |= {row[5] for row in rows["generator"]}
    assert codecs == {codec.name for codec in CODECS.values()}
    assert arches == set(DECODERS) - {"conv1d"}  # a megabyte once trained: its files are in tests/compress/golden


def test_a_lent_generator_and_a_pipeline_are_frozen(thawed: Thaw) -> None:
    with Reader(thawed("0004") / "home") as reader:
        borrower, style = reader.adapter("linear/borrower"), reader.adapter("pipeline/style")
        encoding = reader.encoding(borrower.id)
        assert encoding is not None
        assert encoding.generator_id is not None
        assert reader.generator(encoding.generator_id).cohort_id == reader.adapter("linear/far").cohort_id
        assert borrower.cohort_id != reader.adapter("linear/far").cohort_id
        layout = reader.cohort(style.cohort_id).layout
    assert '"unet.mid_block' in layout
    assert '"text_encoder.text_model' in layout


def test_frozen_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FROZEN.iterdir() if path.suffix in (".xz", ".json")) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_registry_gives_back_what_it_gave(name: str, thawed: Thaw, tmp_path: Path, torture: Any) -> None:
    torture.promise(f"{FOR_EVER}: the registry {name}")
    home = thawed(name) / "home"
    before = rows_of(home / "registry.sqlite")
    with Reader(home):  # migrates what is older
        pass
    after = rows_of(home / "registry.sqlite")
    assert {table: after[table] for table in before} == before
    backups = list((home / "backups").glob("*")) if name[:4] != SCHEMA_REVISION else []
    assert [rows_of(backup) for backup in backups] == ([before] if name[:4] != SCHEMA_REVISION else [])
    torture.held(expect_intact(name, home, tmp_path / "out"))


@pytest.mark.parametrize("name", NAMES)
def test_its_backup_can_take_its_place(name: str, thawed: Thaw, tmp_path: Path) -> None:
    """What the documents advise after a damaged migration: the copy from before it, under the old name."""
    if name[:4] == SCHEMA_REVISION:
        pytest.skip("nothing was migrated, so there is no copy from before")
    home = thawed(name) / "home"
    Registry.open(home, create=False).close()
    (backup,) = (home / "backups").iterdir()
    for path in home.glob("registry.sqlite*"):
        path.unlink()
    backup.rename(home / "registry.sqlite")
    expect_intact(name, home, tmp_path / "out")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_frozen_bundle_is_taken_in(name: str, thawed: Thaw, tmp_path: Path, torture: Any) -> None:
    torture.promise(f"{FOR_EVER}: the bundle {name}")
    folder, home = thawed(name), tmp_path / "new"
    with BundleFile.open(folder / "bundle.tar") as bundle, Registry.open(home, create=True) as registry:
        added = import_bundle(registry, bundle, decode_parcel, lambda count: None).added
    expected = dict(expected_back(name))
    assert BUNDLED[name] <= set(added)
    for ref in added:
        assert given_back(home, ref, tmp_path / "out") == expected[ref]
    with Reader(home) as reader, (tmp_path / "again.tar").open("wb") as file:
        write_bundle(make_bundle(reader, selected(reader, [], []), originals=False), reader.blobs.get, file, len_of)
    assert sorted(members(tmp_path / "again.tar")) == sorted(members(folder / "bundle.tar"))
    torture.held(len(added))


def len_of(count: int) -> None:
    """Progress that nobody looks at."""


def members(bundle: Path) -> list[str]:
    with tarfile.open(bundle) as tar:
        return tar.getnames()


@pytest.mark.parametrize("name", [name for name in NAMES if name >= "0002"])
def test_a_frozen_certificate_is_the_one_stored(name: str, thawed: Thaw) -> None:
    folder = thawed(name)
    exported = check_export(folder / "certificate.json")
    with Reader(folder / "home") as reader:
        verdict = verify(reader, reader.adapter("alone/one@1"))
    assert (verdict.certificate, verdict.problems) == (exported["digest"], [])


def test_a_token_that_was_given_out_still_opens(thawed: Thaw) -> None:
    with Reader(thawed("0003") / "home") as reader:
        token = find_token(reader, known("0003")["token"])
    assert token is not None
    assert (token.name, token.scope) == ("ci", "write")


# -- and what is newer than this lorareg is refused, with the advice to upgrade it -------------------


def resealed(data: bytes, at: int, byte: int) -> bytes:
    """A sealed file with one byte changed."""
    changed = bytearray(data[:-8])
    changed[at] = byte
    return bytes(changed) + bytes.fromhex(sha256_hex(bytes(changed))[:16])


def layout_of(reader: Reader, adapter: Adapter) -> Layout:
    return Layout.from_json(reader.cohort(adapter.cohort_id).layout)


@pytest.fixture
def newest(thawed: Thaw) -> Iterator[Reader]:
    with Reader(thawed(NAMES[-1]) / "home") as reader:
        yield reader


def test_a_newer_schema_is_refused_by_all_that_opens_it(thawed: Thaw) -> None:
    home = thawed(NAMES[0]) / "home"
    with closing(sqlite3.connect(home / "registry.sqlite")) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    before = (home / "registry.sqlite").read_bytes()
    for act in (Reader, lambda at: Registry.open(at, create=True), Registry.migrate):
        with pytest.raises(NewerSchemaError, match=r"newer lorareg .schema 9999.*Upgrade lorareg"):
            act(home)
    assert (home / "registry.sqlite").read_bytes() == before
    assert not (home / "backups").exists()


def test_a_newer_code_is_refused(newest: Reader) -> None:
    adapter = newest.adapter("alone/one@1")
    encoding = newest.encoding(adapter.id)
    assert encoding is not None
    data, layout = newest.blobs.get(encoding.sha256), layout_of(newest, adapter)
    with pytest.raises(NewerFormatError, match=r"format 2; this lorareg reads up to 1. Upgrade lorareg"):
        decode(resealed(data, 4, 2), layout, None, "Adapter")
    code = unpack_code(data)
    later = pack_code(Code(max(CODECS) + 1, layout.digest, "0" * 64, code.payload))
    with pytest.raises(NewerFormatError, match=rf"codec {max(CODECS) + 1}; .* up to codec {max(CODECS)}. Upgrade"):
        decode(later, layout, None, "Adapter")


def test_a_newer_generator_is_refused(newest: Reader) -> None:
    adapter = newest.adapter("linear/far@1")
    encoding = newest.encoding(adapter.id)
    assert encoding is not None
    assert encoding.generator_id is not None
    generator = newest.generator(encoding.generator_id)
    data, layout = newest.blobs.get(generator.sha256), layout_of(newest, adapter)
    assert LoadedGenerator.from_bytes(data, generator.sha256, layout).generator.arch == "linear"
    with pytest.raises(NewerFormatError, match=r"format 2; this lorareg reads up to 1. Upgrade lorareg"):
        unpack_generator(resealed(data, 4, 2), layout)
    at = data.index(b'"linear"')
    with pytest.raises(NewerFormatError, match=r"'cinear'.*Upgrade lorareg"):
        unpack_generator(resealed(data, at + 1, ord("c")), layout)


def test_newer_extras_are_refused(newest: Reader) -> None:
    adapter = newest.adapter("extras/1")
    layout = layout_of(newest, adapter)
    files = {file.path: newest.blobs.get(file.sha256) for file in newest.files(adapter) if "extras/" in file.path}
    assert unpack_extras(files, layout, "Adapter").tensors
    for path in set(files) & {SMALL_FILE, "extras/tensor-00001", "extras/tensor-00000"}:
        with pytest.raises(NewerFormatError, match=rf"{path}.* has format 3; this lorareg reads up to 2. Upgrade"):
            unpack_extras({**files, path: b"\x03" + files[path][1:]}, layout, "Adapter")


def test_a_newer_certificate_is_refused(thawed: Thaw) -> None:
    path = thawed(NAMES[-1]) / "certificate.json"
    exported = json.loads(path.read_text())
    statement = {**exported["statement"], "format": "lorareg-certificate-2"}
    from lorareg.registry.certificate import digest_of

    path.write_text(json.dumps({"statement": statement, "digest": digest_of(statement)}))
    with pytest.raises(NewerFormatError, match=r"lorareg-certificate-2; .* up to lorareg-certificate-1. Upgrade"):
        check_export(path)


def test_sqlite_of_this_schema_is_what_a_frozen_one_becomes(thawed: Thaw) -> None:
    home = thawed(NAMES[0]) / "home"
    Registry.open(home, create=False).close()
    assert Sqlite(home).revision() == SCHEMA_REVISION
