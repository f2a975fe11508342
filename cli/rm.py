"""`lorareg rm` and `lorareg restore`: out of sight, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet, Task
from lorareg.cli.output import Output, format_bytes


def rm(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="A name means all its versions; TASK@3 one.")],
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put adapters in quarantine.

    They are not listed or encoded any more, but nothing is deleted: `lorareg restore` brings them back.
    """
    from lorareg.registry.store import Registry

    removed = []
    with Registry.open(home, create=False) as registry:
        wanted = []
        for task in tasks:
            adapter = registry.adapter(task)
            wanted += [adapter] if "@" in task else registry.adapters(name=adapter.name)
        for adapter in dict.fromkeys(wanted):
            registry.remove(adapter)
            removed.append(adapter.ref)
    lines = [f"removed {ref}; `lorareg restore {ref}` brings it back" for ref in removed]
    Output(as_json, quiet).show({"removed": removed}, *lines)


def restore(task: Task, home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Take an adapter out of quarantine.

    Whether `lorareg rm` put all of it there, or `lorareg prune` its original and older codes.
    """
    from lorareg.registry.store import Registry

    with Registry.open(home, create=False) as registry:
        restored = registry.restore(task)
    ref, blobs = restored.adapter.ref, restored.blobs
    size_bytes = sum(blob.size_bytes for blob in blobs)
    lines = [f"{ref} is back"] if restored.was_removed else []
    lines += [f"{len(blobs)} files of {ref} are out of quarantine ({format_bytes(size_bytes)})"] if blobs else []
    data = {"restored": ref, "was_removed": restored.was_removed, "files": len(blobs), "size_bytes": size_bytes}
    Output(as_json, quiet).show(data, *lines)
