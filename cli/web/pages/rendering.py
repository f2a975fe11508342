"""Records to HTML: the templates, and the headers that every page goes out with.

Whatever is put into a template is escaped, and control characters in it are shown as such: an adapter's texts are a
stranger's. There is no script on any page, and the headers allow none; loaded are only the style sheet and the icon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from lorareg.cli.output import format_bytes, format_error, format_percent, printable
from lorareg.cli.report_html import FIGURE_STYLE

_FOLDER = Path(__file__).parent
_POLICY = {
    "default-src": "'none'",
    "style-src": "'self'",
    "img-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",  # what is seen depends on who asks
}
STATIC_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "public, max-age=31536000, immutable",  # the address has its digest
}


def render_page(request: Request, template: str, values: Mapping[str, object], status: int = 200) -> Response:
    """A page as a response."""
    root = request.scope.get("root_path", "")
    frame = {
        "root": root,
        "style": f"{root}/static/style.css?v={_digest(style_sheet())}",
        "version": version("lorareg"),
    }
    html = _environment().get_template(template).render({**frame, **values})
    return Response(html, status, PAGE_HEADERS, "text/html")


def render_error(request: Request, status: int, heading: str, explanation: str) -> Response:
    """An error as a page for people."""
    return render_page(
        request, "error.html", {"status": status, "heading": heading, "explanation": explanation}, status
    )


@lru_cache(maxsize=1)
def style_sheet() -> str:
    """The pages' style: what the report has for figures, and what is theirs."""
    return FIGURE_STYLE + (_FOLDER / "static" / "style.css").read_text("utf-8")


@lru_cache(maxsize=1)
def icon() -> bytes:
    """The icon, an SVG."""
    return (_FOLDER / "static" / "icon.svg").read_bytes()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finalize(value: object) -> object:
    """What a template writes out: text is made printable, markup of our own is left as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "bytes": format_bytes,
        "error": format_error,
        "percent": format_percent,
        "path": lambda text: quote(text, safe="/"),
        "query": lambda text: quote(text, safe=""),
        "count": _count,
        "moment": lambda text: f"{text[:10]} {text[11:16]} UTC",  # ISO 8601 in UTC, as every time that is stored
    }
    environment.filters.update(filters)
    return environment


def _count(number: int, noun: str) -> str:
    """'1 task', '2 tasks'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
