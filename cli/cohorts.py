"""`lorareg cohorts`: which adapters one generator can cover together."""

from __future__ import annotations

from typing import Any

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table


def cohorts(home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the cohorts and their generators.

    A cohort is the adapters with the same base model and layout, which one generator can cover.
    """
    from lorareg.registry.reader import Reader

    rows: list[dict[str, Any]] = []
    with Reader(home) as registry:
        counts = registry.cohort_counts()
        for cohort in registry.cohorts():
            generators = registry.generators(cohort.id)
            adapters, encoded = counts.get(cohort.id, (0, 0))
            rows.append(
                {
                    "name": cohort.name,
                    "base_model": cohort.base_model,
                    "layout_digest": cohort.layout_digest,
                    "adapters": adapters,
                    "encoded": encoded,
                    "generators": [f"{generator.arch} v{generator.version}" for generator in generators],
                }
            )
    table = Table(
        ("cohort", "base model", "adapters", "encoded", "generators"),
        [
            (
                row["name"],
                row["base_model"],
                str(row["adapters"]),
                str(row["encoded"]),
                ", ".join(row["generators"]) or MISSING,
            )
            for row in rows
        ],
        numbers=frozenset({"adapters", "encoded"}),
        flexible=frozenset({"cohort", "base model", "generators"}),
    )
    Output(as_json, quiet).show({"cohorts": rows}, table, brief=[str(row["name"]) for row in rows])
