"""`lorareg pin`: an original that stays, whatever `prune` could prove."""

from __future__ import annotations

from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet, Task
from lorareg.cli.output import Output
from lorareg.registry.errors import NothingToDoError


def pin(
    task: Task,
    reason: Annotated[str, typer.Option("--reason", show_default=False, help="Shown where it keeps something.")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Take the pin away.")] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Keep an adapter's original.

    `lorareg prune` leaves it alone from then on; if it is in quarantine, it comes back.

    Raises:
        NothingToDoError: there is no pin to take away.
    """
    from lorareg.registry.store import Registry

    with Registry.open(home, create=False) as registry:
        adapter = registry.adapter(task)
        if not delete:
            registry.put_pin(adapter, reason)
        elif not registry.take_pin(adapter):
            raise NothingToDoError(message=f"{adapter.ref} is not pinned; nothing was changed.")
    line = f"{adapter.ref} is {'no longer pinned' if delete else 'pinned: its original stays'}"
    data = {"name": adapter.name, "version": adapter.version, "reason": reason, "deleted": delete}
    Output(as_json, quiet).show(data, line)
