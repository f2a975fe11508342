"""`lorareg check`: is everything there and undamaged? Changes nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, Table
from lorareg.registry.errors import CheckFailedError


def _count(problems: int) -> str:
    return f"{problems or 'no'} problem{'' if problems == 1 else 's'}"


def check(
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also hash every blob and decode every code, comparing digests.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that nothing is damaged or missing.

    Looks at the database, the digest of every row, and every blob. Changes nothing.

    Raises:
        CheckFailedError: something is damaged or missing.
    """
    from lorareg.registry.check import check as run_check
    from lorareg.registry.reader import Reader

    with Reader(home) as reader:
        findings = list(run_check(reader, read_data))
        if read_data:
            from lorareg.compress.proofs.verify import check_encodings

            findings.extend(check_encodings(reader))
        where = reader.home
    problems = [finding for finding in findings if finding.severity == "error"]
    depth = "rows, blobs and codes were read" if read_data else "blobs were not read; --read-data does that"
    verdict = f"{where}: {_count(len(problems))} ({depth})."
    rows = [(finding.severity, finding.what, finding.problem, finding.remedy) for finding in findings]
    tables = (
        [Table(("severity", "what", "problem", "remedy"), rows, flexible=frozenset({"what", "problem", "remedy"}))]
        if rows
        else []
    )
    data = {"problems": len(problems), "read_data": read_data, "findings": [asdict(finding) for finding in findings]}
    brief = [f"{problem.what}: {problem.problem}" for problem in problems]
    Output(as_json, quiet).show(data, *tables, verdict, brief=brief)
    if problems:
        raise CheckFailedError(problems=len(problems), home=where)
