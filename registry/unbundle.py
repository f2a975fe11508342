"""Reading a bundle (see `bundle`), and recording what is in it.

Everything is verified before any row is recorded: the file's structure, each blob's size and digest, each row's digest
and what it refers to, and, by the caller, that each code decodes to the output it was recorded with. Rows are numbered
anew; what is here already is found by what it is (digests, names), so importing twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorareg.registry.bundle import Row, is_extra
from lorareg.registry.bundle_file import MODELS, REMEDY, BundleFile, parsed
from lorareg.registry.certificate import Subject, compose, digest_of, is_stale
from lorareg.registry.encodings import claim_blob
from lorareg.registry.errors import IntegrityError, LoraregError, MissingBlobError
from lorareg.registry.ingest import adapter_digest, adapter_record, next_id
from lorareg.registry.names import validate_label, validate_relative_path, validate_task_name
from lorareg.registry.rows import REFERENCES, record_from_row
from lorareg.registry.schema import (
    AdapterFileRow,
    AdapterRow,
    CertificateRow,
    CohortRow,
    EncodingRow,
    GeneratorRow,
    RetiredBlobRow,
    TagRow,
    stored_values,
)
from lorareg.registry.types import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFile,
    Certificate,
    Cohort,
    Encoding,
    Generator,
    Layout,
    Tier,
)

if TYPE_CHECKING:
    from lorareg.registry.store import Registry


JSON_COLUMNS = (
    ("cohort", "layout"),
    ("generator", "config"),
    ("generator", "metrics"),
    ("encoding", "tolerance"),
    ("encoding", "fidelity"),
    ("certificate", "facts"),
)
"""Texts that are JSON objects."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One adapter of a bundle with what its code needs, for whoever decodes it."""

    ref: str
    layout: Layout
    encoding: Row
    generator: str | None  # digest
    drawn: Layout | None  # the generator's own
    extras: Mapping[str, str]  # digests by path


@dataclass
class Imported:
    """What importing did."""

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    renumbered: dict[str, str] = field(default_factory=dict)  # what it was called there: what it is called here
    codes: int = 0  # that were decoded and recorded
    tags_kept_back: list[str] = field(default_factory=list)


def check_rows(bundle: BundleFile) -> list[Parcel]:
    """What rows say of each other and of blobs; the codes to decode.

    Raises:
        BundleError: a row refers to nothing, or says something that cannot be.
        InvalidNameError: a name is not valid.
    """
    tables = bundle.tables
    ids = {table: [row["id"] for row in tables[table]] for table in ("cohort", "adapter", "generator", "encoding")}
    for table, numbers in ids.items():
        if len(set(numbers)) != len(numbers):
            bundle.refuse(f"two rows of {table} have one number")
    for table, column, target in REFERENCES:
        known = set(ids[target])
        if any(row[column] is not None and row[column] not in known for row in tables.get(table, [])):
            bundle.refuse(f"a row of {table} refers to a {target} that is not there")
    for table, column in JSON_COLUMNS:
        for row in tables[table]:
            if not isinstance(parsed(row[column]), dict):
                bundle.refuse(f"a row of {table} has {row[column][:40]!r} for its {column}, not a JSON object")
    for row in tables["encoding"]:
        error = parsed(row["fidelity"]).get("relative_error")
        if row["tier"] not in get_args(Tier) or not isinstance(error, float | int):
            bundle.refuse("a code is of a tier that there is not, or says no error")
    gone = {row["sha256"] for row in tables["retired_blob"]}
    for table in ("adapter_file", "generator", "encoding"):
        for row in tables[table]:
            on_purpose = table == "adapter_file" and row["sha256"] in gone
            if bundle.blobs.get(row["sha256"]) != row["size_bytes"] and not on_purpose:
                bundle.refuse(f"a row of {table} needs blob {row['sha256'][:12]}, which is not there")
    return list(_parcels(bundle))


