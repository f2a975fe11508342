"""Pages for people: the registry's tasks, each with its figures and files, and the report.

`page_routes` gives the routes; which registry a request is about, and which tasks whoever asks may see, is the
caller's to say. What may not be seen is not there: not in lists, sums, plots or searches, and its own page is
the one of a task that does not exist. Handlers are plain functions, so they run in the thread pool.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lorareg.cli.web.pages.finder import Finder
from lorareg.cli.web.pages.overview import MAX_COHORTS, page_of_names, sums, task_line
from lorareg.cli.web.pages.rendering import STATIC_HEADERS, icon, render_error, render_page, style_sheet
from lorareg.cli.web.pages.task import task_page
from lorareg.registry.errors import InvalidNameError, LoraregError, UnknownAdapterError
from lorareg.registry.lookup import Lookup
from lorareg.registry.names import validate_task_name

OpenReader = Callable[[Request], AbstractContextManager[Lookup]]
MaySee = Callable[[Request, str], bool]
Handler = Callable[[Request], Response]

MAX_QUERY_CHARS = 400
MAX_HITS = 20

_HOST = re.compile(r"[A-Za-z0-9.\-]+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?")
_log = logging.getLogger("lorareg.web")


def page_routes(open_reader: OpenReader, may_see: MaySee) -> list[Route]:
    """The pages of a registry.

    Args:
        open_reader: opens the registry that a request is about; used in one thread and closed there.
        may_see: whether who asks may see the task of that name.
    """
    pages = _Pages(open_reader, may_see)
    return [
        Route("/", _guarded(pages.tasks), name="tasks"),
        Route("/tasks/{name}", _guarded(pages.task), name="task"),
        Route("/tasks/{namespace}/{name}", _guarded(pages.task), name="task_in_namespace"),
        Route("/report", _guarded(pages.report), name="report"),
        Route("/static/style.css", _style, name="style"),
        Route("/static/icon.svg", _icon, name="icon"),
    ]


def not_found_page(request: Request) -> Response:
    """What an address that leads nowhere shows."""
    return render_error(request, 404, "Nothing is here", "The address may be old, or have a slip in it.")


class _Pages:
    """The handlers."""

    def __init__(self, open_reader: OpenReader, may_see: MaySee) -> None:
        self._open_reader, self._may_see, self._finder = open_reader, may_see, Finder()

    def tasks(self, request: Request) -> Response:
        """A page of all tasks, or those that fit a query."""
        query = " ".join(request.query_params.get("q", "").split())[:MAX_QUERY_CHARS]
        visible = partial(self._may_see, request)
        with self._open_reader(request) as lookup:
            if query:
                return self._search(request, lookup, visible, query)
            after = request.query_params.get("after", "")
            names, has_more = page_of_names(lookup, visible, after)
            lines = [task_line(listed) for listed in lookup.newest(names)]
            whole, cohorts = (None, []) if after else sums(lookup, visible)
        values = {
            "query": "",
            "after": after,
            "lines": lines,
            "next": names[-1] if has_more else None,
            "whole": whole,
            "cohorts": cohorts[:MAX_COHORTS],
            "cohort_count": len(cohorts),
        }
        return render_page(request, "tasks.html", values)

    def _search(self, request: Request, lookup: Lookup, visible: Callable[[str], bool], query: str) -> Response:
        found = self._finder.find(lookup, query, visible, MAX_HITS)
        lines = [task_line(listed) for listed in found.hits]
        return render_page(request, "search.html", {"query": query, "lines": lines, "note": found.note})

    def task(self, request: Request) -> Response:
        """One version of a task."""
        name = "/".join(request.path_params[part] for part in ("namespace", "name") if part in request.path_params)
        version = request.query_params.get("version") or None
        try:
            if not self._may_see(request, validate_task_name(name)):
                return _no_such_task(request)
            with self._open_reader(request) as lookup:
                page = task_page(lookup, name, version, _address(request))
        except (InvalidNameError, UnknownAdapterError):
            return _no_such_task(request)
        plot = Markup(page.proven.plot) if page.proven else ""
        return render_page(request, "task.html", {"page": page, "plot": plot})

    def report(self, request: Request) -> Response:
        """What `lorareg report --html` writes, of the tasks that may be seen."""
        from lorareg.cli.report_html import render_sections
        from lorareg.registry.report import build_report
        from lorareg.registry.store import Registry

        with self._open_reader(request) as lookup:
            home, names = lookup.home, lookup.names(include_removed=True)
        only = {name for name in names if self._may_see(request, name)}
        with Registry.open(home, create=False) as registry, registry.reading() as connection:
            built = build_report(connection, registry, None if len(only) == len(names) else only)
            values = {"created_at": built.created_at, "sections": Markup(render_sections(built))}
        return render_page(request, "report.html", values)


def _no_such_task(request: Request) -> Response:
    """The same, whether it is hidden from whoever asks or does not exist."""
    return render_error(request, 404, "No such task", "There is no task of this name and version here.")


def _guarded(handler: Handler) -> Handler:
    """The handler; where the registry fails, a page that says so without saying where the registry is."""

    @wraps(handler)
    def guarded(request: Request) -> Response:
        try:
            return handler(request)
        except LoraregError:
            _log.exception("%s failed", request.url.path)
            explanation = "The registry could not be read. The server's log says why; trying again later may help."
            return render_error(request, 503, "Not to be had at the moment", explanation)

    return guarded


def _style(request: Request) -> Response:
    return Response(style_sheet(), 200, STATIC_HEADERS, "text/css")


def _icon(request: Request) -> Response:
    return Response(icon(), 200, STATIC_HEADERS, "image/svg+xml")


def _address(request: Request) -> str:
    """This server as whoever asks reaches it; what they call it is only believed if it is a host."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        server = request.scope.get("server") or ("localhost", None)
        host = server[0] if server[1] is None else f"{server[0]}:{server[1]}"
    return f"{request.url.scheme}://{host}{request.scope.get('root_path', '')}"
