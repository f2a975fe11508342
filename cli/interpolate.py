"""`lorareg interpolate`: an adapter between two others, in the latent space of their generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorareg.cli.options import AsJson, BaseModelPath, Force, Home, Quiet
from lorareg.cli.output import Output, Table
from lorareg.cli.progress import progress

if TYPE_CHECKING:
    from lorareg.compress.tasks.interpolate import Between, Losses
    from lorareg.registry.reader import Reader


def interpolate(
    first: Annotated[str, typer.Argument(metavar="TASK_A", help="A name, or one of its versions: TASK@3, TASK@label.")],
    second: Annotated[str, typer.Argument(metavar="TASK_B", help="Another, coded against the same generator.")],
    weight: Annotated[float, typer.Option("--weight", "-w", help="Share of TASK_B, from 0 to 1.")] = 0.5,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", show_default=False, help="Folder to write; default: ./TASK_A-TASK_B-WEIGHT."
        ),
    ] = None,
    base_model: BaseModelPath = None,
    seed: Annotated[int, typer.Option("--seed", help="Of text a model writes where a task has none.")] = 0,
    force: Force = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter between two others.

    Both must be coded against one generator with latents (compress --arch linear or slots). It draws the
    adapter for the latent in between; what it left each of them to store is added in the same shares. At 0
    and 1 that is the stored adapter. Nobody trained what comes out: its card says so.

    With a base model, the losses on both tasks' text are measured, beside those of plain averages.
    """
    from lorareg.compress.materialize import expect_free, write_folder
    from lorareg.compress.tasks.interpolate import files_of
    from lorareg.compress.tasks.interpolate import interpolate as run_interpolate
    from lorareg.registry.home import resolve_home
    from lorareg.registry.reader import Reader
    from lorareg.registry.types import WEIGHTS_FILE, sha256_hex

    output = Output(as_json, quiet)
    with Reader(resolve_home(home)) as reader:
        between = run_interpolate(reader, first, second, weight)
        target = out if out is not None else between.folder
        expect_free(target, force)
        files = files_of(reader, between)
        losses, note = _losses(reader, between, base_model, seed, output)
    write_folder(target, files)
    data = {
        "first": between.first.adapter.ref,
        "second": between.second.adapter.ref,
        "weight": weight,
        "path": str(target),
        "generator": f"{between.generator.arch} v{between.generator.version}",
        "coordinates": between.coordinates,
        "distances": between.distances,
        "output_digest": sha256_hex(files[WEIGHTS_FILE]),
        "losses": losses.by_name if losses else None,
        "measured_on": losses.measured_on if losses else None,
    }
    output.show(data, *_blocks(data, losses, note), brief=[str(target)])


def _losses(
    reader: Reader, between: Between, given: Path | None, seed: int, output: Output
) -> tuple[Losses | None, str]:
    """The losses where a base model is given or remembered, and what there is to say.

    A remembered one that cannot be used is no reason to fail.
    """
    from lorareg.compress.contracts.judge import SETTING, Judge, base_model_path
    from lorareg.compress.tasks.interpolate import losses_of
    from lorareg.registry.errors import BaseModelError, MissingExtraError

    name = between.first.adapter.base_model
    if given is None and reader.setting(SETTING + name) is None:
        return None, "Give --base-model to measure losses on both tasks' text."
    try:
        from lorareg.compress.base_model import BaseModel

        model = BaseModel(base_model_path(reader, name, given, "--base-model"))
    except (BaseModelError, MissingExtraError) as error:
        if given is not None:
            raise
        return None, f"Losses were not measured: {error}"
    with progress(output) as reporter:
        losses = losses_of(between, Judge(model, reader, seed, reporter))
    if given is not None:
        _remember(reader, name, given)
    return losses, ""


def _remember(reader: Reader, name: str, path: Path) -> None:
    from lorareg.compress.contracts.judge import remember_base_model
    from lorareg.registry.store import Registry

    with Registry.open(reader.home, create=False) as registry:
        remember_base_model(registry, name, path)


def _blocks(data: dict[str, Any], losses: Losses | None, note: str) -> list[Table | str]:
    blocks: list[Table | str] = [
        f"{data['first']} and {data['second']} at {data['weight']:g} -> {data['path']}",
        f"  generator       {data['generator']}, {data['coordinates']} coordinates",
        *(f"  {distance:.4f} of delta W from {name}" for name, distance in data["distances"].items()),
        f"  weights sha256  {data['output_digest']}; nobody trained these weights, their quality is unproven",
    ]
    if losses is not None:
        columns = ("nats a token", *(f"{data[end]} ({losses.measured_on[i]})" for i, end in enumerate(_ENDS)))
        rows = [(name, *(f"{loss:.4f}" for loss in both)) for name, both in losses.by_name.items()]
        blocks.append(Table(columns, rows, numbers=frozenset(columns[1:])))
    return [*blocks, note] if note else blocks


_ENDS = ("first", "second")
