"""The options that every command shares, and the order in which a registry's folder is found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
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
BaseModelPath = Annotated[
    Path | None,
    typer.Option(
        "--base-model",
        metavar="PATH",
        show_default=False,
        help="Folder or GGUF file of the base model: for what it says with an adapter (then its path is remembered by "
        "the model's name), and for task vectors from its hidden states.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")]
SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
LEVELS = ("weight", "kl", "gain")
"""What closeness is measured at, from cheap to dear."""

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


def parse_size(option: str, text: str) -> int:
    """Bytes, as 283MB, 500kB, 1GiB, 1.5 MB or a plain number; the case of the letters does not matter.

    Raises:
        ContractError: it is not a number with one of these units, or none.
    """
    from lorareg.registry.errors import ContractError

    found = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in SIZE_UNITS:
        raise ContractError(option=f"{option} {text}", reason="a size is written as 283MB, 500kB, 1GiB or plain bytes")
    return int(Decimal(found[1]) * SIZE_UNITS[found[2]])


def parse_levels(texts: Sequence[str], gain: float | None) -> dict[str, float]:
    """Levels of `--tolerance`, such as "0.2" or "weight=0.2,kl=0.01", and the one of `--gain`.

    Raises:
        ContractError: a level is unknown, given twice, or no number.
    """
    from lorareg.registry.errors import ContractError

    levels = {} if gain is None else {"gain": gain}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, equals, number = part.rpartition("=")
        name = name.strip() if equals else "weight"
        option = f"--tolerance {part}"
        if name not in LEVELS:
            raise ContractError(option=option, reason=f"the levels are {', '.join(LEVELS)}, such as kl=0.01")
        if name in levels:
            raise ContractError(option=option, reason=f"{name} is given twice")
        try:
            levels[name] = float(number)
        except ValueError as error:
            raise ContractError(option=option, reason="a level is a number, such as weight=0.2") from error
    return levels
