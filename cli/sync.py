"""`lorareg sync`: a running engine brought to serve chosen adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table
from lorareg.cli.progress import progress
from lorareg.registry.errors import EngineError

if TYPE_CHECKING:
    from lorareg.compress.serving.folders import Served
    from lorareg.compress.serving.sync import Synced

API_KEY_VARIABLE = "LORAREG_ENGINE_API_KEY"


def sync(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="TASK, TASK@3 or TASK@label: also its name in the engine.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The engine, such as http://localhost:8000.")],
    engine: Annotated[str, typer.Option("--engine", metavar="vllm|sglang", help="What it is.")],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            metavar="FOLDER",
            show_default=False,
            help="Where the folders go, under a path that the engine has too. Default: serving/ENGINE in the registry.",
        ),
    ] = None,
    unload_others: Annotated[
        bool, typer.Option("--unload-others", help="Unload the adapters that are not named.")
    ] = False,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Do not compare the names of the adapters' and the engine's base model.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar=API_KEY_VARIABLE,
            show_default=False,
            help="The server's key; better in the environment than where others see it.",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long one answer may take.")
    ] = 120.0,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Load adapters into a running vLLM or SGLang.

    Each is written in the form that the engine takes (docs/profiles.md), into a folder named by what is in it, and
    loaded under the name it is asked for by. One that is loaded from that folder is left alone; one that is loaded
    from another is replaced. Everything is written before the engine is asked for anything (docs/engines.md).

    Raises:
        EngineError: the engine cannot be reached, takes no adapters, serves another model, or refused some.
        ProfileError: the engine cannot compute what an adapter does.
    """
    from lorareg.compress.serving.folders import serve, serving_folder
    from lorareg.compress.serving.sync import ENDPOINTS, EngineClient
    from lorareg.compress.serving.sync import sync as run_sync
    from lorareg.registry.home import resolve_home
    from lorareg.registry.reader import Reader

    if engine not in ENDPOINTS:
        raise typer.BadParameter(f"{engine!r} is none of {', '.join(ENDPOINTS)}.", param_hint="--engine")
    output, folder = Output(as_json, quiet), resolve_home(home)
    client = EngineClient(engine, to, api_key, timeout_s)
    with progress(output) as reporter:
        with Reader(folder) as reader:
            adapters = {name: reader.adapter(name) for name in tasks}
            reporter.start("materialize", len(adapters))
            wanted = {}
            for name, adapter in adapters.items():
                wanted[name] = serve(reader, adapter, engine, into or serving_folder(folder, engine))
                reporter.advance()
            reporter.finish()
        done = run_sync(client, wanted, unload_others=unload_others, any_base=any_base, reporter=reporter)
    entries = [_entry(item, wanted.get(item.name)) for item in done]
    counts = {action: sum(item.action == action for item in done) for action in sorted({i.action for i in done})}
    rows = [(i.name, e["adapter"] or MISSING, i.action, i.reason or i.path) for i, e in zip(done, entries, strict=True)]
    table = Table(("name", "adapter", "action", "from, or why not"), rows, flexible=frozenset({"from, or why not"}))
    data = {"engine": engine, "url": client.shown, "adapters": entries, "counts": counts}
    told = ", ".join(f"{count} {action}" for action, count in counts.items())
    output.show(data, table, f"{client.shown}: {told}", brief=[f"{item.name} {item.action}" for item in done])
    failed = sum(item.action in ("refused", "unlisted") for item in done)
    if failed:
        raise EngineError(
            engine=client.name,
            url=client.shown,
            reason=f"{failed} of {len(done)} adapters are not as they should be",
            remedy="The table above says why; the others are.",
        )


def _entry(item: Synced, served: Served | None) -> dict[str, Any]:
    """What became of one name, as JSON has it; `served` unless it was unloaded."""
    return {
        "name": item.name,
        "adapter": served.adapter.ref if served else None,
        "action": item.action,
        "path": item.path,
        "reason": item.reason,
        "server_needs": served.adapted.needs if served else "",
    }
