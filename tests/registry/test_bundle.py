"""Bundles: what goes out comes back, whatever a stranger wrote is refused, and nothing half-way is recorded."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.materialize import decode_parcel, materialize
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.verify import verify
from lorareg.registry import unbundle
from lorareg.registry.bundle import BLOBS_PREFIX, TABLES, make_bundle, selected, write_bundle
from lorareg.registry.bundle_file import BundleFile
from lorareg.registry.errors import (
    BundleError,
    IntegrityError,
    LoraregError,
    MissingBlobError,
    NewerFormatError,
    NothingToDoError,
)
from lorareg.registry.peft_format import read_folder
from lorareg.registry.rows import row_digest
from lorareg.registry.store import Registry
from lorareg.registry.types import canonical_json, sha256_hex
from lorareg.registry.unbundle import Imported, import_bundle

TASKS = ("man-de", "man-nl", "src-rust")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of three real adapters, two of them coded against the mean table."""
    home = tmp_path_factory.mktemp("bundles") / "source"
    samples = Path(__file__).parents[2] / "examples" / "adapters"
    with Registry.open(home, create=True) as registry:
        for task in TASKS:
            registry.ingest(read_folder(samples / task), name=task)
        compress(registry, [], CompressOptions(contract=Contract(tolerance=0.3), arch="mean"), Silent())
        registry.tag(registry.adapter("man-de"), "best")
    return home


def exported(home: Path, out: Path, *refs: str, originals: bool = True) -> Path:
    with Registry.open(home, create=False) as registry, out.open("wb") as file:
        bundle = make_bundle(registry, selected(registry, refs, []), originals=originals)
        write_bundle(bundle, registry.blobs.get, file, lambda count: None)
    return out


def imported(home: Path, path: Path) -> Imported:
    with BundleFile.open(path) as bundle, Registry.open(home, create=True) as registry:
        return import_bundle(registry, bundle, decode_parcel, lambda count: None)


def test_what_goes_out_comes_back(source: Path, tmp_path: Path) -> None:
    first = exported(source, tmp_path / "first.tar")
    done = imported(tmp_path / "home", first)
    assert done == Imported(added=[f"{task}@1" for task in TASKS], codes=3)
    with Registry.open(source, create=False) as before, Registry.open(tmp_path / "home", create=False) as after:
        for one, other in zip(before.adapters(), after.adapters(), strict=True):
            assert (one.ref, one.digest, one.source) == (other.ref, other.digest, other.source)
            assert one.created_at == other.created_at
            verdict = verify(after, other)
            assert not verdict.problems
            assert verdict.certificate == verify(before, one).certificate
        assert after.adapter("man-de@best").ref == "man-de@1"
        assert not [finding for finding in after.check(read_data=True) if finding.severity == "error"]
    for task in TASKS:
        there = materialize(source, task, tmp_path / f"there-{task}")
        here = materialize(tmp_path / "home", task, tmp_path / f"here-{task}")
        files = {path.name: path.read_bytes() for path in there.path.iterdir()}
        assert {path.name: path.read_bytes() for path in here.path.iterdir()} == files
    assert exported(tmp_path / "home", tmp_path / "second.tar").read_bytes() == first.read_bytes()


