"""Everything that can be verified about a registry, without changing it.

Needs only a `Lookup`, so the read-only `Reader` will do. The database's own checks come first, then every
row's digest, what rows say about each other, and the blobs: there, of the right size, and with
`read_data` of the right content. What nothing refers to is reported as information.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator as Walk
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorareg.registry import ledger
from lorareg.registry.blobs import BlobStore
from lorareg.registry.errors import BlobsElsewhereError, IntegrityError, MissingBlobError, RegistryError
from lorareg.registry.lookup import Lookup
from lorareg.registry.rows import REFERENCES, every_row, row_name, verify_row
from lorareg.registry.types import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterFile,
    Certificate,
    Cohort,
    Encoding,
    Finding,
    Generator,
    GeneratorCopy,
    Layout,
    Ledger,
    Pin,
    RetiredBlob,
    Setting,
    Severity,
    Tag,
    TaskVector,
    Token,
    canonical_json,
    sha256_hex,
)

TABLES: Mapping[str, type] = {
    "cohort": Cohort,
    "adapter": Adapter,
    "adapter_file": AdapterFile,
    "tag": Tag,
    "task_vector": TaskVector,
    "generator": Generator,
    "encoding": Encoding,
    "certificate": Certificate,
    "pin": Pin,
    "generator_copy": GeneratorCopy,
    "retired_blob": RetiredBlob,
    "setting": Setting,
    "token": Token,
    "ledger": Ledger,
}
"""What a row of each table is a record of."""

_BACKUP_REMEDY = "Restore the database from a backup."
_FILE_REMEDY = "Restore it from a backup, or ingest the original again."
_CODE_REMEDY = "Restore it from a backup; while the originals are kept, `lorareg compress` makes it anew."
_OLD_REMEDY = "No adapter needs it; it takes space."
_MISSING = "is missing from the blob store"

Rows = Sequence[Mapping[str, Any]]


def check(lookup: Lookup, read_data: bool) -> Iterator[Finding]:
    """Yield every problem found, in the order of the walk; `read_data` also hashes every blob."""
    tables = yield from _walk_rows(lookup)
    for what, remark in lookup.backend.remarks():
        yield Finding(what, remark, "The next change writes it.", severity="information")
    if tables is None:
        return
    yield from _reference_problems(tables)
    yield from _kinship_problems(tables)
    yield from _adapter_problems(tables)
    references = _references(tables)
    yield from _retired_problems(lookup.blobs, tables, references)
    yield from _blob_problems(lookup, references, read_data)


def expect_sound_rows(lookup: Lookup) -> None:
    """All rows are there and intact, for who adds up what they say.

    Raises:
        IntegrityError: the first problem that was found.
    """
    for found in _walk_rows(lookup):
        raise IntegrityError(
            what=found.what.capitalize(), expected="all as it was written", found=found.problem, remedy=found.remedy
        )


def _walk_rows(lookup: Lookup) -> Walk[Finding, None, Mapping[str, Rows] | None]:
    """What is wrong with the database and with single rows; then all of them, if they could be read."""
    try:
        yield from _database_problems(lookup)
        tables = _tables(lookup)
    except BlobsElsewhereError:
        raise
    except RegistryError as error:
        yield Finding("database", str(error.fields["reason"]), _BACKUP_REMEDY)
        return None
    for table, rows in tables.items():
        yield from _row_problems(table, rows)
    strange = [name for name, rows in tables.items() if rows and rows[0].keys() != _columns(TABLES[name])]
    if strange:
        yield Finding(f"table {strange[0]!r}", "its columns are not those that it was made with", _BACKUP_REMEDY)
        return None
    yield from _ledger_problems(tables)
    return tables


def _tables(lookup: Lookup) -> dict[str, Rows]:
    """Every row, as they were at one moment: what came between would refer to rows that were not seen."""
    return dict(zip(TABLES, lookup.fetch_together([every_row(table) for table in TABLES]), strict=True))


def _columns(record: type) -> set[str]:
    return {field.name for field in fields(record)} | {"row_digest"}


def _database_problems(lookup: Lookup) -> Iterator[Finding]:
    for what, problem in lookup.backend.problems(lookup.fetch):
        yield Finding(what, problem, _BACKUP_REMEDY)


def _row_problems(table: str, rows: Rows) -> Iterator[Finding]:
    for row in rows:
        try:
            verify_row(table, row)
        except IntegrityError as error:
            problem = f"its columns hash to {error.fields['found']}, not to its {error.fields['expected']}"
            yield Finding(str(error.fields["what"]), problem, _BACKUP_REMEDY)


def _ledger_problems(tables: Mapping[str, Rows]) -> Iterator[Finding]:
    """Whether all rows are there that were written, and none that were taken away."""
    found = ledger.sums_of(tables)
    if not tables[ledger.TABLE]:
        if any(one.rows for one in found.values()):
            yield Finding("table 'ledger'", "its row is gone", _BACKUP_REMEDY)
        return
    try:
        verify_row(ledger.TABLE, tables[ledger.TABLE][0])
    except IntegrityError:
        return  # said with the other rows
    expected = ledger.load(tables[ledger.TABLE][0]["sums"])
    for table, one in found.items():
        due = expected.get(table, ledger.Sum())
        if one.rows != due.rows:
            yield Finding(f"table {table!r}", f"it has {one.rows} rows, not {due.rows}", _BACKUP_REMEDY)
        elif one != due:
            problem = "its rows are not those that were written last: some are older or lost"
            yield Finding(f"table {table!r}", problem, _BACKUP_REMEDY)


def _reference_problems(tables: Mapping[str, Rows]) -> Iterator[Finding]:
    """What foreign keys say, whether or not they were switched on: what a row refers to is there."""
    for table, column, target in REFERENCES:
        known = {row["id"] for row in tables[target]}
        for row in tables[table]:
            if row[column] is not None and row[column] not in known:
                problem = f"row {row_name(row)} refers to a row of table {target!r} that is gone"
                yield Finding(f"table {table!r}", problem, _BACKUP_REMEDY)


def _kinship_problems(tables: Mapping[str, Rows]) -> Iterator[Finding]:
    """What foreign keys cannot say: that rows which refer to each other also belong together."""
    adapters = {row["id"]: row for row in tables["adapter"]}
    cohorts = {row["id"]: row for row in tables["cohort"]}
    generators = {row["id"]: row for row in tables["generator"]}
    for row in tables["adapter"]:
        cohort = cohorts.get(row["cohort_id"])
        if cohort and cohort["base_model"] != row["base_model"]:
            problem = f"its base model is {row['base_model']}, but its cohort's is {cohort['base_model']}"
            yield Finding(f"adapter {row['name']}@{row['version']}", problem, _BACKUP_REMEDY)
    for row in tables["tag"]:
        adapter = adapters.get(row["adapter_id"])
        if adapter and adapter["name"] != row["adapter_name"]:
            problem = f"it points at a version of {adapter['name']}"
            yield Finding(f"tag {row['adapter_name']}@{row['label']}", problem, _BACKUP_REMEDY)
    for row in tables["encoding"]:
        adapter, generator = adapters.get(row["adapter_id"]), generators.get(row["generator_id"])
        cohort = cohorts.get(generator["cohort_id"]) if generator else None
        if adapter and generator and cohort and adapter["base_model"] != cohort["base_model"]:
            problem = f"its generator {generator['id']} is for another base model than its adapter"
            yield Finding(f"encoding {row['id']}", problem, "Compress the adapter again.")


def _adapter_problems(tables: Mapping[str, Rows]) -> Iterator[Finding]:
    """Layouts and adapters against the digests that identify them."""
    for row in tables["cohort"]:
        if _layout_digest(row["layout"]) != row["layout_digest"]:
            yield Finding(f"cohort {row['name']}", "its layout does not match its layout digest", _BACKUP_REMEDY)
    digests: dict[int, dict[str, str]] = defaultdict(dict)
    for row in tables["adapter_file"]:
        digests[row["adapter_id"]][row["path"]] = row["sha256"]
    for row in tables["adapter"]:
        what, files = f"adapter {row['name']}@{row['version']}", digests[row["id"]]
        missing = [path for path in (CONFIG_FILE, WEIGHTS_FILE) if path not in files]
        if missing:
            yield Finding(what, f"it has no {' and no '.join(missing)}", _BACKUP_REMEDY)
        elif sha256_hex(canonical_json([[p, files[p]] for p in (CONFIG_FILE, WEIGHTS_FILE)]).encode()) != row["digest"]:
            yield Finding(what, "its files are not those its digest was made from", _BACKUP_REMEDY)


def _layout_digest(layout: str) -> str | None:
    try:
        return Layout.from_json(layout).digest
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _retired_problems(store: BlobStore, tables: Mapping[str, Rows], references: dict[str, _Blob]) -> Iterator[Finding]:
    """Takes what was rightly pruned out of `references`; what was pruned and is needed stays, and is missed."""
    encoded = {row["adapter_id"] for row in tables["encoding"] if row["superseded_at"] is None}
    weights = [row for row in tables["adapter_file"] if row["path"] == WEIGHTS_FILE]
    uncoded = {row["sha256"] for row in weights if row["adapter_id"] not in encoded}
    needed = uncoded | {row["sha256"] for row in tables["encoding"] if row["superseded_at"] is None}
    prunable = {row["sha256"] for row in weights} - needed
    for row in tables["retired_blob"]:
        blob = references.get(row["sha256"])
        if row["state"] == "deleting":
            yield Finding(
                f"blob {row['sha256']}",
                "a sweep was stopped before it was done with it",
                "`lorareg prune --sweep` goes on.",
                severity="information",
            )
        if blob is None or row["state"] == "quarantined" or row["sha256"] in store:
            continue
        if row["sha256"] in prunable or not blob.is_needed:
            del references[row["sha256"]]


@dataclass(frozen=True, slots=True)
class _Blob:
    """What rows say of a blob: its size, one of its uses, and what to do when it is damaged."""

    size_bytes: int
    owner: str
    remedy: str
    is_needed: bool = True


def _references(tables: Mapping[str, Rows]) -> dict[str, _Blob]:
    """Every blob a row mentions; where several do, the use that needs it most."""
    names = {row["id"]: f"{row['name']}@{row['version']}" for row in tables["adapter"]}
    current = [row for row in tables["encoding"] if row["superseded_at"] is None]
    in_use = {row["generator_id"] for row in current}
    blobs: dict[str, _Blob] = {}
    for row in tables["encoding"]:
        blobs[row["sha256"]] = _Blob(
            row["size_bytes"], f"older code of {names.get(row['adapter_id'], '?')}", _OLD_REMEDY, False
        )
    for row in tables["generator"]:
        needed, owner = row["id"] in in_use, f"generator {row['id']}"
        blobs[row["sha256"]] = _Blob(row["size_bytes"], owner, _CODE_REMEDY if needed else _OLD_REMEDY, needed)
    for row in current:
        blobs[row["sha256"]] = _Blob(row["size_bytes"], f"code of {names.get(row['adapter_id'], '?')}", _CODE_REMEDY)
    for row in tables["adapter_file"]:
        blobs[row["sha256"]] = _Blob(
            row["size_bytes"], f"{row['path']} of {names.get(row['adapter_id'], '?')}", _FILE_REMEDY
        )
    return blobs


def _blob_problems(lookup: Lookup, blobs: Mapping[str, _Blob], read_data: bool) -> Iterator[Finding]:
    store = lookup.blobs
    problems = {digest: _blob_problem(store, digest, blob, read_data) for digest, blob in blobs.items()}
    unnamed = [digest for digest in store if digest not in blobs]
    if unnamed or _MISSING in problems.values():  # others may have let go of it, or come to name it, since
        now = _referred_to_now(lookup)
        blobs = {digest: blob for digest, blob in blobs.items() if problems[digest] != _MISSING or digest in now} | now
    for digest, blob in blobs.items():
        problem = problems.get(digest)
        if problem:
            severity: Severity = "error" if blob.is_needed else "information"
            yield Finding(f"blob {digest}", f"{blob.owner} {problem}", blob.remedy, severity)
    for digest in unnamed:
        if digest not in blobs:
            yield Finding(
                f"blob {digest}", "nothing refers to it", "It does no harm; it takes space.", severity="information"
            )


def _referred_to_now(lookup: Lookup) -> dict[str, _Blob]:
    tables = _tables(lookup)
    references = _references(tables)
    for _ in _retired_problems(lookup.blobs, tables, references):
        pass  # told before
    return references


def _blob_problem(store: BlobStore, digest: str, blob: _Blob, read_data: bool) -> str | None:
    try:
        found = store.size(digest)
        if found != blob.size_bytes:
            return f"has {found} bytes, not {blob.size_bytes}"
        if read_data:
            store.verify(digest)
    except MissingBlobError:
        return _MISSING
    except IntegrityError as error:
        return f"hashes to {error.fields['found']}"
    return None
