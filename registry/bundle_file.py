"""An open bundle (see `bundle`), its structure and rows verified before anybody looks at what they say."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import LargeBinary

from lorareg.registry.bundle import (
    BLOBS_PREFIX,
    FORMAT,
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_TEXT,
    ROWS_TYPE,
    TABLES,
    Row,
)
from lorareg.registry.errors import BundleError, IntegrityError, NewerFormatError
from lorareg.registry.files import open_regular
from lorareg.registry.rows import BUNDLE_REVISION, row_digest
from lorareg.registry.schema import (
    AdapterFileRow,
    AdapterRow,
    Base,
    CertificateRow,
    CohortRow,
    EncodingRow,
    GeneratorRow,
    PinRow,
    RetiredBlobRow,
    TagRow,
    TaskVectorRow,
)
from lorareg.registry.types import sha256_hex

REMEDY = "Nothing was recorded. Export it again, or copy it again."
MODELS: dict[str, type[Base]] = {
    "cohort": CohortRow,
    "adapter": AdapterRow,
    "adapter_file": AdapterFileRow,
    "tag": TagRow,
    "task_vector": TaskVectorRow,
    "pin": PinRow,
    "generator": GeneratorRow,
    "encoding": EncodingRow,
    "certificate": CertificateRow,
    "retired_blob": RetiredBlobRow,
}
MOST_TEXT_BYTES = 4 << 20  # of index.json, and of a manifest for each of its layers' 150 bytes
MOST_ROWS_BYTES = 2 << 30
MOST_MEMBERS = 10_000_000
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MEMBER = re.compile(rf"{BLOBS_PREFIX}([0-9a-f]{{64}})")


class BundleFile:
    """An open bundle whose structure and rows have been verified."""

    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        self.path, self._tar = path, tar
        self._members = self._index()
        manifest = self._json(self._manifest(), MOST_TEXT_BYTES + 200 * len(self._members))
        config, layers = manifest.get("config"), manifest.get("layers")
        if not isinstance(config, dict) or config.get("mediaType") != ROWS_TYPE or not isinstance(layers, list):
            self.refuse("its manifest names no rows of lorareg")
        self.blobs = dict(self._descriptor(layer) for layer in layers)
        self.tables = self._tables(self._json(self._descriptor(config), MOST_ROWS_BYTES))
        expected = {*self.blobs, self._descriptor(config)[0], self._manifest()[0]}
        extra = sorted(self._members.keys() - expected - {LAYOUT_FILE, INDEX_FILE})
        if extra or expected - self._members.keys():
            first = (extra or sorted(expected - self._members.keys()))[0]
            self.refuse(f"its members are not those of its manifest: {first!r}")

    @staticmethod
    @contextmanager
    def open(path: Path) -> Iterator[BundleFile]:
        """Raises BundleError where it is not one, NewerFormatError where a later lorareg wrote it."""
        with open_regular(path) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    yield BundleFile(path, tar)
            except (tarfile.TarError, EOFError) as error:
                raise BundleError(path=path, reason=f"it is no tar, or cut short ({error})", remedy=REMEDY) from error

    def read(self, digest: str) -> bytes:
        """A blob, verified."""
        return self._bytes(digest, self.blobs[digest])

    def refuse(self, reason: str) -> NoReturn:
        raise BundleError(path=self.path, reason=reason, remedy=REMEDY)

    def _index(self) -> dict[str, tarfile.TarInfo]:
        members: dict[str, tarfile.TarInfo] = {}
        for member in self._tar:
            match = _MEMBER.fullmatch(member.name)
            name = match[1] if match else member.name
            if not member.isreg() or not (match or name in (LAYOUT_FILE, INDEX_FILE)):
                self.refuse(f"member {member.name[:80]!r} has no place in a bundle")
            if name in members or len(members) > MOST_MEMBERS:
                self.refuse(f"member {member.name[:80]!r} is there twice, or there are too many")
            members[name] = member
        for name in (LAYOUT_FILE, INDEX_FILE):
            if name not in members:
                self.refuse(f"{name} is missing, so it is no bundle")
        if self._text(members[LAYOUT_FILE]) != LAYOUT_TEXT.encode():
            self.refuse(f"{LAYOUT_FILE} does not say version 1.0.0")
        return members

    def _manifest(self) -> tuple[str, int]:
        index = parsed(self._text(self._members[INDEX_FILE]))
        manifests = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(manifests, list) or len(manifests) != 1:
            self.refuse(f"{INDEX_FILE} does not name one manifest")
        return self._descriptor(manifests[0])

    def _descriptor(self, value: object) -> tuple[str, int]:
        digest, size = (value.get("digest"), value.get("size")) if isinstance(value, dict) else (None, None)
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            self.refuse(f"{str(value)[:80]!r} is no descriptor")
        return match[1], size

    def _json(self, descriptor: tuple[str, int], most_bytes: int) -> dict[str, Any]:
        digest, size = descriptor
        if size > most_bytes:
            self.refuse(f"{digest[:12]} has {size} bytes, more than the {most_bytes} allowed")
        found = parsed(self._bytes(digest, size))
        if not isinstance(found, dict):
            self.refuse(f"{digest[:12]} is not a JSON object")
        return found

    def _text(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MOST_TEXT_BYTES:
            self.refuse(f"{member.name} has {member.size} bytes, more than the {MOST_TEXT_BYTES} allowed")
        file = self._tar.extractfile(member)
        return b"" if file is None else file.read()

    def _bytes(self, digest: str, size: int) -> bytes:
        member = self._members.get(digest)
        if member is None or member.size != size:
            found = "is missing" if member is None else f"has {member.size}"
            self.refuse(f"blob {digest[:12]} should have {size} bytes and {found}")
        file = self._tar.extractfile(member)
        data = b"" if file is None else file.read()
        if len(data) != size or sha256_hex(data) != digest:
            raise IntegrityError(
                what=f"Blob {digest} in {self.path}", expected=digest, found=sha256_hex(data), remedy=REMEDY
            )
        return data

    def _tables(self, rows: Mapping[str, Any]) -> dict[str, list[Row]]:
        """Rows as the models take them, each held to its digest."""
        form, schema, tables = rows.get("format"), rows.get("schema"), rows.get("tables")
        if not isinstance(form, int) or form > FORMAT or not isinstance(schema, str) or schema > BUNDLE_REVISION:
            found, expected = f"format {form}, schema {schema}", f"format {FORMAT}, schema {BUNDLE_REVISION}"
            raise NewerFormatError(what=f"The bundle {self.path}", found=found, expected=expected)
        if schema != BUNDLE_REVISION or not isinstance(tables, dict) or set(tables) != set(TABLES):
            self.refuse(f"its rows are of schema {schema} and not {BUNDLE_REVISION}, or tables are missing")
        return {table: [self._row(table, row) for row in tables[table]] for table in TABLES}

    def _row(self, table: str, row: object) -> Row:
        columns = MODELS[table].__table__.columns
        if not isinstance(row, dict) or set(row) != set(columns.keys()):
            self.refuse(f"a row of {table} does not have its columns")
        try:
            binary = {column.key for column in columns if isinstance(column.type, LargeBinary)}
            values = {key: bytes.fromhex(value) if key in binary else value for key, value in row.items()}
        except (TypeError, ValueError):
            self.refuse(f"a row of {table} has bytes that are none")
        for column in columns:
            value, kind = values[column.key], column.type.python_type
            right = isinstance(value, kind) and not isinstance(value, bool)
            if not right and not (value is None and column.nullable):
                self.refuse(f"a row of {table} has {str(value)[:40]!r} for its {column.key}")
        if row_digest(table, values) != values["row_digest"]:
            self.refuse(f"a row of {table} does not match its digest")
        return values


def parsed(data: bytes | str) -> Any:
    """The value of JSON; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
