"""`lorareg verify`: what is stored against its originals, or against what was certified of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import LEVELS, AsJson, BaseModelPath, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table, format_error
from lorareg.cli.progress import progress
from lorareg.registry.errors import ContractError, NothingToDoError, VerificationError

if TYPE_CHECKING:
    from lorareg.compress.progress import Reporter
    from lorareg.compress.proofs.verify import Verdict
    from lorareg.registry.store import Registry
    from lorareg.registry.types import Adapter

WORST_SHOWN = 5


def verify(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", show_default=False, help="Or --all of them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every adapter, all its versions.")] = False,
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            show_default=False,
            help="weight (always), kl, gain: what to measure anew. kl and gain load the base model.",
        ),
    ] = None,
    base_model: BaseModelPath = None,
    seed: Annotated[int, typer.Option("--seed", help="Of text that adapters write themselves.")] = 0,
    cold: Annotated[bool, typer.Option("--cold", help="Read from the disk, not from the system's cache.")] = False,
    removed: Annotated[bool, typer.Option("--removed", help="TASK may name removed versions.", hidden=True)] = False,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decode what is stored and prove how close it is.

    While an original is kept, everything is measured anew and compared with the certificate; an
    adapter without a certificate gets one. Once it is gone, the output's digest proves that what was
    certified still holds, and the certificate's projections of the original give an estimate beside it.

    Raises:
        VerificationError: something is not as it was certified.
        NothingToDoError: no adapter was named.
        ContractError: there is no such level.
    """
    from lorareg.registry.store import Registry

    output = Output(as_json, quiet)
    levels = [part.strip() for text in level or [] for part in text.split(",")]
    for name in levels:
        if name not in LEVELS:
            raise ContractError(option=f"--level {name}", reason=f"the levels are {', '.join(LEVELS)}")
    if bool(tasks) == everything:
        raise NothingToDoError(message="Name the adapters to verify, or pass --all.")
    with Registry.open(home, create=False, frees=True) as registry, progress(output) as reporter:
        registry.blobs.cold = cold
        adapters = _chosen(registry, tasks, removed)
        wanted = [name for name in levels if name != "weight"]
        verdicts = _verify_each(registry, adapters, wanted, base_model, seed, reporter)
        where = registry.home
    failed = [verdict for verdict in verdicts if not verdict.holds]
    _show(output, verdicts)
    if failed:
        raise VerificationError(failed=len(failed), checked=len(verdicts), home=where)


def _chosen(registry: Registry, tasks: list[str] | None, removed: bool) -> list[Adapter]:
    if not tasks:
        return registry.adapters()
    if removed:
        by_ref = {adapter.ref: adapter for adapter in registry.adapters(include_removed=True)}
        return [by_ref[task] for task in tasks if task in by_ref]
    return [registry.adapter(task) for task in tasks]


def _verify_each(
    registry: Registry,
    adapters: list[Adapter],
    levels: list[str],
    base_model: Path | None,
    seed: int,
    reporter: Reporter,
) -> list[Verdict]:
    from lorareg.compress.proofs.verify import prove_again
    from lorareg.compress.proofs.verify import verify as run_verify

    judges = None
    if levels:
        from lorareg.compress.contracts.judge import Judges

        judges = Judges(registry, base_model, seed, reporter)
    verdicts = []
    reporter.start("verifying", len(adapters))
    for adapter in adapters:
        judge = None if judges is None else judges.of(adapter.base_model, f"--level {levels[0]}")
        verdict = run_verify(registry, adapter, judge, levels)
        if verdict.certificate is None and verdict.original == "kept" and verdict.encoding_id and verdict.holds:
            certificate = registry.certify(adapter, *prove_again(registry, adapter))
            verdict.certificate = certificate.digest
            verdict.proven.append("a certificate was made")
        verdicts.append(verdict)
        reporter.advance(1)
    reporter.finish()
    return verdicts


def _show(output: Output, verdicts: list[Verdict]) -> None:
    table = _table([_row(verdict) for verdict in verdicts])
    blocks: list[Table | str] = [table]
    if len(verdicts) == 1 and verdicts[0].modules:
        blocks.append(_modules(verdicts[0]))
    blocks += [f"{v.ref} proven: {'; '.join(v.proven)}." for v in verdicts if len(verdicts) == 1 or not v.holds]
    blocks += [f"{verdict.ref}: {problem}" for verdict in verdicts for problem in verdict.problems]
    brief = [f"{verdict.ref}: {problem}" for verdict in verdicts for problem in verdict.problems]
    data = {"adapters": [verdict.to_dict() for verdict in verdicts]}
    output.show(data, *blocks, brief=brief)


def _row(verdict: Verdict) -> dict[str, str]:
    found, estimated = verdict.measured, verdict.estimated
    return {
        "adapter": verdict.ref,
        "original": verdict.original,
        "error": format_error(found.get("relative_error")),
        "worst module": str(found.get("worst_module", MISSING)),
        "its error": format_error(found.get("worst_module_error")),
        "estimated": f"{estimated['low']:.4f} to {estimated['high']:.4f}" if estimated else MISSING,
        "kl": f"{found['kl_divergence']:.5f}" if "kl_divergence" in found else MISSING,
        "gain": f"{100 * found['gain_retained']:.2f}%" if "gain_retained" in found else MISSING,
        "holds": "yes" if verdict.holds else "no",
    }


def _table(rows: list[dict[str, str]]) -> Table:
    """Verdicts a row; columns that say nothing are left out."""
    columns = [name for name in rows[0] if any(row[name] != MISSING for row in rows)] if rows else ["adapter"]
    return Table(
        columns,
        [[row[name] for name in columns] for row in rows],
        numbers=frozenset({"error", "its error", "kl", "gain"}),
        flexible=frozenset({"worst module"}),
    )


def _modules(verdict: Verdict) -> Table:
    """The worst modules of the only adapter, and how many weights are no numbers."""
    worst = sorted(verdict.modules, key=lambda module: -module.relative_error)[:WORST_SHOWN]
    bad = verdict.measured["not_a_number"] + verdict.measured["infinite"]
    title = f"Worst {len(worst)} of {len(verdict.modules)} modules; {bad} weights are not a number or infinite"
    rows = [(m.module, format_error(m.relative_error), f"{m.cosine:.5f}", f"{m.max_error:.3g}") for m in worst]
    columns = ("module", "error", "cosine", "largest error of a weight")
    return Table(columns, rows, title, frozenset(columns[1:]), frozenset({"module"}))
