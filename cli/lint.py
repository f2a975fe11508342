"""`lorareg lint`: what would go wrong with adapters once they are served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, Table
from lorareg.registry.errors import LintError

if TYPE_CHECKING:
    from lorareg.compress.serving.lint import LintFinding


def lint(
    adapters: Annotated[
        list[str], typer.Argument(metavar="PATH|TASK...", help="Adapters on disk, or tasks in the registry.")
    ],
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="vllm|sglang|lorax", help="The engine that is to serve them."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell what would go wrong with adapters.

    Looks at folders, files and archives, also at such as `ingest` refuses, and at what is stored of tasks. Changes
    nothing. Notes are for information; an error is what no program could make work.

    Raises:
        LintError: there are errors.
    """
    from lorareg.compress.serving.engines import ENGINES
    from lorareg.compress.serving.lint import RULES

    if profile is not None and profile not in ENGINES:
        raise typer.BadParameter(f"{profile!r} is none of {', '.join(ENGINES)}.", param_hint="--profile")
    with ExitStack() as stack:
        checked = [(name, found) for given in adapters for name, found in _each(given, home, profile, stack)]
    rows = [(name, f.level, f.rule, f.found) for name, found in checked for f in found]
    table = Table(("adapter", "level", "rule", "what"), rows, flexible=frozenset({"what"}))
    counts = {level: sum(row[1] == level for row in rows) for level in ("error", "warning", "note")}
    clean = sum(not found for _, found in checked)
    told = ", ".join(f"{count} {level}s" for level, count in counts.items())
    summary = f"{len(checked)} checked, {clean} with nothing to say; {told}"
    data = {
        "adapters": [{"adapter": name, "findings": [asdict(f) for f in found]} for name, found in checked],
        "rules": {rule: meaning for rule, (_, meaning) in RULES.items()},
        "counts": counts,
    }
    brief = [f"{name}: {level}: {rule}: {what}" for name, level, rule, what in rows]
    Output(as_json, quiet).show(data, table, summary, brief=brief)
    errors = sum(any(f.level == "error" for f in found) for _, found in checked)
    if errors:
        raise LintError(errors=errors, checked=len(checked))


def _each(
    given: str, home: Path | None, profile: str | None, stack: ExitStack
) -> Iterator[tuple[str, list[LintFinding]]]:
    """(name, findings) of what is at a path, else of a task."""
    from lorareg.compress.serving.lint import LintFinding, lint_path, lint_weights

    path = Path(given)
    if path.exists():
        from lorareg.registry.sources import find_sources

        for source in find_sources([path], stack):
            found = lint_path(source.path, profile) if source.error is None else []
            if source.error is not None:
                found = [LintFinding("cannot-be-read", "error", str(source.error))]
            yield source.shown, found
        return
    from lorareg.compress.materialize import restore_present
    from lorareg.registry.home import resolve_home
    from lorareg.registry.reader import Reader
    from lorareg.registry.types import CONFIG_FILE, Layout

    with Reader(resolve_home(home)) as reader:
        adapter = reader.adapter(given)
        layout = Layout.from_json(reader.cohort(adapter.cohort_id).layout)
        weights = restore_present(reader, adapter)
        config = json.loads(reader.read_file(adapter, CONFIG_FILE))
        yield adapter.ref, lint_weights(config, layout, weights, profile)
