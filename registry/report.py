"""What was saved, honestly: original against stored bytes for each adapter, cohort and in all.

`stored` means what would have to stay on disk to give every adapter back: codes, generators, task
vectors, config and card files, the database. What is on disk beside that (originals not pruned yet,
evaluation text, history) is listed apart, and both together are all that the registry takes.
`MEANING` says in words what each figure is and goes out with every report.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping

from lorareg.registry import report_queries as queries
from lorareg.registry.lookup import Lookup
from lorareg.registry.report_queries import Names, Use
from lorareg.registry.reserve import reserve_bytes

UNCOMPRESSED = "original"
"""The tier shown for an adapter that has no encoding: its weights are stored as they came."""

ALONE_BYTES = "alone_code_bytes"
"""The generator metric that says how large its sample adapters' codes are without it, in the mean."""

MEANING: dict[str, str] = {
    "original": "bytes of the adapters' weights files as ingested; their configs and cards are not counted here",
    "stored": "bytes that must stay to give every adapter back: codes, uncompressed weights, generators, task vectors, "
    "certificates, side files and the database",
    "marginal": "what one more adapter costs: its code (or its weights while it has none), certificate, task vector, "
    "rows, and the side files that no other adapter shares",
    "amortised": "marginal plus an even share of what is stored once: its generator among the adapters that use it, "
    "shared side files and the cohort's row among the cohort",
    "break_even": "adapters from which a generator pays: what is stored once (generator, shared side files, rows) / "
    "(mean original - mean marginal bytes of the adapters that use it)",
    "generator_pays_from": "adapters from which the generator's file costs less than coding each adapter without it, "
    "by what its sample adapters took both ways",
    "relative_error": "Frobenius norm of the difference of the weight update (delta W) over that of the original, "
    "measured on the decoded stored bytes when the adapter was encoded",
    "certificates": "what was proven of each code, with 1024 projections of its original",
    "side_files": "configs, model cards, and tensors that are no factors; equal files are stored once",
    "rows": "values in the database rows of adapters, files, encodings, generators and cohorts",
    "database_overhead": "the rest of the database file: pages, indexes, free space, history",
    "originals_kept": "weights of encoded adapters, still on disk",
    "evaluation": "samples and held-out text; not needed to give an adapter back",
    "quarantined": "files and codes of removed adapters, which `lorareg restore` brings back",
    "superseded": "older codes, and generators that no code uses",
    "retired": "originals, older codes and generators that were pruned, until the grace is over",
    "orphans": "files in the blob store that no row names",
    "reserve": "space that is kept back, so that on a full disk something can still be deleted",
}


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter's bytes. `relative_error` is None while it is stored as it came."""

    name: str
    version: int
    cohort: str
    tier: str
    codec: str | None
    generator: str | None
    original_bytes: int
    stored_bytes: int
    marginal_bytes: int
    amortised_bytes: int
    relative_error: float | None
    tolerance: dict[str, Any]
    fidelity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CohortReport:
    """One cohort's bytes; `stored_bytes` is the sum of the seven parts before it."""

    name: str
    base_model: str
    adapters: int
    encoded: int
    by_tier: dict[str, int]
    generators: list[str]
    original_bytes: int
    code_bytes: int
    uncompressed_bytes: int
    generator_bytes: int
    task_vector_bytes: int
    certificate_bytes: int
    side_file_bytes: int
    row_bytes: int
    stored_bytes: int
    stored_percent: float
    mean_marginal_bytes: float
    mean_amortised_bytes: float
    break_even_adapters: int | None
    generator_pays_from: int | None
    worst_relative_error: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole registry: `stored` and `beside` in bytes by kind, which add up to `on_disk_bytes`."""

    adapters: int
    encoded: int
    original_bytes: int
    stored_bytes: int
    stored_percent: float
    stored: dict[str, int]
    beside: dict[str, int]
    on_disk_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """All of it, as `lorareg report --json` prints it."""

    home: str
    created_at: str
    totals: Totals
    cohorts: list[CohortReport]
    adapters: list[AdapterReport]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the meaning of each figure."""
        return {**asdict(self), "meaning": MEANING}


