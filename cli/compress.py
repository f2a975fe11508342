"""`lorareg compress`: train or reuse a generator, encode every adapter, keep the cheapest that passes."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, BaseModelPath, Home, Quiet, parse_levels, parse_share, parse_size
from lorareg.cli.output import (
    MISSING,
    Output,
    Table,
    format_bytes,
    format_error,
    format_gains,
    format_percent,
    format_tiers,
)
from lorareg.cli.progress import progress
from lorareg.registry.errors import StoppedError

if TYPE_CHECKING:
    from lorareg.compress.pipeline import CohortSummary


class Arch(StrEnum):
    """The generators to choose from."""

    AUTO = "auto"
    SLOTS = "slots"
    CONV1D = "conv1d"
    MEAN = "mean"
    LINEAR = "linear"
    NONE = "none"


def _row(summary: CohortSummary) -> tuple[str, ...]:
    from lorareg.registry.report import percent

    return (
        summary.cohort,
        f"{summary.encoded} + {summary.unchanged}",
        summary.generator or MISSING,
        format_bytes(summary.original_bytes),
        format_bytes(summary.stored_bytes),
        format_percent(percent(summary.stored_bytes, summary.original_bytes)),
        format_error(summary.worst_relative_error),
        format_gains(summary.mean_gain, summary.worst_gain),
        format_tiers(summary.by_tier),
    )


def _show(output: Output, summaries: list[CohortSummary]) -> None:
    columns = (
        "cohort",
        "new + kept",
        "generator",
        "original",
        "codes + generator",
        "%",
        "worst error",
        "gain",
        "tiers",
    )
    table = Table(
        columns,
        [_row(summary) for summary in summaries],
        numbers=frozenset({"new + kept", "original", "codes + generator", "%", "worst error", "gain"}),
        flexible=frozenset({"cohort", "tiers"}),
    )
    messages = [f"{summary.cohort}: {summary.message}" for summary in summaries if summary.message]
    messages += [
        f"{summary.cohort}: the model's predictions diverge by {summary.worst_kl:.4f} nats a token at most, on average"
        for summary in summaries
        if summary.worst_kl is not None
    ]
    output.show({"cohorts": [asdict(summary) for summary in summaries]}, table, *messages)


def compress(
    cohorts: Annotated[
        list[str] | None, typer.Argument(metavar="COHORT", show_default=False, help="Default: all of them.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            "--tolerance",
            metavar="LEVEL",
            show_default=False,
            help="What each adapter is held to: weight=0.2 (or 0.2), the largest relative error of the weight update "
            "(delta W); kl=0.01, nats a token from what the model says with the original; gain=0.99 (see --gain). "
            "Several, separated by commas, must all hold. Default: 0.2 for adapters that have no code yet; the others "
            "keep theirs. kl and gain need --base-model.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SHARE",
            show_default=False,
            help="Bytes of codes and generator together, as a share of the original weights: 1% or 0.01.",
        ),
    ] = None,
    gain: Annotated[
        float | None,
        typer.Option(
            "--gain",
            show_default=False,
            help="What each adapter must keep of the loss it gained, such as 0.99, measured on its evaluation tokens, "
            "else its samples, else text it writes. Needs --base-model.",
        ),
    ] = None,
    distill: Annotated[
        bool,
        typer.Option(
            "--distill",
            help="With --budget, --gain or kl: tune each code until the model says what it said with the original. "
            "About a minute an adapter on two cores. Needs --base-model.",
        ),
    ] = False,
    arch: Annotated[
        Arch,
        typer.Option(
            "--arch",
            help="The generator: slots and conv1d are CVAEs, linear mixes a few tables, mean is one table, none is "
            "the residual codec alone; auto keeps whichever makes the total smallest.",
        ),
    ] = Arch.AUTO,
    mask_latents: Annotated[
        str | None,
        typer.Option(
            "--mask-latents",
            metavar="SHARE",
            show_default=False,
            help="With --arch slots: the share of adapters, such as 30%, that training draws from their task's "
            "description alone, so that a generator trained now learns what descriptions tell.",
        ),
    ] = None,
    generator_budget: Annotated[
        str | None,
        typer.Option(
            "--generator-budget",
            metavar="SIZE",
            show_default=False,
            help="Largest file a generator may have: 283MB, 500kB, 1GiB or bytes. Tables are made coarser to keep it; "
            "a network grows within it while that makes the total smaller. A larger generator that exists is not used.",
        ),
    ] = None,
    base_model: BaseModelPath = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is random.")] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", show_default=False, help="Training steps; default: until it stops gaining.")
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train anew even where a generator exists.")] = False,
    nproc: Annotated[
        int,
        typer.Option(
            "--nproc",
            min=1,
            help="Processes on this machine that share encoding and training; each holds its own base model, where one "
            "is needed. Codes are the same bytes whatever their number. For several machines: `torchrun` or "
            "`accelerate launch` with `-m lorareg.cli compress`.",
        ),
    ] = 1,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Encode adapters within a tolerance, a budget or a gain.

    Each stored code is decoded and measured before it is recorded. An adapter that no cheaper way
    passes stays lossless. Adapters added later are encoded against the generator that exists.
    Adapters that have a code are left alone unless another contract than theirs is named. What has damaged rows is
    passed over and told at the end.

    Raises:
        DamagedRowsError: rows are damaged; all else was done.
        StoppedError: on Ctrl-C; training goes on from its last checkpoint.
    """
    from lorareg.compress.crew.start import crew_of, is_worker, work_for_leader

    if is_worker():
        work_for_leader(home)
        return
    from lorareg.compress.contracts.contract import CompressOptions, Contract
    from lorareg.compress.pipeline import compress as run_compress
    from lorareg.registry.damage import Damage
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    share = None if budget is None else parse_share("--budget", budget)
    levels = parse_levels(tolerance or [], gain)
    contract = Contract(levels.get("weight"), share, levels.get("gain"), levels.get("kl"), distill)
    masked = 0.0 if mask_latents is None else parse_share("--mask-latents", mask_latents)
    most_bytes = None if generator_budget is None else parse_size("--generator-budget", generator_budget)
    options = CompressOptions(contract, str(arch), base_model, seed, steps, retrain, masked, most_bytes)
    try:
        with (
            Registry.open(home, create=False) as registry,
            progress(output) as reporter,
            crew_of(nproc, registry.home, reporter) as crew,
        ):
            where, damage = registry.home, Damage()
            summaries = run_compress(registry, cohorts or (), options, reporter, crew, damage)
    except KeyboardInterrupt as error:
        raise StoppedError(
            message="Stopped. Codes made so far are recorded, and training goes on from its last checkpoint if it had "
            "come to one. Run the same command again."
        ) from error
    _show(output, summaries)
    damage.tell(where)