def _parcels(bundle: BundleFile) -> Iterator[Parcel]:
    tables = bundle.tables
    cohorts, layouts = {row["id"]: row for row in tables["cohort"]}, {}
    for number, row in cohorts.items():
        try:
            layouts[number] = Layout.from_json(row["layout"])
        except (ValueError, KeyError, TypeError, IndexError):
            bundle.refuse(f"cohort {row['name']!r} has a layout that cannot be read")
        if layouts[number].digest != row["layout_digest"]:
            bundle.refuse(f"cohort {row['name']!r} has another layout than its digest says")
    generators = {row["id"]: row for row in tables["generator"]}
    encodings: dict[int, Row] = {}
    for row in tables["encoding"]:
        if row["adapter_id"] in encodings or row["superseded_at"] is not None:
            bundle.refuse("an adapter has two codes")
        encodings[row["adapter_id"]] = row
    files: dict[int, dict[str, Row]] = {}
    for row in tables["adapter_file"]:
        files.setdefault(row["adapter_id"], {})[validate_relative_path(row["path"])] = row
    for row in tables["tag"]:
        validate_label(row["label"])
    gone = {row["sha256"] for row in tables["retired_blob"]} - bundle.blobs.keys()
    for row in tables["adapter"]:
        own, ref = files.get(row["id"], {}), f"{validate_task_name(row['name'])}@{row['version']}"
        if not {CONFIG_FILE, WEIGHTS_FILE} <= own.keys():
            bundle.refuse(f"adapter {ref!r} has no config or no weights")
        if adapter_digest({path: own[path]["sha256"] for path in (CONFIG_FILE, WEIGHTS_FILE)}) != row["digest"]:
            bundle.refuse(f"adapter {ref!r} has other files than its digest says")
        encoding = encodings.get(row["id"])
        if encoding is None:
            if own[WEIGHTS_FILE]["sha256"] in gone:
                bundle.refuse(f"adapter {ref!r} has neither weights nor a code")
            continue
        extras = {path: file["sha256"] for path, file in own.items() if is_extra(path)}
        generator = generators.get(encoding["generator_id"])
        if generator is None:
            yield Parcel(ref, layouts[row["cohort_id"]], encoding, None, None, extras)
            continue
        if cohorts[generator["cohort_id"]]["base_model"] != cohorts[row["cohort_id"]]["base_model"]:
            bundle.refuse(f"adapter {ref!r} is coded against a generator for another base model")
        drawn = layouts[generator["cohort_id"]]
        yield Parcel(ref, layouts[row["cohort_id"]], encoding, generator["sha256"], drawn, extras)


def import_bundle(
    registry: Registry,
    bundle: BundleFile,
    decode: Callable[[Parcel, Callable[[str], bytes]], str],
    advance: Callable[[int], object],
) -> Imported:
    """Store the blobs of a bundle, decode every code from the store, then record its rows in one transaction.

    Args:
        registry: where it goes.
        bundle: the open bundle.
        decode: gives the digest of what a parcel's code decodes to, from a function that reads blobs.
        advance: called after each blob and each code.

    Raises:
        BundleError: rows do not fit together.
        IntegrityError: a blob is damaged, or a code decodes to something else than was recorded.
    """
    parcels = check_rows(bundle)
    for digest in bundle.blobs:
        registry.blobs.put_bytes(bundle.read(digest))  # also what is here: it may be damaged, or not flushed yet
        advance(1)

    def read(digest: str) -> bytes:
        try:
            return registry.blobs.get(digest)
        except MissingBlobError:  # taken for nobody's since it was stored
            registry.blobs.put_bytes(bundle.read(digest))
            return registry.blobs.get(digest)

    for parcel in parcels:
        try:
            found = decode(parcel, read)
        except LoraregError as error:
            bundle.refuse(f"the code of {parcel.ref!r} cannot be decoded: {error}")
        if found != parcel.encoding["output_digest"]:
            raise IntegrityError(
                what=f"The code of {parcel.ref!r}",
                expected=parcel.encoding["output_digest"],
                found=found,
                remedy=REMEDY,
            )
        advance(1)
    with registry.writing() as session:
        recording = _Recording(session, registry, bundle)
        recording.run()
    return recording.done