def percent(part: float, whole: float) -> float:
    """`part` in percent of `whole`; 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0


def build_report(connection: Connection, lookup: Lookup, only: Names = None) -> Report:
    """Add up the registry behind `connection`; blobs of `lookup`, which it is too, are only asked for names and sizes.

    With `only`, a set of names, add up these adapters as if there were no others: what is nobody's (the rest of
    the database, files that no row names) counts as nothing then.

    Raises:
        RegistryError: the database cannot be read.
    """
    rows = queries.adapter_rows(connection, only)
    by_cohort: dict[int, list[RowMapping]] = {}
    for row in rows:
        by_cohort.setdefault(row["cohort_id"], []).append(row)
    blob_bytes = queries.cohort_blob_bytes(connection, only)
    generator_rows = queries.generator_row_bytes(connection, only)
    users = Counter(row["generator_id"] for row in rows)
    del rows  # each cohort's go when it is added up
    cohorts: list[CohortReport] = []
    adapters: list[AdapterReport] = []
    for cohort in queries.cohort_rows(connection):
        members = by_cohort.pop(cohort["id"], [])
        if not members:
            continue
        uses = blob_bytes[cohort["id"]]
        shared_rows = int(cohort["row_bytes"]) + generator_rows.get(cohort["id"], 0)
        reports = _adapter_reports(cohort["name"], members, uses, shared_rows, users)
        cohorts.append(_cohort_report(cohort, members, reports, uses, shared_rows))
        adapters.extend(reports)
    adapters.sort(key=lambda adapter: (adapter.name, adapter.version))
    return Report(
        home=str(lookup.home),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        totals=_totals(connection, lookup, cohorts, only),
        cohorts=cohorts,
        adapters=adapters,
    )


def _own_bytes(row: RowMapping) -> int:
    """The marginal bytes of an adapter: all that would go if it alone went."""
    stored = row["original_bytes"] if row["tier"] is None else row["code_bytes"]
    return int(
        stored + sum(row[part] for part in ("task_vector_bytes", "certificate_bytes", "row_bytes", "side_bytes"))
    )


def _adapter_reports(
    cohort: str,
    members: Sequence[RowMapping],
    uses: Mapping[Use, int],
    shared_rows: int,
    users: Mapping[int | None, int],
) -> list[AdapterReport]:
    shared = (_shared_side_bytes(members, uses) + shared_rows) / len(members)
    reports = []
    for row in members:
        marginal = _own_bytes(row)
        generator_share = (row["generator_bytes"] or 0) / users[row["generator_id"]]
        fidelity = json.loads(row["fidelity"]) if row["fidelity"] else {}
        error = fidelity.get("relative_error")
        reports.append(
            AdapterReport(
                name=row["name"],
                version=row["version"],
                cohort=cohort,
                tier=row["tier"] or UNCOMPRESSED,
                codec=row["codec"],
                generator=_generator_name(row),
                original_bytes=row["original_bytes"],
                stored_bytes=row["original_bytes"] if row["tier"] is None else row["code_bytes"],
                marginal_bytes=marginal,
                amortised_bytes=round(marginal + generator_share + shared),
                relative_error=None if error is None else float(error),
                tolerance=json.loads(row["tolerance"]) if row["tolerance"] else {},
                fidelity=fidelity,
            )
        )
    return reports


def _generator_name(row: RowMapping) -> str | None:
    return None if row["generator_id"] is None else f"{row['arch']} v{row['generator_version']}"


def _shared_side_bytes(members: Sequence[RowMapping], uses: Mapping[Use, int]) -> int:
    """Bytes of the side files that several adapters share."""
    return int(uses[Use.SIDE_FILE] - sum(row["side_bytes"] for row in members))


def _break_even(members: Sequence[RowMapping], shared_bytes: int) -> int | None:
    """The number of adapters from which a generator pays; None without one, or if it never does."""
    users = [row for row in members if row["generator_id"] is not None]
    saved = sum(row["original_bytes"] - _own_bytes(row) for row in users)
    return math.ceil(shared_bytes * len(users) / saved) if users and saved > 0 else None


def _pays_from(members: Sequence[RowMapping]) -> int | None:
    """The number of adapters from which the newest generator of their own saves more codes than its file takes."""
    users = [row for row in members if row["generator_cohort_id"] == row["cohort_id"]]
    newest = max((row["generator_id"] for row in users), default=None)
    users = [row for row in users if row["generator_id"] == newest]
    alone = json.loads(users[0]["metrics"]).get(ALONE_BYTES) if users else None
    if alone is None:
        return None
    saved = alone - sum(row["code_bytes"] for row in users) / len(users)
    return math.ceil(users[0]["generator_bytes"] / saved) if saved > 0 else None


def _cohort_report(
    cohort: RowMapping,
    members: Sequence[RowMapping],
    reports: Sequence[AdapterReport],
    uses: Mapping[Use, int],
    shared_rows: int,
) -> CohortReport:
    count = len(members)
    original = sum(report.original_bytes for report in reports)
    vectors = sum(row["task_vector_bytes"] for row in members)
    certificates = sum(row["certificate_bytes"] for row in members)
    rows = int(sum(row["row_bytes"] for row in members) + shared_rows)
    blobs = sum(uses[use] for use in (Use.CODE, Use.UNCOMPRESSED, Use.GENERATOR, Use.SIDE_FILE))
    stored = blobs + vectors + certificates + rows
    shared = uses[Use.GENERATOR] + _shared_side_bytes(members, uses) + shared_rows
    errors = [report.relative_error for report in reports if report.relative_error is not None]
    return CohortReport(
        name=cohort["name"],
        base_model=cohort["base_model"],
        adapters=count,
        encoded=sum(report.tier != UNCOMPRESSED for report in reports),
        by_tier=dict(sorted(Counter(report.tier for report in reports).items())),
        generators=sorted({report.generator for report in reports if report.generator}),
        original_bytes=original,
        code_bytes=uses[Use.CODE],
        uncompressed_bytes=uses[Use.UNCOMPRESSED],
        generator_bytes=uses[Use.GENERATOR],
        task_vector_bytes=vectors,
        certificate_bytes=certificates,
        side_file_bytes=uses[Use.SIDE_FILE],
        row_bytes=rows,
        stored_bytes=stored,
        stored_percent=percent(stored, original),
        mean_marginal_bytes=sum(report.marginal_bytes for report in reports) / count,
        mean_amortised_bytes=sum(report.amortised_bytes for report in reports) / count,
        break_even_adapters=_break_even(members, shared),
        generator_pays_from=_pays_from(members),
        worst_relative_error=max(errors, default=None),
    )


def _totals(connection: Connection, lookup: Lookup, cohorts: Sequence[CohortReport], only: Names) -> Totals:
    uses = queries.blob_bytes(connection, only)
    vectors = sum(cohort.task_vector_bytes for cohort in cohorts)
    certificates = sum(cohort.certificate_bytes for cohort in cohorts)
    rows = sum(cohort.row_bytes for cohort in cohorts)
    stored = {
        "codes": uses[Use.CODE],
        "uncompressed": uses[Use.UNCOMPRESSED],
        "generators": uses[Use.GENERATOR],
        "task_vectors": vectors,
        "certificates": certificates,
        "side_files": uses[Use.SIDE_FILE],
        "rows": rows,
        "database_overhead": 0,
    }
    beside = {
        "originals_kept": uses[Use.ORIGINAL],
        "evaluation": uses[Use.EVALUATION],
        "quarantined": uses[Use.QUARANTINED],
        "superseded": uses[Use.SUPERSEDED],
        "retired": uses[Use.RETIRED],
        "orphans": 0,
        "reserve": 0,
    }
    if only is None:
        beside["reserve"] = reserve_bytes(lookup.home)
        beside["orphans"] = queries.orphan_bytes(connection, lookup.blobs.listed())
        stored["database_overhead"] = max(
            0, queries.database_bytes(connection, lookup.backend) - vectors - certificates - rows
        )
    original = sum(cohort.original_bytes for cohort in cohorts)
    stored_bytes = sum(stored.values())
    return Totals(
        adapters=sum(cohort.adapters for cohort in cohorts),
        encoded=sum(cohort.encoded for cohort in cohorts),
        original_bytes=original,
        stored_bytes=stored_bytes,
        stored_percent=percent(stored_bytes, original),
        stored=stored,
        beside=beside,
        on_disk_bytes=stored_bytes + sum(beside.values()),
    )
