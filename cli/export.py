"""`lorareg export`: a registry, or a selection of it, as one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Force, Home, Quiet
from lorareg.cli.output import Output, format_bytes
from lorareg.cli.progress import progress
from lorareg.registry.errors import OutputExistsError


def export(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", show_default=False, help="TASK, TASK@3, TASK@label; default: everything."),
    ] = None,
    cohort: Annotated[
        list[str] | None, typer.Option("--cohort", metavar="COHORT", show_default=False, help="All adapters of it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The bundle.")] = Path("lorareg.tar"),
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Weights that a certified code stands for.")
    ] = True,
    force: Force = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write adapters as one file that `lorareg import` reads.

    A tar in the layout of OCI images: rows, codes, generators, configs, cards, certificates, tags, and weights. The
    same content gives the same bytes. Weights that nothing certified stands for come along even with --no-originals.

    Raises:
        OutputExistsError: the file exists.
        NothingToDoError: there is nothing to export.
        IntegrityError: something stored is damaged; no file is left.
    """
    from lorareg.registry.bundle import Bundle, make_bundle, selected, write_bundle
    from lorareg.registry.files import sync_file, sync_folder
    from lorareg.registry.home import resolve_home
    from lorareg.registry.meanwhile import look_again
    from lorareg.registry.reader import Reader

    output = Output(as_json, quiet)
    if (out.exists() or out.is_symlink()) and not force:
        raise OutputExistsError(path=out)
    with Reader(resolve_home(home)) as reader, progress(output) as reporter:
        fresh = out.with_name(f".{out.name}.{os.getpid()}.new")

        def write() -> tuple[Bundle, int]:
            with reader.snapshot() as frozen:
                bundle = make_bundle(frozen, selected(frozen, tasks or [], cohort or []), originals=originals)
            reporter.start("export", len(bundle.blobs))
            with fresh.open("wb") as file:
                return bundle, write_bundle(bundle, reader.blobs.get, file, reporter.advance)

        try:
            bundle, size_bytes = look_again(write)
            sync_file(fresh)
            fresh.replace(out)
            sync_folder(out.absolute().parent)
        finally:
            fresh.unlink(missing_ok=True)
        reporter.finish()
    data = {
        "path": str(out),
        "size_bytes": size_bytes,
        "adapters": bundle.adapters,
        "blobs": len(bundle.blobs),
        "originals_kept": bundle.kept_originals,
    }
    lines = [f"{bundle.adapters} adapters, {len(bundle.blobs)} files -> {out} ({format_bytes(size_bytes)})"]
    if bundle.kept_originals:
        lines.append(f"  {bundle.kept_originals} came with their weights: nothing is certified of their codes")
    output.show(data, *lines, brief=[str(out)])
