"""`lorareg tag`: a movable label on one version of a name."""

from __future__ import annotations

from typing import Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet, Task
from lorareg.cli.output import Output
from lorareg.registry.errors import NothingToDoError


def tag(
    task: Task,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="Usable as TASK@LABEL from then on.")],
    delete: Annotated[bool, typer.Option("--delete", help="Take the label away.")] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Label a version of an adapter.

    TASK@LABEL means that version from then on. A label that exists moves.

    Raises:
        NothingToDoError: the label to delete is not on that version.
    """
    from lorareg.registry.store import Registry

    with Registry.open(home, create=False) as registry:
        adapter = registry.adapter(task)
        if delete:
            if not registry.untag(adapter, label):
                raise NothingToDoError(message=f"{adapter.ref} has no label {label!r}; nothing was changed.")
        else:
            registry.tag(adapter, label)
    data = {"name": adapter.name, "version": adapter.version, "label": label, "deleted": delete}
    verb = "no longer means" if delete else "means"
    Output(as_json, quiet).show(data, f"{adapter.name}@{label} {verb} {adapter.ref}")
