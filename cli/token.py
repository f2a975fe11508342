"""`lorareg token`: who may ask a server for what."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from lorareg.cli.audit import record_event
from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table
from lorareg.registry.types import Token


class Scope(Enum):
    """What a token lets one do."""

    read = "read"
    write = "write"


Name = Annotated[str, typer.Argument(metavar="NAME", help="What the token is called, in lists and in the audit log.")]

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke access tokens of a server.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("create")
def create(
    name: Name,
    scope: Annotated[Scope, typer.Option("--scope", help="write includes read.")] = Scope.read,
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NS", help="Only tasks named NS/...; '*' is every task.")
    ] = "*",
    days: Annotated[
        float | None, typer.Option("--days", metavar="DAYS", show_default=False, help="Void after so many days.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a token and print it, this once: what is kept is its digest.

    Raises:
        TokenError: there is one of that name, or it could not expire then.
        InvalidNameError: the name or the namespace is not valid.
    """
    from lorareg.registry.store import Registry
    from lorareg.registry.tokens import create_token

    with Registry.open(home, create=True) as registry:
        token, text = create_token(registry, name, scope.value, namespace, days)
        record_event(registry.home, "token created", by="cli", token=name, scope=scope.value, namespace=namespace)
    lines = [text, "", "Keep it now: it cannot be shown again. Clients take it from HF_TOKEN."]
    Output(as_json, quiet).show({**_shown(token), "token": text}, *lines, brief=[text])


@app.command("list")
def list_tokens(home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List tokens, those that are void among them."""
    from lorareg.registry.reader import Reader

    with Reader(home) as reader:
        tokens = reader.tokens()
    rows = [
        (one.name, one.scope, one.namespace, one.created_at[:10], (one.expires_at or MISSING)[:16], _state(one))
        for one in tokens
    ]
    table = Table(("token", "scope", "namespace", "made", "expires", "state"), rows)
    names = [one.name for one in tokens]
    Output(as_json, quiet).show(
        {"tokens": [_shown(one) for one in tokens]}, table if rows else "No tokens.", brief=names
    )


@app.command("revoke")
def revoke(name: Name, home: Home = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Make a token void, from the next request on.

    Raises:
        TokenError: there is none of that name.
    """
    from lorareg.registry.store import Registry
    from lorareg.registry.tokens import revoke_token

    with Registry.open(home, create=False) as registry:
        token = revoke_token(registry, name)
        record_event(registry.home, "token revoked", by="cli", token=name)
    Output(as_json, quiet).show(_shown(token), f"Token {name!r} is void.")


def _state(token: Token) -> str:
    from lorareg.registry.tokens import holds

    return "revoked" if token.revoked_at else "holds" if holds(token) else "expired"


def _shown(token: Token) -> dict[str, object]:
    return {
        "name": token.name,
        "scope": token.scope,
        "namespace": token.namespace,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "state": _state(token),
    }
