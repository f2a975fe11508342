"""`lorareg ingest`: take adapters in, past those that are refused."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table, format_bytes
from lorareg.cli.progress import progress
from lorareg.registry.errors import LoraregError, PartialIngestError
from lorareg.registry.types import DIFFUSERS_FILE, LONE_SUFFIX

if TYPE_CHECKING:
    from lorareg.compress.progress import Reporter
    from lorareg.registry.sources import AdapterSource
    from lorareg.registry.store import Registry

REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be said of adapters in place of what they say themselves."""

    name: str | None
    description: str | None
    base_model: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one adapter."""

    path: str
    name: str
    version: int | None
    outcome: str
    original_bytes: int | None
    reason: str | None
    note: str = ""


def task_name(root: Path, folder: Path) -> str:
    """The name of the adapter in `folder`, found under `root`; a lone file stands for a folder of its name.

    The folder's own name when `root` is the adapter; else its path below `root`, where the last part
    is the task and the parts before it, joined with dots, its namespace.
    """
    if folder.suffix == LONE_SUFFIX and not folder.is_dir():
        named = folder.parent if folder.name == DIFFUSERS_FILE else folder.with_suffix("")
        folder, root = named, (named if root == folder else root)
    parts = folder.relative_to(root).parts
    if not parts:
        return folder.resolve().name
    return "/".join([*([".".join(parts[:-1])] if parts[1:] else []), parts[-1]])


def _ingest_all(
    registry: Registry,
    found: list[AdapterSource],
    asked: Asked,
    reporter: Reporter,
    lines: list[Line],
) -> list[LoraregError]:
    """Take in every adapter found, in order, adding a line for each; gives the errors of those refused.

    Raises:
        OSError: the machine refused (disk full); `lines` tells what was taken in before.
    """
    from lorareg.registry.ingest import IngestRequest

    names = {source: asked.name or task_name(source.root, source.path) for source in found if source.error is None}
    requests = [
        IngestRequest(
            source.path,
            name,
            asked.description,
            asked.base_model,
            source.shown if source.shown != str(source.path) else None,
        )
        for source, name in names.items()
    ]
    outcomes = registry.ingest_each(requests)
    refusals: list[LoraregError] = []
    reporter.start("ingest", len(found))
    for source in found:
        name = names.get(source, MISSING)
        try:
            outcome = next(outcomes) if source.error is None else source.error
        except OSError as error:
            lines.append(_refused(source, name, error))
            raise
        if isinstance(outcome, LoraregError):
            refusals.append(source.named(outcome))
            lines.append(_refused(source, name, refusals[-1]))
        else:
            adapter = outcome.adapter
            size = adapter.original_bytes
            lines.append(Line(source.shown, adapter.name, adapter.version, outcome.kind, size, None, outcome.note))
        reporter.advance()
    reporter.finish()
    return refusals


def _refused(source: AdapterSource, name: str, error: Exception) -> Line:
    return Line(source.shown, name, None, REFUSED, None, str(error))


def _show(output: Output, lines: list[Line]) -> None:
    counts = dict(Counter(line.outcome for line in lines))
    rows = [
        (
            line.name if line.version is None else f"{line.name}@{line.version}",
            line.outcome,
            MISSING if line.original_bytes is None else format_bytes(line.original_bytes),
            line.reason or (f"{line.path} ({line.note})" if line.note else line.path),
        )
        for line in lines
    ]
    table = Table(
        ("adapter", "outcome", "size", "from, or reason"),
        rows,
        numbers=frozenset({"size"}),
        flexible=frozenset({"from, or reason"}),
    )
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    refused = [f"{line.path}: {line.reason}" for line in lines if line.outcome == REFUSED]
    output.show({"adapters": [asdict(line) for line in lines], "counts": counts}, table, summary, brief=refused)


def ingest(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Adapters, archives, or folders of them.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the one adapter found: TASK or NS/TASK.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="What the task is; default: the text of the model card.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="What a lone file was trained on, where it does not say so."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take in adapters of PEFT, diffusers and kohya-ss.

    Finds them in PATH and in all folders below, in archives too (tar, also under gzip, bzip2, xz or zstd; zip).
    The model card tells the task, unless --description does.

    The same bytes again change nothing; other bytes under a known name become its next version. An
    adapter that is refused does not stop the others, and the exit code says so.

    Raises:
        InvalidAdapterError: the only adapter found is refused.
        PartialIngestError: some of several adapters are refused.
    """
    from lorareg.registry.sources import find_sources
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    with ExitStack() as stack:
        found = list(find_sources(paths, stack))
        if name is not None and len(found) != 1:
            raise typer.BadParameter(f"{len(found)} adapters found; a name fits one.", param_hint="--name")
        if len(found) == 1 and found[0].error is not None:
            raise found[0].error  # before a registry is made for nothing
        registry, reporter = (
            stack.enter_context(Registry.open(home, create=True)),
            stack.enter_context(progress(output)),
        )
        lines: list[Line] = []
        try:
            refusals = _ingest_all(registry, found, Asked(name, description, base_model), reporter, lines)
        except OSError:
            _show(output, lines)
            raise
    if len(found) == 1 and refusals:
        raise refusals[0]
    _show(output, lines)
    if refusals:
        raise PartialIngestError(refused=len(refusals), found=len(lines))
