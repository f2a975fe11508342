"""`lorareg replicate`: a second copy of what must stay, and damage mended from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, format_bytes
from lorareg.cli.progress import progress


def replicate(
    location: Annotated[str, typer.Argument(metavar="DIR|URL", help="A folder, or a URL such as s3://bucket/path.")],
    originals: Annotated[
        bool, typer.Option("--originals", help="Also originals of adapters that have a code.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="The other way: mend what is damaged or missing here.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Keep a second copy of what must stay.

    Copies codes, generators, side files and the database to a folder or a URL. Each file is read back
    before it counts. The copy is a registry itself: --home DIR opens it.
    `lorareg prune` lets no original go whose generator has no second copy.
    """
    from lorareg.registry.replicate import blobs_to_copy
    from lorareg.registry.replicate import repair as run_repair
    from lorareg.registry.replicate import replicate as run_replicate
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    with Registry.open(home, create=False) as registry, progress(output) as reporter:
        total = len(blobs_to_copy(registry, originals or repair)[0])
        reporter.start("comparing" if repair else "copying", total)
        if repair:
            mended = run_repair(registry, location, reporter.advance)
            reporter.finish()
            data = {"location": location, "mended": mended}
            output.show(data, f"{len(mended)} files mended from {location}.", brief=mended)
            return
        done = run_replicate(registry, location, originals, reporter.advance)
        reporter.finish()
    line = (
        f"{done.copied} files ({format_bytes(done.copied_bytes)}) copied to {done.location}, {done.present} were there "
        f"already; {done.generators} generators have a copy."
    )
    output.show(asdict(done), line, brief=[done.location])
