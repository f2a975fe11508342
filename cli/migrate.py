"""`lorareg migrate`: a registry to this version's schema, its rows to another database, its blobs to another store."""

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
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            show_default=False,
            help="Bring rows to postgresql+psycopg://... (empty), or back: sqlite.",
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a registry to this schema, another database or store.

    Without options, to the schema of this version, as every other command does when it has to. A backup is made
    first (of PostgreSQL, make one with pg_dump). Rows are copied in one transaction, read back and compared; from
    then on LORAREG_DATABASE has to name the other database, or nothing for SQLite. Where they were nothing can be
    written any more; a file that had them is among the backups. `--to` the database where they are, when they were
    copied from there, makes them count again. Blobs
    are read back where they went and stay where they were as well. A move that was stopped goes on when the command
    is run again. Stop servers and whoever writes before.

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
        before = "pg_dump makes backups" if backup is None else f"the database before it: {backup}"
        lines = [f"migrated from schema {done.found} to {done.current}; {before}"]
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
        if moved.before == moved.after:
            lines.append(f"blobs are at {moved.after}; nothing to do")
        else:
            rest = "may go once you have looked" if moved.may_go else "is another registry's and must stay"
            lines.append(f"{moved.copied} blobs ({size}) brought to {moved.after}; {moved.before} {rest}")
    if to is not None:
        from lorareg.registry.backend import SQLITE, backend_at
        from lorareg.registry.copying import move_rows

        with Registry.open(home, create=False) as registry:
            brought = move_rows(registry, backend_at(to, registry.home))
        before_them = None if brought.before is None else str(brought.before)
        data |= {"rows": brought.rows, "database": brought.database, "rows_before": before_them}
        variable = "unset LORAREG_DATABASE" if to == SQLITE else "set LORAREG_DATABASE to its URL"
        lines.append(f"{brought.rows} rows are in {brought.database}, and count there: {variable} from now on")
        if before_them is not None:
            lines.append(f"the file that had them: {before_them}")
    output.show(data, *lines)
