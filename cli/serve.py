"""`lorareg serve`: a registry for clients of the Hugging Face Hub, and for people."""

from __future__ import annotations

import ipaddress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lorareg.cli.options import Home, parse_size
from lorareg.cli.output import print_error
from lorareg.registry.errors import MissingExtraError, ServeError
from lorareg.registry.home import SERVING_FOLDER, resolve_home

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
IDLE_S = 20


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen at; beyond this machine, tokens are asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes one that is free.")
    ] = 8321,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="PATH",
            show_default=False,
            help="Folder for decoded files. Default: serving in the registry's folder.",
        ),
    ] = None,
    cache_size: Annotated[str, typer.Option("--cache-size", metavar="SIZE", help="How much of them is kept.")] = "2GB",
    most_upload: Annotated[str, typer.Option("--most-upload", metavar="SIZE", help="The largest request.")] = "256MB",
    most_requests: Annotated[
        int, typer.Option("--most-requests", metavar="N", min=1, help="At once; more get 503.")
    ] = 512,
    most_per_client: Annotated[
        int,
        typer.Option("--most-per-client", metavar="N", min=1, help="At once from one token or address; more get 429."),
    ] = 256,
    tokens: Annotated[
        bool,
        typer.Option("--tokens/--open", help="Ask for tokens on this machine too. --open: whoever is on it may read."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            show_default=False,
            help="A name that this server goes by, such as a proxy's.",
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream",
            metavar="URL",
            show_default=False,
            help="Another hub, for what is not here (base models). Tokens are not passed on.",
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Serve adapters to clients of the Hugging Face Hub.

    With HF_ENDPOINT=http://127.0.0.1:8321, huggingface_hub, PEFT and diffusers find them here. A task is a repository,
    its versions and labels are revisions, and what is pushed is ingested. Adapters are decoded when they are first
    asked for. On this machine whoever asks may read; writing, and any other address, takes a token
    (`lorareg token create`).

    Raises:
        ServeError: the address cannot be had, or other machines could ask and there are no tokens.
        RegistryError: there is no registry.
    """
    for package in ("starlette", "uvicorn", "prometheus_client", "jinja2"):
        if find_spec(package) is None:
            raise MissingExtraError(feature="Serving", package=package, extra="serve")
    from lorareg.cli.web.app import Settings, make_app
    from lorareg.cli.web.guard import Limits
    from lorareg.cli.web.listen import listen, run

    folder = resolve_home(home)
    on_loopback = _is_loopback(host)
    anonymous = on_loopback and not tokens
    settings = Settings(
        home=folder,
        cache=cache or folder / SERVING_FOLDER,
        cache_bytes=parse_size("--cache-size", cache_size),
        anonymous=anonymous,
        hosts=LOOPBACK_NAMES | {name.lower() for name in allow_host or ()} if anonymous else None,
        upstream=upstream,
        limits=Limits(
            requests=most_requests,
            requests_per_client=most_per_client,
            body_bytes=parse_size("--most-upload", most_upload),
        ),
    )
    if not anonymous:
        _expect_tokens(folder)
    socket = listen(host, port)
    try:
        app = make_app(settings)
    except BaseException:
        socket.close()
        raise
    address = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
    print_error(f"serving {folder} at {address}" + (" (reading needs no token)" if anonymous else ""))
    run(app, socket, header_bytes=settings.limits.header_bytes, idle_s=IDLE_S)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _expect_tokens(home: Path) -> None:
    from lorareg.registry.reader import Reader
    from lorareg.registry.tokens import holds

    with Reader(home) as reader:
        if not any(holds(token) for token in reader.tokens()):
            remedy = "Make one with `lorareg token create NAME --scope read`, or serve at 127.0.0.1 alone."
            raise ServeError(reason="it would ask for tokens, and none holds", remedy=remedy)
