"""A registry, or a selection of it, as one file: an OCI image layout within a tar.

    oci-layout                    {"imageLayoutVersion": "1.0.0"}
    index.json                    names the manifest
    blobs/sha256/MANIFEST         names the rows (its config) and every blob (its layers)
    blobs/sha256/ROWS             the rows, canonical JSON: {"format", "schema", "tables": {table: [row, ...]}}
    blobs/sha256/...              the blobs, in order of their digests

So anything that reads OCI layouts can copy it to a container registry and back. The same rows and blobs give the same
bytes: members have no times and no owners, rows are numbered anew in natural order (see `_Numbered`), and their digests
are made over those numbers. Bytes within rows are hexadecimal text. `docs/bundle.md` has the whole of it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorareg.registry.errors import NothingToDoError
from lorareg.registry.names import natural_key
from lorareg.registry.rows import BUNDLE_REVISION, expect_asked, row_digest, verify_row
from lorareg.registry.types import EXTRAS_FOLDER, WEIGHTS_FILE, Adapter, canonical_json, sha256_hex

if TYPE_CHECKING:
    from lorareg.registry.lookup import Lookup

FORMAT = 1
MEDIA_TYPE = "application/vnd.lorareg"
ROWS_TYPE, BLOB_TYPE = f"{MEDIA_TYPE}.rows.v1+json", f"{MEDIA_TYPE}.blob.v1"
MANIFEST_TYPE, INDEX_TYPE = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
LAYOUT_FILE, INDEX_FILE, BLOBS_PREFIX = "oci-layout", "index.json", "blobs/sha256/"
LAYOUT_TEXT = canonical_json({"imageLayoutVersion": "1.0.0"})

TABLES = (
    "cohort", "adapter", "adapter_file", "tag", "task_vector", "pin", "generator", "encoding", "certificate",
    "retired_blob",
)  # fmt: skip
"""In an order in which each row refers to earlier ones. Copies, settings and history stay where they are made."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What goes into the file."""

    tables: Mapping[str, Sequence[Row]]
    blobs: Mapping[str, int]  # size in bytes by digest
    adapters: int
    kept_originals: int  # that had to come along because nothing is certified of what replaces them


def make_bundle(lookup: Lookup, adapters: Sequence[Adapter], *, originals: bool) -> Bundle:
    """The rows and blobs of adapters: what listing, materializing and verifying them takes, and nothing else.

    Args:
        lookup: the registry.
        adapters: versions of adapters, none of them removed.
        originals: whether weights that a certified code stands for come along, where they are still here.

    Raises:
        NothingToDoError: there are none.
        IntegrityError: a row is damaged.
    """
    if not adapters:
        raise NothingToDoError(message=f"There is nothing to export in {lookup.home}.")
    numbered = _Numbered(lookup)
    kept = 0
    for adapter in sorted(adapters, key=lambda one: (natural_key(one.name), one.version)):
        kept += numbered.add_adapter(adapter, originals=originals)
    return Bundle(numbered.finished(), dict(sorted(numbered.blobs.items())), len(adapters), kept)


def write_bundle(
    bundle: Bundle, read: Callable[[str], bytes], out: io.BufferedIOBase, advance: Callable[[int], object]
) -> int:
    """Write the file; its size in bytes. `read` gives a blob, verified; `advance` is called after each."""
    rows = canonical_json({"format": FORMAT, "schema": BUNDLE_REVISION, "tables": bundle.tables}).encode()
    layers = [{"mediaType": BLOB_TYPE, "digest": f"sha256:{d}", "size": s} for d, s in bundle.blobs.items()]
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": f"{MEDIA_TYPE}.registry.v1",
            "config": _descriptor(ROWS_TYPE, rows),
            "layers": layers,
        }
    ).encode()
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [_descriptor(MANIFEST_TYPE, manifest)]}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, LAYOUT_FILE, LAYOUT_TEXT.encode())
        _add(tar, INDEX_FILE, canonical_json(index).encode())
        _add(tar, f"{BLOBS_PREFIX}{sha256_hex(manifest)}", manifest)
        _add(tar, f"{BLOBS_PREFIX}{sha256_hex(rows)}", rows)
        for digest in bundle.blobs:
            _add(tar, f"{BLOBS_PREFIX}{digest}", read(digest))
            advance(1)
    return out.tell()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256_hex(data)}", "size": len(data)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


