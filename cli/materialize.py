"""`lorareg materialize`: an adapter back as a normal PEFT folder, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Force, Home, Quiet, Task
from lorareg.cli.output import MISSING, Output, format_bytes, format_error


def materialize(
    task: Task,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", show_default=False, help="Folder to write; default: ./TASK."),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, show_default=False, help="Which version; default: the latest.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option("--profile", metavar="peft|vllm|sglang|lorax", help="The form that a serving engine takes."),
    ] = "peft",
    force: Force = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter as a PEFT folder.

    Any program that loads PEFT adapters loads it, whatever it is stored as. --profile writes it in the form that an
    engine takes: scales go into the weights and ranks are filled up, so that it computes the same; what the engine
    cannot compute is refused (docs/profiles.md).

    The bytes written are those whose digest was recorded when the adapter was encoded, on every
    machine; anything else is an error and leaves nothing behind.
    """
    from lorareg.compress.materialize import materialize as run_materialize
    from lorareg.compress.serving.engines import PROFILES
    from lorareg.registry.home import resolve_home

    if version is not None and "@" in task:
        raise typer.BadParameter(f"{task!r} names a version already.", param_hint="--version")
    if profile not in PROFILES:
        raise typer.BadParameter(f"{profile!r} is none of {', '.join(PROFILES)}.", param_hint="--profile")
    ref = task if version is None else f"{task}@{version}"
    done = run_materialize(resolve_home(home), ref, out, force=force, profile=profile)
    error = done.fidelity.get("relative_error")
    size_bytes = sum(file.stat().st_size for file in done.path.iterdir())
    data = {
        "name": done.adapter.name,
        "version": done.adapter.version,
        "path": str(done.path),
        "tier": done.tier,
        "fidelity": done.fidelity,
        "output_digest": done.output_digest,
        "size_bytes": size_bytes,
        "elapsed_s": done.elapsed_s,
        "profile": done.profile,
    }
    adapted = done.adapted
    if adapted is not None:
        rounded = adapted.relative_error
        data |= {"rewritten": list(adapted.changes), "rounding_error": rounded, "server_needs": adapted.needs}
    lines = [
        f"{done.adapter.ref} -> {done.path} ({format_bytes(size_bytes)}, {done.elapsed_s:.2f} s)",
        f"  tier            {done.tier}",
        f"  relative error  {format_error(error) if error is not None else MISSING} of delta W, measured when encoded",
        f"  weights sha256  {done.output_digest} ({'as recorded' if adapted is None else 'of this form'})",
    ]
    if adapted is not None:
        how = "the same update, bit for bit" if not rounded else f"rounded once: {rounded:.1e} of delta W"
        lines.append(f"  profile         {done.profile}: {', '.join(adapted.changes) or 'nothing to change'}; {how}")
        if adapted.needs:
            lines.append(f"  start it with   {adapted.needs}")
    Output(as_json, quiet).show(data, *lines, brief=[str(done.path)])
