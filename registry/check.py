"""Everything that can be verified about a registry, without changing it.

Needs only a `Lookup`, so the read-only `Reader` will do. The database's own checks come first, then every
row's digest, what rows say about each other, and the blobs: there, of the right size, and with
`read_data` of the right content. What nothing refers to is reported as information. Rows and blobs pass by one at a
time, so that a large registry takes no more memory than a small one.
"""

from __future__ import annotations

from collections.abc import Generator as Walk
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields

from lorareg.registry import ledger
from lorareg.registry.blobs import StoredBlob, is_digest
from lorareg.registry.errors import BlobsElsewhereError, IntegrityError, MissingBlobError, RegistryError
from lorareg.registry.lookup import Lookup, Snapshot
from lorareg.registry.named_blobs import NamedBlob, named_among, named_blobs
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

_REMEDY = "Restore the database from a backup."
_MISSING = "is missing from the blob store"

_OTHER_BASE_MODEL = (
    "SELECT adapter.name, adapter.version, adapter.base_model, cohort.base_model AS of_cohort "
    "FROM adapter JOIN cohort ON cohort.id = adapter.cohort_id WHERE cohort.base_model <> adapter.base_model"
)
_OTHER_NAME = (
    "SELECT tag.adapter_name, tag.label, adapter.name "
    "FROM tag JOIN adapter ON adapter.id = tag.adapter_id WHERE adapter.name <> tag.adapter_name"
)
_OTHER_GENERATOR = (
    "SELECT encoding.id, encoding.generator_id FROM encoding JOIN adapter ON adapter.id = encoding.adapter_id "
    "JOIN generator ON generator.id = encoding.generator_id JOIN cohort ON cohort.id = generator.cohort_id "
    "WHERE cohort.base_model <> adapter.base_model"
)
_DIGESTED = (
    "SELECT adapter.name, adapter.version, adapter.digest, config.sha256 AS config, weights.sha256 AS weights "
    "FROM adapter LEFT JOIN adapter_file config ON config.adapter_id = adapter.id AND config.path = :config "
    "LEFT JOIN adapter_file weights ON weights.adapter_id = adapter.id AND weights.path = :weights"
)


def check(lookup: Lookup, read_data: bool) -> Iterator[Finding]:
    """Yield every problem found, in the order of the walk; `read_data` also hashes every blob."""
    try:
        with lookup.snapshot() as frozen:
            are_rows_readable = yield from _row_problems(frozen)
            for what, remark in lookup.backend.remarks():
                yield Finding(what, remark, "The next change writes it.", severity="information")
            if not are_rows_readable:
                return
            yield from _reference_problems(frozen)
            yield from _kinship_problems(frozen)
            yield from _adapter_problems(frozen)
            yield from _unfinished_sweeps(frozen)
            unclear = yield from _unlike_the_store(frozen)
    except BlobsElsewhereError:
        raise
    except RegistryError as error:
        yield Finding("database", str(error.fields["reason"]), _REMEDY)
        return
    yield from _unclear_problems(lookup, unclear)
    if read_data:
        yield from _content_problems(lookup)


def expect_sound_rows(lookup: Lookup) -> None:
    """All rows are there and intact, for who adds up what they say.

    Raises:
        IntegrityError: the first problem that was found.
        RegistryError: the database cannot be read.
    """
    with lookup.snapshot() as frozen:
        for found in _row_problems(frozen):
            raise IntegrityError(
                what=found.what.capitalize(), expected="all as it was written", found=found.problem, remedy=found.remedy
            )


def _row_problems(frozen: Snapshot) -> Walk[Finding, None, bool]:
    """What is wrong with the database and with single rows; whether all rows can be read."""
    for what, problem in frozen.backend.problems(frozen.fetch):
        yield Finding(what, problem, _REMEDY)
    sums = {}
    for table in TABLES:
        found = yield from _table_problems(frozen, table)
        if found is None:
            return False
        sums[table] = found
    yield from _ledger_problems(frozen, sums)
    return True


def _table_problems(frozen: Snapshot, table: str) -> Walk[Finding, None, ledger.Sum | None]:
    """Each row against its digest; what they add up to, or None where they are of another table."""
    columns = {field.name for field in fields(TABLES[table])} | {"row_digest"}
    found = ledger.Sum()
    for row in frozen.stream(every_row(table)):
        if row.keys() != columns:
            yield Finding(f"table {table!r}", "its columns are not those that it was made with", _REMEDY)
            return None
        try:
            verify_row(table, row)
        except IntegrityError as error:
            problem = f"its columns hash to {error.fields['found']}, not to its {error.fields['expected']}"
            yield Finding(str(error.fields["what"]), problem, _REMEDY)
        found = found.changed(ledger.of_row(row["row_digest"]))
    return found


def _ledger_problems(frozen: Snapshot, sums: Mapping[str, ledger.Sum]) -> Iterator[Finding]:
    """Whether all rows are there that were written, and none that were taken away."""
    kept = frozen.fetch(every_row(ledger.TABLE))
    found = {table: one for table, one in sums.items() if table != ledger.TABLE}
    if not kept:
        if any(one.rows for one in found.values()):
            yield Finding("table 'ledger'", "its row is gone", _REMEDY)
        return
    try:
        verify_row(ledger.TABLE, kept[0])
    except IntegrityError:
        return  # said with the other rows
    expected = ledger.load(kept[0]["sums"])
    for table, one in found.items():
        due = expected.get(table, ledger.Sum())
        if one.rows != due.rows:
            yield Finding(f"table {table!r}", f"it has {one.rows} rows, not {due.rows}", _REMEDY)
        elif one != due:
            problem = "its rows are not those that were written last: some are older or lost"
            yield Finding(f"table {table!r}", problem, _REMEDY)


