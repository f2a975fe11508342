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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """All of it, as `lorareg report --json` prints it.

    Adapters come from the database each time they are walked through, by name and version: while its connection is
    open, and never all at once.
    """

    home: str
    created_at: str
    totals: Totals
    cohorts: list[CohortReport]
    adapters: Iterable[AdapterReport]

    def summary(self) -> dict[str, Any]:
        """All but the adapters as plain JSON values, with the meaning of each figure."""
        return {
            "home": self.home,
            "created_at": self.created_at,
            "totals": asdict(self.totals),
            "cohorts": [asdict(cohort) for cohort in self.cohorts],
            "meaning": MEANING,
        }


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
    groups: dict[int, list[_Group]] = {}
    users: Counter[int | None] = Counter()
    for row in queries.group_rows(connection, only):
        group = _Group.of(row)
        groups.setdefault(row["cohort_id"], []).append(group)
        users[group.generator_id] += group.adapters
    blob_bytes = queries.cohort_blob_bytes(connection, only)
    generator_rows = queries.generator_row_bytes(connection, only)
    worst = queries.worst_errors(connection, only)
    cohorts: list[CohortReport] = []
    shares: dict[int, tuple[str, float]] = {}
    for row in queries.cohort_rows(connection):
        if row["id"] in groups:
            shared_rows = int(row["row_bytes"]) + generator_rows.get(row["id"], 0)
            members = _Members(groups[row["id"]], blob_bytes[row["id"]], shared_rows, users)
            shares[row["id"]] = row["name"], members.shared_bytes / members.adapters
            cohorts.append(_cohort_report(row, members, worst.get(row["id"])))
    return Report(
        home=str(lookup.home),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        totals=_totals(connection, lookup, cohorts, only),
        cohorts=cohorts,
        adapters=_Adapters(connection, only, shares, users),
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Adapters of one cohort that are stored one way: in a tier, with a generator or none."""

    adapters: int
    tier: str | None
    generator_id: int | None
    generator: str | None
    is_own: bool  # the generator was made for this cohort
    generator_bytes: int
    alone_bytes: float | None
    original_bytes: int
    code_bytes: int
    task_vector_bytes: int
    certificate_bytes: int
    side_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, row: RowMapping) -> _Group:
        metrics = json.loads(row["metrics"]) if row["metrics"] else {}
        return cls(
            adapters=row["adapters"],
            tier=row["tier"],
            generator_id=row["generator_id"],
            generator=_generator_name(row),
            is_own=row["generator_cohort_id"] == row["cohort_id"],
            generator_bytes=row["generator_bytes"] or 0,
            alone_bytes=metrics.get(ALONE_BYTES),
            **{column: int(row[column] or 0) for column in queries.ADDED_UP},
        )

    @property
    def marginal_bytes(self) -> int:
        return _own_bytes({name: getattr(self, name) for name in ("tier", *queries.ADDED_UP)})


@dataclass(frozen=True, slots=True)
class _Members:
    """The adapters of a cohort, added up."""

    groups: Sequence[_Group]
    uses: Mapping[Use, int]
    shared_rows: int  # bytes of the rows that they have in common
    users: Mapping[int | None, int]  # adapters by generator, those of other cohorts as well

    def sum(self, what: str) -> int:
        return sum(getattr(group, what) for group in self.groups)

    @property
    def adapters(self) -> int:
        return self.sum("adapters")

    @property
    def shared_bytes(self) -> int:
        """What is stored once for all of them, but for generators."""
        return self.uses[Use.SIDE_FILE] - self.sum("side_bytes") + self.shared_rows

    @property
    def generator_shares(self) -> float:
        """What they have to bear of generators, which other cohorts may use as well."""
        return sum(group.generator_bytes * group.adapters / self.users[group.generator_id] for group in self.groups)

    @property
    def break_even(self) -> int | None:
        """The number of adapters from which a generator pays; None without one, or if it never does."""
        users = [group for group in self.groups if group.generator_id is not None]
        saved = sum(group.original_bytes - group.marginal_bytes for group in users)
        shared = self.uses[Use.GENERATOR] + self.shared_bytes
        return math.ceil(shared * sum(group.adapters for group in users) / saved) if users and saved > 0 else None

    @property
    def pays_from(self) -> int | None:
        """The number of adapters from which the newest generator of their own saves more codes than its file takes."""
        own = [group for group in self.groups if group.generator_id is not None and group.is_own]
        newest = max((group.generator_id or 0 for group in own), default=None)
        users = [group for group in own if group.generator_id == newest]
        alone = users[0].alone_bytes if users else None
        if alone is None:
            return None
        saved = alone - sum(group.code_bytes for group in users) / sum(group.adapters for group in users)
        return math.ceil(users[0].generator_bytes / saved) if saved > 0 else None


class _Adapters:
    """Every adapter's report, by name and version."""

    def __init__(
        self,
        connection: Connection,
        only: Names,
        shares: Mapping[int, tuple[str, float]],
        users: Mapping[int | None, int],
    ) -> None:
        self.connection, self.only, self.shares, self.users = connection, only, shares, users

    def __iter__(self) -> Iterator[AdapterReport]:
        for row in queries.adapter_rows(self.connection, self.only):
            cohort, shared = self.shares[row["cohort_id"]]
            generator_share = (row["generator_bytes"] or 0) / self.users[row["generator_id"]]
            yield _adapter_report(row, cohort, shared + generator_share)


def _adapter_report(row: RowMapping, cohort: str, shared_bytes: float) -> AdapterReport:
    marginal = _own_bytes(row)
    fidelity = json.loads(row["fidelity"]) if row["fidelity"] else {}
    error = fidelity.get("relative_error")
    return AdapterReport(
        name=row["name"],
        version=row["version"],
        cohort=cohort,
        tier=row["tier"] or UNCOMPRESSED,
        codec=row["codec"],
        generator=_generator_name(row),
        original_bytes=row["original_bytes"],
        stored_bytes=row["original_bytes"] if row["tier"] is None else row["code_bytes"],
        marginal_bytes=marginal,
        amortised_bytes=round(marginal + shared_bytes),
        relative_error=None if error is None else float(error),
        tolerance=json.loads(row["tolerance"]) if row["tolerance"] else {},
        fidelity=fidelity,
    )


def _own_bytes(row: Mapping[Any, Any]) -> int:
    """The marginal bytes of an adapter: all that would go if it alone went."""
    stored = row["original_bytes"] if row["tier"] is None else row["code_bytes"]
    return int(
        stored + sum(row[part] for part in ("task_vector_bytes", "certificate_bytes", "row_bytes", "side_bytes"))
    )


def _generator_name(row: RowMapping) -> str | None:
    return None if row["generator_id"] is None else f"{row['arch']} v{row['generator_version']}"


def _cohort_report(cohort: RowMapping, members: _Members, worst_error: float | None) -> CohortReport:
    uses, original, marginal = members.uses, members.sum("original_bytes"), members.sum("marginal_bytes")
    vectors, certificates = members.sum("task_vector_bytes"), members.sum("certificate_bytes")
    rows = members.sum("row_bytes") + members.shared_rows
    blobs = sum(uses[use] for use in (Use.CODE, Use.UNCOMPRESSED, Use.GENERATOR, Use.SIDE_FILE))
    stored = blobs + vectors + certificates + rows
    by_tier: Counter[str] = Counter()
    for group in members.groups:
        by_tier[group.tier or UNCOMPRESSED] += group.adapters
    return CohortReport(
        name=cohort["name"],
        base_model=cohort["base_model"],
        adapters=members.adapters,
        encoded=members.adapters - by_tier[UNCOMPRESSED],
        by_tier=dict(sorted(by_tier.items())),
        generators=sorted({group.generator for group in members.groups if group.generator}),
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
        mean_marginal_bytes=marginal / members.adapters,
        mean_amortised_bytes=(marginal + members.generator_shares + members.shared_bytes) / members.adapters,
        break_even_adapters=members.break_even,
        generator_pays_from=members.pays_from,
        worst_relative_error=worst_error,
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
