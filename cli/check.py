"""`lorareg check`: is everything there and undamaged? Changes nothing, but with `--repair`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, Table
from lorareg.registry.errors import CheckFailedError, LoraregError, RepairIncompleteError
from lorareg.registry.types import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from lorareg.registry.mend import Mended
    from lorareg.registry.reader import Reader


def _count(problems: int) -> str:
    return f"{problems or 'no'} problem{'' if problems == 1 else 's'}"


def check(
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also hash every blob and decode every code, comparing digests.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what second copies or intact originals can; implies --read-data.")
    ] = False,
    copies: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="DIR|URL", show_default=False, help="A second copy to mend from, beside those it knows."
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that nothing is damaged or missing.

    Looks at the database, the digest of every row, what rows add up to, and every blob. Changes nothing, but with
    --repair. That takes rows and files from second copies (`lorareg replicate`), and gives up a damaged code for its
    original where that is intact. What could not be mended is listed.

    Raises:
        CheckFailedError: something is damaged or missing.
        RepairIncompleteError: something could not be mended.
    """
    from lorareg.registry.reader import Reader

    mends = repair or bool(copies)
    mended, failed = _mend(home, copies or []) if mends else ([], [])
    with Reader(home) as reader:
        findings, where = _findings(reader, read_data or mends), reader.home
    problems = [finding for finding in findings if finding.severity == "error"]
    data = {"problems": len(problems), "read_data": read_data or mends, "findings": [asdict(one) for one in findings]}
    if mends:
        data |= {"mended": [asdict(one) for one in mended], "failed": [str(error) for error in failed]}
    depth = "rows, blobs and codes were read" if read_data or mends else "blobs were not read; --read-data does that"
    notes = [f"Not all could be tried: {error}" for error in failed]
    verdict = f"{where}: {_count(len(problems))} ({depth})."
    brief = [f"{problem.what}: {problem.problem}" for problem in problems]
    Output(as_json, quiet).show(data, *_tables(mended, findings), *notes, verdict, brief=brief)
    if problems:
        error = RepairIncompleteError if mends else CheckFailedError
        raise error(problems=len(problems), home=where)


def _tables(mended: list[Mended], findings: list[Finding]) -> Iterator[Table]:
    if mended:
        done = [(one.what, one.how) for one in mended]
        yield Table(("mended", "how"), done, flexible=frozenset({"mended", "how"}))
    if findings:
        rows = [(finding.severity, finding.what, finding.problem, finding.remedy) for finding in findings]
        columns = ("severity", "what", "problem", "remedy")
        yield Table(columns, rows, flexible=frozenset({"what", "problem", "remedy"}))


def _mend(home: Path | None, copies: list[str]) -> tuple[list[Mended], list[LoraregError]]:
    from lorareg.compress.repair import repair
    from lorareg.registry.store import Registry

    with Registry.open(home, create=False) as registry:
        done = list(repair(registry, copies))
    return [one for one in done if not isinstance(one, LoraregError)], [e for e in done if isinstance(e, LoraregError)]


def _findings(reader: Reader, read_data: bool) -> list[Finding]:
    from lorareg.registry.check import check as run_check

    findings = list(run_check(reader, read_data))
    if read_data:
        from lorareg.compress.proofs.verify import check_encodings

        try:
            findings.extend(check_encodings(reader))
        except LoraregError as error:  # rows that say which codes there are
            findings.append(Finding("codes", str(error), "Mend the rows first."))
    return findings