def _reference_problems(frozen: Snapshot) -> Iterator[Finding]:
    """What foreign keys say, whether or not they were switched on: what a row refers to is there."""
    for table, column, target in REFERENCES:
        lost = f"LEFT JOIN {target} AS target ON target.id = {table}.{column} WHERE target.id IS NULL"
        for row in frozen.stream(f"SELECT {table}.* FROM {table} {lost} AND {table}.{column} IS NOT NULL"):
            problem = f"row {row_name(row)} refers to a row of table {target!r} that is gone"
            yield Finding(f"table {table!r}", problem, _REMEDY)


def _kinship_problems(frozen: Snapshot) -> Iterator[Finding]:
    """What foreign keys cannot say: that rows which refer to each other also belong together."""
    for row in frozen.stream(_OTHER_BASE_MODEL):
        problem = f"its base model is {row['base_model']}, but its cohort's is {row['of_cohort']}"
        yield Finding(f"adapter {row['name']}@{row['version']}", problem, _REMEDY)
    for row in frozen.stream(_OTHER_NAME):
        problem = f"it points at a version of {row['name']}"
        yield Finding(f"tag {row['adapter_name']}@{row['label']}", problem, _REMEDY)
    for row in frozen.stream(_OTHER_GENERATOR):
        problem = f"its generator {row['generator_id']} is for another base model than its adapter"
        yield Finding(f"encoding {row['id']}", problem, "Compress the adapter again.")


def _adapter_problems(frozen: Snapshot) -> Iterator[Finding]:
    """Layouts and adapters against the digests that identify them."""
    for row in frozen.stream("SELECT name, layout, layout_digest FROM cohort"):
        if _layout_digest(row["layout"]) != row["layout_digest"]:
            yield Finding(f"cohort {row['name']}", "its layout does not match its layout digest", _REMEDY)
    for row in frozen.stream(_DIGESTED, config=CONFIG_FILE, weights=WEIGHTS_FILE):
        what = f"adapter {row['name']}@{row['version']}"
        files = {CONFIG_FILE: row["config"], WEIGHTS_FILE: row["weights"]}
        missing = [path for path, sha256 in files.items() if sha256 is None]
        if missing:
            yield Finding(what, f"it has no {' and no '.join(missing)}", _REMEDY)
        elif sha256_hex(canonical_json([list(file) for file in files.items()]).encode()) != row["digest"]:
            yield Finding(what, "its files are not those its digest was made from", _REMEDY)


def _layout_digest(layout: str) -> str | None:
    try:
        return Layout.from_json(layout).digest
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _unfinished_sweeps(frozen: Snapshot) -> Iterator[Finding]:
    for row in frozen.stream("SELECT sha256 FROM retired_blob WHERE state = 'deleting'"):
        problem, remedy = "a sweep was stopped before it was done with it", "`lorareg prune --sweep` goes on."
        yield Finding(f"blob {row['sha256']}", problem, remedy, severity="information")


def _unlike_the_store(frozen: Snapshot) -> Walk[Finding, None, list[str]]:
    """Blobs of which rows and the store's own list do not say the same: to be looked at once more, for both change."""
    unclear = []
    for named, stored in _side_by_side(named_blobs(frozen), frozen.blobs.listed()):
        if named is not None and not is_digest(named.sha256):
            yield named.finding("has a name that is no digest")
            continue
        if named is None or stored is None:
            differ = named is None or not named.is_released
        else:
            differ = named.size_bytes != stored.size_bytes
        if differ:
            unclear.append((named or stored).sha256)  # type: ignore[union-attr]
    return unclear


def _side_by_side(
    named: Iterable[NamedBlob], stored: Iterator[StoredBlob]
) -> Iterator[tuple[NamedBlob | None, StoredBlob | None]]:
    """Both come by digest, but for what damage made of one."""
    blob = next(stored, None)
    for one in named:
        while blob is not None and blob.sha256 < str(one.sha256):
            yield None, blob
            blob = next(stored, None)
        if blob is not None and blob.sha256 == one.sha256:
            yield one, blob
            blob = next(stored, None)
        else:
            yield one, None
    while blob is not None:
        yield None, blob
        blob = next(stored, None)


def _unclear_problems(lookup: Lookup, digests: list[str]) -> Iterator[Finding]:
    """Those that are as unlike now: others may have let go of a blob, or come to name it, since."""
    unnamed = set(digests)
    for named in named_among(lookup, digests):
        unnamed.discard(named.sha256)
        try:
            found = lookup.blobs.size(named.sha256)
        except MissingBlobError:
            if not named.is_released:
                yield named.finding(_MISSING)
            continue
        if found != named.size_bytes:
            yield named.finding(f"has {found} bytes, not {named.size_bytes}")
    for digest in sorted(unnamed):
        if digest in lookup.blobs:
            remedy = "It does no harm; it takes space."
            yield Finding(f"blob {digest}", "nothing refers to it", remedy, severity="information")


def _content_problems(lookup: Lookup) -> Iterator[Finding]:
    """Every blob that is there against its digest; one of another size was told of already."""
    for blob in lookup.blobs.listed():
        try:
            lookup.blobs.verify(blob.sha256)
        except MissingBlobError:
            yield from _unclear_problems(lookup, [blob.sha256])
        except IntegrityError as error:
            for named in named_among(lookup, [blob.sha256]):
                if named.size_bytes == blob.size_bytes:
                    yield named.finding(f"hashes to {error.fields['found']}")
