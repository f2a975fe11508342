"""`lorareg generate`: an adapter for a task that was never ingested."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorareg.cli.options import AsJson, BaseModelPath, Force, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table
from lorareg.cli.progress import progress

if TYPE_CHECKING:
    from lorareg.compress.tasks.generate import Generated

SHOWN = 10
"""Known tasks in the table; JSON has all of them."""


class Method(StrEnum):
    """How the adapter is made."""

    SIMILARITY = "similarity"
    MIXTURE = "mixture"
    NETWORK = "network"
    NEAREST = "nearest"
    MEAN = "mean"


def generate(
    description: Annotated[
        str, typer.Option("--description", "-d", metavar="TEXT", show_default=False, help="What the task is, in words.")
    ] = "",
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            metavar="FILE",
            show_default=False,
            help='Text of the task to tune on: plain, .jsonl with {"text": ...}, or .json with a list of texts.',
        ),
    ] = None,
    base_model: BaseModelPath = None,
    cohort: Annotated[
        str | None,
        typer.Option("--cohort", metavar="COHORT", show_default=False, help="Which adapters to learn from."),
    ] = None,
    by: Annotated[
        Method | None,
        typer.Option(
            "--by",
            show_default=False,
            help="similarity: known adapters weighted by how alike their tasks are (default for a description alone); "
            "mixture: by what their tasks tell of this one's update (default with samples); network: the generator's "
            "learned prior; nearest or mean: for comparison.",
        ),
    ] = None,
    tune_steps: Annotated[int, typer.Option("--tune-steps", min=0, help="Most steps on the samples; 0 for none.")] = 24,
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on though the task is like no known one.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", show_default=False, help="Folder to write; default: ./novel-WORDS."),
    ] = None,
    force: Force = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make an adapter for a task that was never ingested.

    It is made of known ones, from a description, from samples, or from both. Without samples its quality is
    unproven; with them, what the base model says to those held out is measured.
    Nothing is recorded: use the folder, or ingest it.
    """
    from lorareg.compress.tasks.generate import Request
    from lorareg.compress.tasks.generate import generate as run_generate
    from lorareg.registry.home import resolve_home

    output = Output(as_json, quiet)
    method = by or (Method.SIMILARITY if samples is None else Method.MIXTURE)
    request = Request(description, method.value, cohort, samples, base_model, tune_steps, anyway)
    with progress(output) as reporter:
        done = run_generate(resolve_home(home), request, out, reporter, force=force)
    rows = [
        (one.adapter.ref, _number(one.similarity), f"{one.weight:.3f}", one.adapter.description or MISSING)
        for one in done.made.neighbours[:SHOWN]
    ]
    table = Table(
        ("known task", "similarity", "weight", "description"),
        rows,
        numbers=frozenset({"similarity", "weight"}),
        flexible=frozenset({"description"}),
    )
    output.show(_data(done), table, *_lines(done), brief=[str(done.path)])


def _lines(done: Generated) -> list[str]:
    """The result in words."""
    made = done.made
    lines = [f"{done.path}: novel, quality unproven (by {done.request.by}, {done.elapsed_s:.1f} s)"]
    if (new := made.novelty) is not None:
        lines.append(
            f"  similarity      {new.nearest:.2f} with the nearest; known ones have {new.median_known:.2f} with theirs "
            f"(least {new.least_known:.2f}), shuffled letters {new.by_chance:.2f}"
        )
    if (mixture := made.mixture) is not None:
        lines.append(
            f"  expected error  {mixture.error:.3f} of ΔW squared, the mean adapter's {mixture.error_of_mean:.3f} "
            "(of known tasks, each from the others)"
        )
    if (shot := made.few_shot) is not None:
        lines.append(
            f"  loss            {shot.loss:.3f} on {shot.held_rows} rows of samples held out; {shot.loss_base:.3f} "
            f"without it, {shot.loss_untuned:.3f} before {shot.steps} steps of tuning"
        )
    return [*lines, f"  weights sha256  {done.output_digest}"]


def _data(done: Generated) -> dict[str, Any]:
    from dataclasses import asdict

    novelty, mixture, shot = done.made.novelty, done.made.mixture, done.made.few_shot
    return {
        "path": str(done.path),
        "cohort": done.cohort.name,
        "base_model": done.cohort.base_model,
        "by": done.request.by,
        "novelty": None
        if novelty is None
        else {
            "measure": novelty.measure,
            "kinship": novelty.kinship,
            "nearest": novelty.nearest,
            "by_chance": novelty.by_chance,
            "least_known": novelty.least_known,
            "median_known": novelty.median_known,
        },
        "mixture": None
        if mixture is None
        else {name: getattr(mixture, name) for name in ("encoder", "width", "ridge", "error", "error_of_mean")},
        "few_shot": None if shot is None else {**asdict(shot), "helps": shot.helps},
        "neighbours": [
            {"ref": one.adapter.ref, "similarity": one.similarity, "weight": one.weight} for one in done.made.neighbours
        ],
        "output_digest": done.output_digest,
        "elapsed_s": done.elapsed_s,
    }


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
