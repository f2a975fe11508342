"""`lorareg migrate`: bring a registry's database to this version's schema, after a backup."""

from __future__ import annotations

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import Output


def migrate(home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Bring the database to the current schema.

    A backup is made first. Every other command does the same when it has to.
    """
    from lorareg.registry.store import Registry

    done = Registry.migrate(home)
    backup = None if done.backup is None else str(done.backup)
    data = {"found": done.found, "current": done.current, "backup": backup}
    if done.found == done.current:
        line = f"schema {done.current} is current; nothing to do"
    else:
        line = f"migrated from schema {done.found} to {done.current}; the database before it: {backup}"
    Output(as_json, quiet).show(data, line)
