"""`lorareg import`: what `lorareg export` wrote, verified and recorded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output
from lorareg.cli.progress import progress


def import_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="What `lorareg export` wrote.")],
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take in adapters that `lorareg export` wrote.

    Every blob, row and reference is verified, and every code decoded and compared with its recorded output, before
    anything is recorded, in one transaction. What is here already stays as it is; another adapter of a name that is
    taken becomes its next version; a tag that is taken is not moved.

    Raises:
        BundleError: it is no bundle, or does not fit together.
        IntegrityError: something in it is damaged.
        NewerFormatError: a later lorareg wrote it.
    """
    from lorareg.compress.materialize import decode_parcel
    from lorareg.registry.bundle_file import BundleFile
    from lorareg.registry.store import Registry
    from lorareg.registry.unbundle import import_bundle as run_import

    output = Output(as_json, quiet)
    with (
        BundleFile.open(bundle) as opened,
        Registry.open(home, create=True) as registry,
        progress(output) as reporter,
    ):
        reporter.start("import", len(opened.blobs) + len(opened.tables["encoding"]))
        done = run_import(registry, opened, decode_parcel, reporter.advance)
        reporter.finish()
    lines = [f"{len(done.added)} adapters added, {len(done.known)} known; {done.codes} codes decoded and recorded"]
    lines += [f"  {there} is {here} here" for there, here in done.renumbered.items()]
    lines += [f"  tag {tag} is taken here and was not moved" for tag in done.tags_kept_back]
    output.show(asdict(done), *lines, brief=done.added)