class _Recording:
    """The rows of a bundle on their way into a registry, under its numbers."""

    def __init__(self, session: Session, registry: Registry, bundle: BundleFile) -> None:
        self.session, self.registry, self.bundle, self.done = session, registry, bundle, Imported()
        self.numbers: dict[str, dict[int, int]] = {name: {} for name in ("cohort", "adapter", "generator", "encoding")}
        self.new: set[int] = set()
        versions = {row["id"]: row["version"] for row in bundle.tables["adapter"]}
        self.versions = {row["id"]: versions[row["adapter_id"]] for row in bundle.tables["encoding"]}  # there

    def run(self) -> None:
        """Record everything, in an order in which each row refers to earlier ones."""
        tables = self.bundle.tables
        for row in tables["cohort"]:
            self.numbers["cohort"][row["id"]] = self._cohort(row)
        for row in tables["adapter"]:
            self.numbers["adapter"][row["id"]] = self._adapter(row)
        for row in tables["generator"]:
            self.numbers["generator"][row["id"]] = self._generator(row)
        for table in ("adapter_file", "task_vector", "pin"):
            for row in tables[table]:
                if row["adapter_id"] in self.new:
                    self._claim(table, row)
                    self._add(table, {**row, "adapter_id": self.numbers["adapter"][row["adapter_id"]]})
        for row in tables["encoding"]:
            self._encoding(row)
        for row in tables["certificate"]:
            self._certificate(row)
        for row in tables["tag"]:
            self._tag(row)
        for row in tables["retired_blob"]:
            absent = row["sha256"] not in self.registry.blobs
            if absent and self.session.get(RetiredBlobRow, row["sha256"]) is None:
                self._add("retired_blob", row)

    def _cohort(self, row: Row) -> int:
        same = (CohortRow.base_model == row["base_model"], CohortRow.layout_digest == row["layout_digest"])
        found = self.session.scalar(select(CohortRow.id).where(*same))
        if found is not None:
            return found
        name = row["name"]
        while self.session.scalar(select(CohortRow.id).where(CohortRow.name == name)) is not None:
            name += row["layout_digest"][:2]
        return self._add("cohort", {**row, "name": name, "id": next_id(self.session, CohortRow)})

    def _adapter(self, row: Row) -> int:
        ref = f"{row['name']}@{row['version']}"
        mine = select(AdapterRow).where(AdapterRow.name == row["name"]).order_by(AdapterRow.version)
        versions = self.session.scalars(mine).all()
        same = [one for one in versions if one.digest == row["digest"]]
        if same:
            self.done.known.append(f"{same[-1].name}@{same[-1].version}")
            return same[-1].id
        taken = {one.version for one in versions}
        version = row["version"] if row["version"] not in taken else versions[-1].version + 1
        self.done.added.append(f"{row['name']}@{version}")
        if version != row["version"]:
            self.done.renumbered[ref] = f"{row['name']}@{version}"
        self.new.add(row["id"])
        cohort = self.numbers["cohort"][row["cohort_id"]]
        values = {**row, "id": next_id(self.session, AdapterRow), "version": version, "cohort_id": cohort}
        return self._add("adapter", {**values, "removed_at": None})

    def _generator(self, row: Row) -> int:
        cohort = self.numbers["cohort"][row["cohort_id"]]
        mine = GeneratorRow.cohort_id == cohort
        found = self.session.scalar(select(GeneratorRow).where(mine, GeneratorRow.sha256 == row["sha256"]))
        if found is not None and found.config == row["config"]:
            return found.id
        self._claim("generator", row)
        taken = set(self.session.scalars(select(GeneratorRow.version).where(mine)))
        newest = self.session.scalar(select(func.max(GeneratorRow.version)).where(mine)) or 0
        version = row["version"] if row["version"] not in taken else newest + 1
        values = {**row, "id": next_id(self.session, GeneratorRow), "cohort_id": cohort, "version": version}
        return self._add("generator", values)

    def _encoding(self, row: Row) -> None:
        """Recorded for adapters that have no code yet."""
        adapter = self.numbers["adapter"][row["adapter_id"]]
        current = select(EncodingRow.id).where(EncodingRow.adapter_id == adapter, EncodingRow.superseded_at.is_(None))
        if self.session.scalar(current) is not None:
            return
        self._claim("encoding", row)
        generator = None if row["generator_id"] is None else self.numbers["generator"][row["generator_id"]]
        number = next_id(self.session, EncodingRow)
        self._add("encoding", {**row, "id": number, "adapter_id": adapter, "generator_id": generator})
        self.numbers["encoding"][row["id"]] = number
        if row["adapter_id"] not in self.new:
            self._extras(row["adapter_id"], adapter)
        self.done.codes += 1

    def _extras(self, there: int, here: int) -> None:
        for row in self.bundle.tables["adapter_file"]:
            known = self.session.get(AdapterFileRow, (here, row["path"]))
            if row["adapter_id"] == there and is_extra(row["path"]) and known is None:
                self._claim("adapter_file", row)
                self._add("adapter_file", {**row, "adapter_id": here})

    def _certificate(self, row: Row) -> None:
        """Recorded with its code; its digest is over the version that the adapter has here."""
        number = self.numbers["encoding"].get(row["encoding_id"])
        if number is None:
            return
        self._add("certificate", {**row, "encoding_id": number})
        encoding = self.session.get(EncodingRow, number)
        certificate = self.session.get(CertificateRow, number)
        assert encoding is not None
        assert certificate is not None
        here, proof = self._subject(encoding), _record(Certificate, certificate)
        there = replace(here, adapter=replace(here.adapter, version=self.versions[row["encoding_id"]]))
        if is_stale(there, proof):
            self.bundle.refuse(f"the certificate of {there.adapter.ref!r} does not match what it is of")
        certificate.digest = digest_of(compose(here, proof))

    def _subject(self, encoding: EncodingRow) -> Subject:
        adapter = self.session.get(AdapterRow, encoding.adapter_id)
        assert adapter is not None
        cohort = self.session.get(CohortRow, adapter.cohort_id)
        generator = None if encoding.generator_id is None else self.session.get(GeneratorRow, encoding.generator_id)
        files = self.session.scalars(select(AdapterFileRow).where(AdapterFileRow.adapter_id == adapter.id))
        return Subject(
            adapter_record(adapter),
            _record(Cohort, cohort),
            {file.path: _record(AdapterFile, file) for file in files},
            _record(Encoding, encoding),
            None if generator is None else _record(Generator, generator),
        )

    def _tag(self, row: Row) -> None:
        adapter = self.numbers["adapter"][row["adapter_id"]]
        found = self.session.get(TagRow, (row["adapter_name"], row["label"]))
        if found is None:
            self._add("tag", {**row, "adapter_id": adapter})
        elif found.adapter_id != adapter:
            self.done.tags_kept_back.append(f"{row['adapter_name']}@{row['label']}")

    def _claim(self, table: str, row: Row) -> None:
        """Make sure that a row's blob is here, unless it is not meant to be."""
        if table in ("adapter_file", "generator", "encoding") and row["sha256"] in self.bundle.blobs:
            blobs, digest = self.registry.blobs, row["sha256"]
            try:
                claim_blob(self.session, blobs, digest, row["size_bytes"])
            except MissingBlobError:  # taken for nobody's since it was stored; within the transaction it stays
                blobs.put_bytes(self.bundle.read(digest))
                claim_blob(self.session, blobs, digest, row["size_bytes"])

    def _add(self, table: str, values: Row) -> int:
        row = MODELS[table](**{key: value for key, value in values.items() if key != "row_digest"})
        self.session.add(row)
        self.session.flush()
        return int(values.get("id", 0))


def _record(record: type[Any], row: Any) -> Any:
    return record_from_row(record, row.__table__.name, stored_values(row))
