"""The application: every room of the server put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lorareg.cli.web.access import granted
from lorareg.cli.web.decoded import DecodedFiles
from lorareg.cli.web.guard import Guard, Limits
from lorareg.cli.web.hub import Hub
from lorareg.cli.web.observe import Figures
from lorareg.cli.web.offers import Offers
from lorareg.cli.web.openapi import openapi
from lorareg.cli.web.pages.routes import not_found_page, page_routes
from lorareg.cli.web.readers import Readers
from lorareg.cli.web.replies import RefusedError, answer_to, refusal_of
from lorareg.cli.web.uploads import Uploads
from lorareg.registry.errors import LoraregError, ServeError
from lorareg.registry.tokens import EVERY_NAMESPACE
from lorareg.registry.urls import may_have_secrets, without_secrets

DECODED_FOLDER, INCOMING_FOLDER = "decoded", "incoming"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a registry is served."""

    home: Path
    cache: Path  # a folder of the server's own
    cache_bytes: int = 2_000_000_000
    anonymous: bool = True  # whether everybody may read
    hosts: frozenset[str] | None = None  # names that requests may be for; None is any
    upstream: str | None = None  # another hub's URL
    limits: Limits = field(default_factory=Limits)


def make_app(settings: Settings) -> ASGIApp:
    """The server of a registry, as an ASGI application.

    Raises:
        RegistryError: there is no registry.
        ServeError: another server uses the cache, or the upstream's URL has what nobody should see.
    """
    readers, offers = Readers(settings.home), Offers()
    with readers.borrow():
        pass  # that it can be read is known before the first request
    upstream = _upstream(settings.upstream)
    decoded = DecodedFiles(settings.cache / DECODED_FOLDER, settings.cache_bytes)
    figures = Figures(decoded)
    hub = Hub(readers, offers, decoded)
    uploads = Uploads(readers, offers, figures, settings.cache / INCOMING_FOLDER, settings.limits.uploads)

    async def refused(request: Request, error: Exception) -> Response:
        # Of a task that is here, nothing comes from elsewhere: there its name may be a stranger's.
        if upstream is not None and refusal_of(error).code == "RepoNotFound" and upstream.serves(request):
            try:
                answer: Response = await upstream.answer(request)
                return answer
            except RefusedError as refusal:
                error = refusal
        answered = answer_to(error, request.state.request_id)
        for_people = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        return not_found_page(request) if answered.status_code == 404 and for_people else answered

    async def health(request: Request) -> Response:
        """Whether the registry can be read."""

        def look() -> None:
            with readers.borrow() as reader:
                reader.fetch("SELECT count(*) AS n FROM cohort")

        await run_in_threadpool(look)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        if granted(request).namespace != EVERY_NAMESPACE:
            raise RefusedError(403, "Forbidden", "This takes a token for every namespace.")
        return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def schema(request: Request) -> Response:
        """This document."""
        return JSONResponse(described)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        readers.close()
        decoded.close()
        if upstream is not None:
            await upstream.close()

    own = [Route("/healthz", health), Route("/metrics", metrics), Route("/openapi.json", schema)]
    programs = [*own, *uploads.routes(), *hub.routes()]
    described = openapi(programs)
    pages = page_routes(lambda request: readers.borrow(), lambda request, task: granted(request).covers(task))
    routes = [*pages, *programs]
    handlers: dict[Any, Any] = dict.fromkeys((RefusedError, HTTPException, LoraregError, OSError, Exception), refused)
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False  # a redirect would name whatever host the request did
    return Guard(app, readers, figures, settings.limits, anonymous=settings.anonymous, hosts=settings.hosts)


def _upstream(url: str | None) -> Any:
    if url is None:
        return None
    from lorareg.cli.web.upstream import Upstream

    if may_have_secrets(url):
        reason = f"--upstream {without_secrets(url)} was given with a user's name, password, query or fragment"
        raise ServeError(reason=reason, remedy="Leave it out: what is read there, every client may read here.")
    return Upstream(url)
