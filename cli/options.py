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


def parse_share(option: str, text: str) -> float:
    """A share of something, as 1% or 0.01.

    Raises:
        ContractError: it is neither.
    """
    from lorareg.registry.errors import ContractError

    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError as error:
        raise ContractError(option=f"{option} {text}", reason="a share is written as 1% or 0.01") from error
