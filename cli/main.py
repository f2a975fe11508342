"""The `lorareg` command: one module a command, one handler for every error.

Start-up imports typer and nothing heavier. Each command imports what it needs when it runs, so that
`--help`, completion and the decode path stay quick.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lorareg.cli import certificate as certificate_command
from lorareg.cli import check as check_command
from lorareg.cli import cohorts as cohorts_command
from lorareg.cli import compress as compress_command
from lorareg.cli import describe as describe_command
from lorareg.cli import export as export_command
from lorareg.cli import failures
from lorareg.cli import generate as generate_command
from lorareg.cli import import_ as import_command
from lorareg.cli import ingest as ingest_command
from lorareg.cli import interpolate as interpolate_command
from lorareg.cli import lint as lint_command
from lorareg.cli import list as list_command
from lorareg.cli import materialize as materialize_command
from lorareg.cli import migrate as migrate_command
from lorareg.cli import pin as pin_command
from lorareg.cli import prune as prune_command
from lorareg.cli import quickstart as quickstart_command
from lorareg.cli import replicate as replicate_command
from lorareg.cli import report as report_command
from lorareg.cli import rm as rm_command
from lorareg.cli import search as search_command
from lorareg.cli import serve as serve_command
from lorareg.cli import show as show_command
from lorareg.cli import sync as sync_command
from lorareg.cli import tag as tag_command
from lorareg.cli import token as token_command
from lorareg.cli import verify as verify_command
from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.registry.errors import StoppedError

STOPPED = "Stopped. What was recorded before is safe; run the same command again to go on."


class Commands(TyperGroup):
    """The group of all commands; turns Ctrl-C into an error like any other."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            StoppedError: on Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise StoppedError(message=STOPPED) from error


app = typer.Typer(
    cls=Commands,
    name="lorareg",
    help="Store many LoRA adapters as one generator plus a few bytes each, and get any of them back.",
    epilog="Start with `lorareg quickstart`. Errors exit with a code of their own; README.md lists them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    "ingest": ingest_command.ingest,
    "compress": compress_command.compress,
    "materialize": materialize_command.materialize,
    "sync": sync_command.sync,
    "lint": lint_command.lint,
    "interpolate": interpolate_command.interpolate,
    "generate": generate_command.generate,
    "report": report_command.report,
    "verify": verify_command.verify,
    "certificate": certificate_command.certificate,
    "check": check_command.check,
    "list": list_command.list_adapters,
    "search": search_command.search,
    "show": show_command.show,
    "describe": describe_command.describe,
    "cohorts": cohorts_command.cohorts,
    "tag": tag_command.tag,
    "rm": rm_command.rm,
    "restore": rm_command.restore,
    "pin": pin_command.pin,
    "replicate": replicate_command.replicate,
    "export": export_command.export,
    "import": import_command.import_bundle,
    "prune": prune_command.prune,
    "gc": prune_command.gc,
    "serve": serve_command.serve,
    "migrate": migrate_command.migrate,
    "quickstart": quickstart_command.quickstart,
}

for _name, _command in COMMANDS.items():
    # What a command raises is for who reads the code; exit codes tell it to who runs it.
    app.command(_name, help=inspect.cleandoc(_command.__doc__ or "").partition("\n\nRaises:")[0])(_command)


app.add_typer(token_command.app, name="token")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lorareg {version('lorareg')}")
        raise typer.Exit


@app.callback()
def common(
    ctx: typer.Context,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the shared options before the command's name as well as after it."""
    shared = {"home": home, "as_json": as_json, "quiet": quiet}
    assert isinstance(ctx.command, Commands)
    ctx.default_map = _for_every_command(ctx.command, shared)


def _for_every_command(group: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """Defaults for the commands of a group and of the groups in it."""
    return {
        name: _for_every_command(command, shared) if hasattr(command, "commands") else shared
        for name, command in group.commands.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lorareg` and exit: the console script.

    Numpy's matrices here are small, and OpenBLAS's threads get in each other's way on them: encoding
    an adapter of 210 modules took 22 s with two threads on two busy cores, 5 s with one.

    Raises:
        SystemExit: always, with the exit code.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="lorareg")
    except KeyboardInterrupt:  # before a command ran: typer is still reading what commands there are
        sys.exit(failures.handle(StoppedError(message=STOPPED)))
    except Exception as error:  # the one handler
        sys.exit(failures.handle(error))
