"""The options that every command shares, and the order in which a registry's folder is found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="PATH",
        show_default=False,
        help="Registry folder. Default: $LORAREG_HOME, else ./.lorareg.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is essential: no tables, no progress.")]
Task = Annotated[str, typer.Argument(metavar="TASK", help="A name, or one of its versions: TASK@3, TASK@label.")]
