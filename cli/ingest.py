"""`lorareg ingest`: take adapters in, past those that are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table, format_bytes
from lorareg.cli.progress import progress
from lorareg.registry.errors import InvalidAdapterError, LoraregError, PartialIngestError
from lorareg.registry.types import DIFFUSERS_FILE, LONE_SUFFIX

if TYPE_CHECKING:
    from lorareg.compress.progress import Reporter
    from lorareg.registry.store import Registry

REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one folder."""

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


def _found(paths: list[Path]) -> Iterator[tuple[Path, Path | LoraregError]]:
    """(root, adapter folder) for every adapter under `paths`, or the error of a path without any."""
    from lorareg.registry.peft_format import find_adapters

    for root in paths:
        try:
            folders = find_adapters(root)
            if not folders:
                raise InvalidAdapterError(
                    path=root,
                    reason="no adapter here or below",
                    remedy="Give a folder that holds adapter_config.json and adapter_model.safetensors.",
                )
        except LoraregError as error:
            yield root, error
        else:
            yield from ((root, folder) for folder in folders)


def _ingest_all(
    registry: Registry,
    found: list[tuple[Path, Path | LoraregError]],
    name: str | None,
    description: str | None,
    base_model: str | None,
    reporter: Reporter,
    lines: list[Line],
) -> list[LoraregError]:
    """Take in every folder found, in order, adding a line for each; gives the errors of those refused.

    Raises:
        OSError: the machine refused (disk full); `lines` tells what was taken in before.
    """
    from lorareg.registry.ingest import IngestRequest

    folders = [(root, folder) for root, folder in found if isinstance(folder, Path)]
    requests = [
        IngestRequest(folder, name or task_name(root, folder), description, base_model) for root, folder in folders
    ]
    outcomes = registry.ingest_each(requests)
    waiting = iter(requests)
    refusals: list[LoraregError] = []
    reporter.start("ingest", len(found))
    for root, folder in found:
        if isinstance(folder, LoraregError):
            lines.append(_refused(root, MISSING, folder))
            refusals.append(folder)
        else:
            request = next(waiting)
            try:
                outcome = next(outcomes)
            except OSError as error:
                lines.append(_refused(folder, request.name, error))
                raise
            if isinstance(outcome, LoraregError):
                lines.append(_refused(folder, request.name, outcome))
                refusals.append(outcome)
            else:
                adapter = outcome.adapter
                size = adapter.original_bytes
                lines.append(Line(str(folder), adapter.name, adapter.version, outcome.kind, size, None, outcome.note))
        reporter.advance()
    reporter.finish()
    return refusals


def _refused(path: Path, name: str, error: Exception) -> Line:
    return Line(str(path), name, None, REFUSED, None, str(error))


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
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Adapter folders, files, or folders of them.")],
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

    Finds them in PATH and in all folders below. The model card tells the task, unless --description does.

    The same bytes again change nothing; other bytes under a known name become its next version. An
    adapter that is refused does not stop the others, and the exit code says so.

    Raises:
        InvalidAdapterError: the only adapter found is refused.
        PartialIngestError: some of several adapters are refused.
    """
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    found = list(_found(paths))
    if name is not None and len(found) != 1:
        raise typer.BadParameter(f"{len(found)} adapters found; a name fits one.", param_hint="--name")
    if len(found) == 1 and isinstance(found[0][1], LoraregError):
        raise found[0][1]  # before a registry is made for nothing
    with Registry.open(home, create=True) as registry, progress(output) as reporter:
        lines: list[Line] = []
        try:
            refusals = _ingest_all(registry, found, name, description, base_model, reporter, lines)
        except OSError:
            _show(output, lines)
            raise
    if len(found) == 1 and refusals:
        raise refusals[0]
    _show(output, lines)
    if refusals:
        raise PartialIngestError(refused=len(refusals), found=len(lines))