@dataclass
class _Numbered:
    """Rows under numbers of their own: cohorts and generators as they come, adapters by name and version."""

    lookup: Lookup
    tables: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in TABLES})
    blobs: dict[str, int] = field(default_factory=dict)
    gone: dict[str, Row] = field(default_factory=dict)  # by digest
    numbers: dict[str, dict[int, int]] = field(default_factory=lambda: {"cohort": {}, "generator": {}})

    def add_adapter(self, adapter: Adapter, *, originals: bool) -> bool:
        """Add a version of an adapter and all it needs; whether its original came along only for want of a proof."""
        number = len(self.tables["adapter"]) + 1
        (row,) = self._rows("adapter", "id", adapter.id)
        self._put("adapter", {**row, "id": number, "cohort_id": self._cohort(adapter.cohort_id)})
        encoding = self._encoding(adapter, number)
        proven = encoding is not None and self.lookup.certificate(encoding["id"]) is not None
        wanted, kept = originals or not proven, False
        for file in self._rows("adapter_file", "adapter_id", adapter.id):
            is_original = file["path"] == WEIGHTS_FILE
            self._put("adapter_file", {**file, "adapter_id": number})
            # An original that is missing, though nobody let it go, is asked for, and reading it says so.
            if not is_original or (wanted and self.lookup.original(adapter) != "pruned"):
                self.blobs[file["sha256"]] = file["size_bytes"]
                kept = kept or (is_original and not originals and encoding is not None)
            else:
                self._gone(file, adapter)
        for table in ("tag", "task_vector", "pin"):
            for one in self._rows(table, "adapter_id", adapter.id):
                if table != "pin" or wanted:
                    self._put(table, {**one, "adapter_id": number})
        return kept

    def _encoding(self, adapter: Adapter, number: int) -> Row | None:
        found = self.lookup.encoding(adapter.id)
        if found is None:
            return None
        (row,) = self._rows("encoding", "id", found.id)
        generator = None if row["generator_id"] is None else self._generator(row["generator_id"])
        new = len(self.tables["encoding"]) + 1
        self._put("encoding", {**row, "id": new, "adapter_id": number, "generator_id": generator})
        self.blobs[row["sha256"]] = row["size_bytes"]
        for certificate in self._rows("certificate", "encoding_id", row["id"]):
            self._put("certificate", {**certificate, "encoding_id": new})
        return row

    def _cohort(self, number: int) -> int:
        if number not in self.numbers["cohort"]:
            (row,) = self._rows("cohort", "id", number)
            self.numbers["cohort"][number] = len(self.tables["cohort"]) + 1
            self._put("cohort", {**row, "id": self.numbers["cohort"][number]})
        return self.numbers["cohort"][number]

    def _generator(self, number: int) -> int:
        if number not in self.numbers["generator"]:
            (row,) = self._rows("generator", "id", number)
            self.numbers["generator"][number] = len(self.tables["generator"]) + 1
            cohort = self._cohort(row["cohort_id"])
            self._put("generator", {**row, "id": self.numbers["generator"][number], "cohort_id": cohort})
            self.blobs[row["sha256"]] = row["size_bytes"]
        return self.numbers["generator"][number]

    def _gone(self, file: Row, adapter: Adapter) -> None:
        """Say of an original that it is not there on purpose."""
        retired = self.lookup.retired(file["sha256"])
        when = adapter.created_at if retired is None else retired.retired_at
        self.gone[file["sha256"]] = {
            "sha256": file["sha256"],
            "size_bytes": file["size_bytes"],
            "kind": "original",
            "proof": "" if retired is None else retired.proof,
            "state": "deleted",
            "retired_at": when,
            "deleted_at": when if retired is None or retired.deleted_at is None else retired.deleted_at,
        }

    def finished(self) -> dict[str, list[Row]]:
        """All tables, once every adapter was added: what one adapter does without, another may bring."""
        for digest in sorted(self.gone.keys() - self.blobs.keys()):
            self._put("retired_blob", self.gone[digest])
        return self.tables

    def _rows(self, table: str, column: str, value: object) -> list[Row]:
        order = {"adapter_file": " ORDER BY path", "tag": " ORDER BY label", "task_vector": " ORDER BY encoder"}
        rows = self.lookup.fetch(f"SELECT * FROM {table} WHERE {column} = :value{order.get(table, '')}", value=value)
        plain = [{k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items()} for row in rows]
        for row in plain:
            expect_asked(table, row, {column: value})
            verify_row(table, row)
        return plain

    def _put(self, table: str, row: Row) -> None:
        plain = {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
        self.tables[table].append({**plain, "row_digest": row_digest(table, row)})


def selected(lookup: Lookup, refs: Iterable[str], cohorts: Iterable[str]) -> list[Adapter]:
    """The newest or named version of each ref, and all of each cohort; all there are where nothing is named.

    Raises:
        UnknownAdapterError: a ref names nothing.
        UnknownCohortError: likewise.
    """
    refs, cohorts = list(refs), list(cohorts)
    if not refs and not cohorts:
        return lookup.adapters()
    found = {one.id: one for name in cohorts for one in lookup.adapters(cohort_id=lookup.cohort(name).id)}
    found |= {one.id: one for one in map(lookup.adapter, refs)}
    return list(found.values())


def is_extra(path: str) -> bool:
    """Whether a file of an adapter is what its code leaves out."""
    return path.startswith(EXTRAS_FOLDER)
