"""`lorareg migrate`: bring a registry to this version's schema, or its blobs to another store."""

from __future__ import annotations

from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output, format_bytes
from lorareg.cli.progress import progress


def migrate(
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="URL", show_default=False, help="Bring blobs to s3://bucket/prefix or file:///folder."
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring the database to the current schema, and with --store the blobs to another store.

    A backup of the database is made first. Every other command does the same when it has to. Blobs are read back where
    they went, and stay where they were; a move that was stopped goes on. Stop servers and whoever writes before it.

    Raises:
        IntegrityError: a blob is damaged; the registry goes on with the store it had.
        StoreError: the store refuses.
    """
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    done = Registry.migrate(home)
    backup = None if done.backup is None else str(done.backup)
    data: dict[str, object] = {"found": done.found, "current": done.current, "backup": backup}
    if done.found == done.current:
        lines = [f"schema {done.current} is current; nothing to do"]
    else:
        lines = [f"migrated from schema {done.found} to {done.current}; the database before it: {backup}"]
    if store is not None:
        from lorareg.registry.blob_stores import move_blobs

        with Registry.open(home, create=False) as registry, progress(output) as reporter:
            reporter.start("move", 0)
            moved = move_blobs(registry, store, reporter.advance)
            reporter.finish()
        data |= {
            "before": moved.before,
            "after": moved.after,
            "copied": moved.copied,
            "copied_bytes": moved.copied_bytes,
        }
        size = format_bytes(moved.copied_bytes)
        lines.append(
            f"{moved.copied} blobs ({size}) brought to {moved.after}; {moved.before} may go once you have looked"
        )
    output.show(data, *lines)