def test_a_bundle_has_the_same_bytes_from_either_database(bundle: Path, home: Path, tmp_path: Path) -> None:
    """Codes, certificates, generators and tags: to SQLite or PostgreSQL, and out of it."""
    assert imported(home, bundle).codes == len(TASKS)
    assert exported(home, tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    with Registry.open(home, create=False) as registry:
        assert not [finding for finding in registry.check(read_data=True) if finding.severity == "error"]
        assert not any(verify(registry, adapter).problems for adapter in registry.adapters())


def test_importing_twice_changes_nothing(source: Path, tmp_path: Path) -> None:
    path, home = exported(source, tmp_path / "a.tar"), tmp_path / "home"
    imported(home, path)
    before = exported(home, tmp_path / "b.tar").read_bytes()
    assert imported(home, path) == Imported(known=[f"{task}@1" for task in TASKS])
    assert exported(home, tmp_path / "c.tar").read_bytes() == before


def test_what_is_damaged_here_is_healed_by_what_comes(source: Path, tmp_path: Path) -> None:
    first = exported(source, tmp_path / "first.tar")
    with Registry.open(tmp_path / "home", create=True) as registry:
        for file in read_folder(Path(__file__).parents[2] / "examples" / "adapters" / "src-rust").files:
            sha256, size_bytes = registry.blobs.put_file(file.source)
            registry.blobs.path(sha256).chmod(0o600)
            registry.blobs.path(sha256).write_bytes(bytes(size_bytes))
    imported(tmp_path / "home", first)
    with Registry.open(tmp_path / "home", create=False) as registry:
        assert [finding for finding in registry.check(read_data=True) if finding.severity == "error"] == []


def test_a_selection_brings_what_it_needs_and_no_more(source: Path, tmp_path: Path) -> None:
    path = exported(source, tmp_path / "a.tar", "man-nl", originals=False)
    with BundleFile.open(path) as bundle:
        assert [row["name"] for row in bundle.tables["adapter"]] == ["man-nl"]
        assert len(bundle.tables["generator"]) == 1
        assert [row["kind"] for row in bundle.tables["retired_blob"]] == ["original"]
    assert imported(tmp_path / "home", path).added == ["man-nl@1"]
    with Registry.open(tmp_path / "home", create=False) as registry:
        adapter = registry.adapter("man-nl")
        assert registry.original(adapter) == "pruned"
        assert not verify(registry, adapter).problems
    assert materialize(tmp_path / "home", "man-nl", tmp_path / "out").tier in ("residual", "generated")


def test_weights_that_nothing_is_certified_of_come_along(sample_adapters: Path, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "source", create=True) as registry:
        registry.ingest(read_folder(sample_adapters / "man-nl"), name="plain")
    path = exported(tmp_path / "source", tmp_path / "a.tar", originals=False)
    assert imported(tmp_path / "home", path).added == ["plain@1"]
    with Registry.open(tmp_path / "home", create=False) as registry:
        assert registry.original(registry.adapter("plain")) == "kept"


def test_names_that_are_taken_become_the_next_version(source: Path, sample_adapters: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Registry.open(home, create=True) as registry:
        other = registry.ingest(read_folder(sample_adapters / "man-fr"), name="man-de").adapter
        registry.tag(other, "best")
        registry.ingest(read_folder(sample_adapters / "man-nl"), name="man-nl")
    done = imported(home, exported(source, tmp_path / "a.tar"))
    assert done.added == ["man-de@2", "src-rust@1"]
    assert done.known == ["man-nl@1"]
    assert done.renumbered == {"man-de@1": "man-de@2"}
    assert done.tags_kept_back == ["man-de@best"]
    assert done.codes == 3  # the known adapter had none yet
    with Registry.open(home, create=False) as registry:
        assert registry.adapter("man-de@best").ref == "man-de@1"
        for ref in ("man-de@2", "man-nl", "src-rust"):
            assert not verify(registry, registry.adapter(ref)).problems


def test_an_original_that_is_missing_is_not_called_pruned(sample_adapters: Path, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "source", create=True) as registry:
        adapter = registry.ingest(read_folder(sample_adapters / "man-nl"), name="plain").adapter
        (weights,) = (file for file in registry.files(adapter) if file.path == "adapter_model.safetensors")
        registry.blobs.path(weights.sha256).unlink()
        assert registry.original(adapter) == "missing"
    with pytest.raises(MissingBlobError, match="is missing from"):
        exported(tmp_path / "source", tmp_path / "a.tar")


def test_weights_that_another_adapter_brings_are_not_called_gone(source: Path, tmp_path: Path) -> None:
    """The same weights twice: once certified, once without a code, so that they come along."""
    home = tmp_path / "home"
    imported(home, exported(source, tmp_path / "a.tar", "man-nl"))
    samples = Path(__file__).parents[2] / "examples" / "adapters"
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_folder(samples / "man-nl"), name="twin")
        bundle = make_bundle(registry, registry.adapters(), originals=False)
    assert [row["name"] for row in bundle.tables["adapter"]] == ["man-nl", "twin"]
    assert not bundle.tables["retired_blob"]


def test_nothing_to_export_says_so(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "home", create=True) as registry, pytest.raises(NothingToDoError, match="nothing to"):
        make_bundle(registry, [], originals=True)


# -- what a stranger may have written ------------------------------------------------------------


class Parts:
    """A bundle taken apart, to be put together wrongly."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            self.members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        self.index = json.loads(self.members["index.json"])
        self.manifest = json.loads(self.members[self.name(self.index["manifests"][0])])
        self.rows = json.loads(self.members[self.name(self.manifest["config"])])

    def name(self, descriptor: dict[str, Any]) -> str:
        return BLOBS_PREFIX + descriptor["digest"].removeprefix("sha256:")

    def put(self, descriptor: dict[str, Any], value: Any) -> dict[str, Any]:
        """Replace a JSON member and give its new descriptor."""
        self.members.pop(self.name(descriptor))
        data = canonical_json(value).encode()
        fresh = {**descriptor, "digest": f"sha256:{sha256_hex(data)}", "size": len(data)}
        self.members[self.name(fresh)] = data
        return fresh

    def seal(self) -> None:
        """Make digests fit what was changed."""
        self.manifest["config"] = self.put(self.manifest["config"], self.rows)
        self.index["manifests"][0] = self.put(self.index["manifests"][0], self.manifest)
        self.members["index.json"] = canonical_json(self.index).encode()

    def sign(self, table: str, number: int, **changes: Any) -> None:
        row = {**self.rows["tables"][table][number], **changes}
        row["row_digest"] = row_digest(table, row)
        self.rows["tables"][table][number] = row

    def write(self, path: Path, *more: tarfile.TarInfo) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in self.members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for info in more:
                tar.addfile(info)
        return path


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def change(**changes: Any) -> Callable[[Parts], None]:
    def apply(parts: Parts) -> None:
        parts.rows.update(changes)
        parts.seal()

    return apply


def resign(table: str, **changes: Any) -> Callable[[Parts], None]:
    def apply(parts: Parts) -> None:
        parts.sign(table, 0, **changes)
        parts.seal()

    return apply


def unsigned(parts: Parts) -> None:
    parts.rows["tables"]["adapter"][0]["description"] = "something else"
    parts.seal()


def dropped(parts: Parts) -> None:
    parts.members.pop(parts.name(parts.manifest["layers"][0]))


def damaged(parts: Parts) -> None:
    name = parts.name(parts.manifest["layers"][0])
    parts.members[name] = b"\xff" + parts.members[name][1:]


def shorter(parts: Parts) -> None:
    name = parts.name(parts.manifest["layers"][0])
    parts.members[name] = parts.members[name][1:]


def another_output(parts: Parts) -> None:
    parts.sign("encoding", 0, output_digest="0" * 64)
    parts.seal()


def another_code(parts: Parts) -> None:
    """The code of another adapter of the same cohort: it decodes, to other weights."""
    other = parts.rows["tables"]["encoding"][1]
    parts.sign("encoding", 0, sha256=other["sha256"], size_bytes=other["size_bytes"])
    parts.seal()


def no_blob(parts: Parts) -> None:
    parts.sign("generator", 0, sha256="0" * 64)
    parts.seal()


def two_codes(parts: Parts) -> None:
    rows = parts.rows["tables"]["encoding"]
    parts.sign("encoding", 1, adapter_id=rows[0]["adapter_id"])
    parts.seal()


def forged(parts: Parts) -> None:
    """An error in a certificate made smaller."""
    row = parts.rows["tables"]["certificate"][0]
    parts.sign("certificate", 0, module_errors="00" * (len(row["module_errors"]) // 2))
    parts.seal()


def without_table(parts: Parts) -> None:
    del parts.rows["tables"]["tag"]
    parts.seal()


def extra_column(parts: Parts) -> None:
    parts.rows["tables"]["tag"][0]["secret"] = 1
    parts.seal()


HOSTILE: dict[str, tuple[Callable[[Parts], None], type[LoraregError], str]] = {
    "unsigned row": (unsigned, BundleError, "a row of adapter does not match its digest"),
    "missing blob": (dropped, BundleError, "its members are not those of its manifest"),
    "damaged blob": (damaged, IntegrityError, "Blob [0-9a-f]{64} in"),
    "short blob": (shorter, BundleError, "should have [0-9]+ bytes and has"),
    "another output": (another_output, IntegrityError, "The code of 'man-de@1'"),
    "another code": (another_code, IntegrityError, "The code of 'man-de@1'"),
    "no blob for a row": (no_blob, BundleError, "a row of generator needs blob 000000000000"),
    "two codes": (two_codes, BundleError, "an adapter has two codes"),
    "newer format": (change(format=2), NewerFormatError, "format 2"),
    "newer schema": (change(schema="9999"), NewerFormatError, "schema 9999"),
    "older schema": (change(schema="0001"), BundleError, "schema 0001 and not"),
    "missing table": (without_table, BundleError, "tables are missing"),
    "extra column": (extra_column, BundleError, "a row of tag does not have its columns"),
    "number as text": (resign("adapter", rank="2"), BundleError, "has '2' for its rank"),
    "foreign cohort": (resign("adapter", cohort_id=77), BundleError, "a row of adapter refers to a cohort"),
    "another layout": (resign("cohort", layout='{"scales":[],"slots":[]}'), BundleError, "another layout than its"),
    "broken layout": (resign("cohort", layout='{"slots":7}'), BundleError, "a layout that cannot be read"),
    "another digest": (resign("adapter", digest="0" * 64), BundleError, "other files than its digest says"),
    "broken fidelity": (resign("encoding", fidelity="{"), BundleError, "for its fidelity, not a JSON object"),
    "no error": (resign("encoding", fidelity="{}"), BundleError, "or says no error"),
    "unknown tier": (resign("encoding", tier="best"), BundleError, "a code is of a tier that there is not"),
    "forged certificate": (forged, BundleError, "the certificate of 'man-de@1' does not match what it is of"),
    "empty certificate": (resign("certificate", facts="{}"), BundleError, "the certificate of 'man-de@1' does not"),
    "path out": (resign("adapter_file", path="../x"), LoraregError, r"'\.\./x' is not valid"),
    "name out": (resign("adapter", name="../x"), LoraregError, r"'\.\./x' is not valid"),
    "label": (resign("tag", label="a b"), LoraregError, "'a b' is not valid"),
}


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(source, tmp_path_factory.mktemp("bundles") / "bundle.tar")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_hold_is_refused_and_nothing_recorded(name: str, bundle: Path, tmp_path: Path) -> None:
    spoil, error, reason = HOSTILE[name]
    parts = Parts(bundle)
    spoil(parts)
    with pytest.raises(error, match=reason):
        imported(tmp_path / "home", parts.write(tmp_path / "spoiled.tar"))
    if (tmp_path / "home").exists():
        with Registry.open(tmp_path / "home", create=False) as registry:
            assert not registry.adapters()
            assert not registry.cohorts()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../x", "has no place in a bundle"),
        ("blobs/sha256/../x", "has no place in a bundle"),
        ("index.json", "is there twice|has no place"),
        ("blobs/sha256/" + "0" * 64, "its members are not those of its manifest"),
    ],
)
def test_members_that_do_not_belong_are_refused(name: str, reason: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=reason):
        imported(tmp_path / "home", Parts(bundle).write(tmp_path / "x.tar", tarfile.TarInfo(name)))
    with pytest.raises(BundleError, match="has no place in a bundle"):
        imported(tmp_path / "home", Parts(bundle).write(tmp_path / "y.tar", link(name)))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_bundle_that_was_cut_short_is_refused(share: float, bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: int(share * len(data))])
    with pytest.raises((BundleError, IntegrityError)):
        imported(tmp_path / "home", tmp_path / "cut.tar")


def test_every_table_that_an_adapter_needs_is_there() -> None:
    assert set(TABLES) == set(unbundle.MODELS)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from lorareg.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_the_commands(source: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    out, home = tmp_path / "a.tar", tmp_path / "home"
    code, text, _ = run_cli("export", "-o", out, "--home", source, "--json")
    assert (code, json.loads(text)["adapters"]) == (0, 3)
    assert run_cli("export", "-o", out, "--home", source)[0] == 5
    assert run_cli("export", "man-nl", "-o", out, "--home", source, "--force")[0] == 0
    assert run_cli("export", "nobody", "-o", tmp_path / "b.tar", "--home", source)[0] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]
    code, text, _ = run_cli("import", out, "--home", home, "--json")
    assert (code, json.loads(text)["added"]) == (0, ["man-nl@1"])
    out.write_bytes(b"x" * 2000)
    code, _, text = run_cli("import", out, "--home", home)
    assert code == 47
    assert "it is no tar, or cut short" in text


def test_an_import_is_recorded_whole_or_not(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise RuntimeError("stopped half-way")

    monkeypatch.setattr(unbundle._Recording, "_tag", lambda self, row: fail(self))
    with pytest.raises(RuntimeError, match="stopped half-way"):
        imported(tmp_path / "home", bundle)
    with closing(Registry.open(tmp_path / "home", create=False)) as registry:
        assert not registry.adapters()
        assert not registry.cohorts()
