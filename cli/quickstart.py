"""`lorareg quickstart`: the four main commands on the sample adapters, shown as a user would type them."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lorareg.cli.options import Home
from lorareg.cli.output import format_error
from lorareg.registry.errors import InvalidAdapterError

SAMPLES = Path("examples/adapters")
QUICKSTART_HOME = Path("lorareg-quickstart")


def _run(ctx: typer.Context, *arguments: str) -> None:
    """Print a command line, then run it in this process; its error ends the quickstart.

    Raises:
        LoraregError: whatever the command raised.
    """
    print(f"\n$ {shlex.join(['lorareg', *arguments])}", flush=True)
    command: Any = ctx.find_root().command
    exit_code = command.main(list(arguments), prog_name="lorareg", standalone_mode=False)
    if exit_code:
        raise typer.Exit(exit_code)


def _least_exact(home: Path) -> tuple[str, Path]:
    """The adapter that comes back least exactly, and the folder it was ingested from."""
    import json

    from lorareg.registry.reader import Reader

    with Reader(home) as reader:
        errors = {
            encoding.adapter_id: float(json.loads(encoding.fidelity)["relative_error"])
            for cohort in reader.cohorts()
            for encoding in reader.encodings(cohort.id)
        }
        adapter = max(reader.adapters(), key=lambda one: errors.get(one.id, 0.0))
    return adapter.ref, Path(adapter.source)


def _compare(ref: str, original: Path, restored: Path) -> None:
    from lorareg.compress.factors.fidelity import compare_folders

    fidelity = compare_folders(original, restored)
    print(f"\n{ref} was the least exact of all. Measured now, {restored} against {original}:")
    print(f"  relative error of delta W  {format_error(fidelity.relative_error)}")
    print(f"  cosine                     {fidelity.cosine:.6f}")
    print(f"  worst module               {format_error(fidelity.worst_module_error)} ({fidelity.worst_module})")


def quickstart(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="Adapters to try it on.")] = SAMPLES,
    home: Home = None,
) -> None:
    """Try it all on sample adapters.

    Runs ingest, compress, materialize and report, then measures what came back against its original.
    The registry is ./lorareg-quickstart unless --home says otherwise. Running it again is safe.

    Raises:
        InvalidAdapterError: the sample adapters are not where they should be.
    """
    if not path.is_dir():
        raise InvalidAdapterError(
            path=path,
            reason="the sample adapters are not here",
            remedy="They come with lorareg's repository: run this in a clone of it, or name a folder of PEFT adapters.",
        )
    started_s = time.monotonic()
    home = home or QUICKSTART_HOME
    at_home = ("--home", str(home))
    print(f"A tour of lorareg on {path}, in the registry {home}.", flush=True)
    _run(ctx, "ingest", str(path), *at_home)
    _run(ctx, "compress", "--arch", "slots", *at_home)
    ref, original = _least_exact(home)
    restored = home / "restored" / ref.partition("@")[0]
    _run(ctx, "materialize", ref, "-o", str(restored), "--force", *at_home)
    _compare(ref, original, restored)
    page = home / "report.html"
    _run(ctx, "report", "--html", str(page), *at_home)
    print(f"\nDone in {time.monotonic() - started_s:.0f} s. Open {page} in a browser, or try:")
    print(
        f"  lorareg list --home {home}\n  lorareg show {ref} --home {home}\n  lorareg check --read-data --home {home}"
    )
