"""What is not here, asked of another hub: base models, for clients whose only hub this is.

Only reading, only paths of the Hub's protocol, and nothing of who asks is passed on: no token, no cookie, no address. A
redirect is followed here, so that a client never takes its token to a third server.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import quote

import httpx2
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lorareg.cli.web.replies import RefusedError, busy

PASSED_ON = ("range", "if-none-match", "if-range", "accept")
GIVEN_BACK = (
    "accept-ranges",
    "content-disposition",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "last-modified",
    "link",
    "x-error-code",
    "x-error-message",
    "x-repo-commit",
)
_REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?"
_PATH = re.compile(
    rf"/api/models/{_REPOSITORY}(?:/(?:revision|tree|refs|paths-info)(?:/[^\0\\]*)?)?|/{_REPOSITORY}/resolve/[^\0\\]+"
)


class Upstream:
    """Another hub, at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        timeout = httpx2.Timeout(30.0, connect=5.0)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # one client's would go with another's request
        self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False, cookies=no_cookies)

    def serves(self, request: Request) -> bool:
        """Whether a request may be passed on."""
        path = request.scope["path"]
        inner = ".." not in path.split("/")
        return request.method in ("GET", "HEAD") and inner and _PATH.fullmatch(path) is not None

    async def answer(self, request: Request) -> Response:
        """What the upstream says.

        Raises:
            RefusedError: 502 where it says nothing that can be passed on, 503 where it does not answer.
        """
        # Quoted anew, so that what was quoted twice (%252e%252e) does not become a way out of the path over there.
        path = quote(request.scope["path"], safe="/:@!$&'()*+,;=~")
        url = httpx2.URL(f"{self.url}{path}").copy_with(query=request.url.query.encode() or None)
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        headers["accept-encoding"] = "identity"
        try:
            found = await self._asked(request.method, url, headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise busy(503, "The upstream hub does not answer.") from error
        if found.status_code >= 500 or found.status_code in (401, 403):
            await found.aclose()
            raise RefusedError(502, "Upstream", f"The upstream hub answers {found.status_code}.")
        given = {name: found.headers[name] for name in GIVEN_BACK if name in found.headers}
        if request.method == "HEAD":
            await found.aclose()
            return Response(status_code=found.status_code, headers=given)
        return StreamingResponse(_pieces(found), found.status_code, given)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _asked(self, method: str, url: httpx2.URL, headers: dict[str, str]) -> httpx2.Response:
        """The answer at the end of redirects, with what the first one said of a large file."""
        linked: dict[str, str] = {}
        for _ in range(5):
            found = await self._client.send(self._client.build_request(method, url, headers=headers), stream=True)
            for name, plain in (("x-linked-etag", "etag"), ("x-linked-size", "content-length"), ("x-repo-commit",) * 2):
                if name in found.headers:
                    linked.setdefault(plain, found.headers[name])
            if not found.has_redirect_location:
                break
            await found.aclose()
            if method == "HEAD" and "etag" in linked and "content-length" in linked:
                return httpx2.Response(200, headers=linked)
            url = url.join(found.headers["location"])
        else:
            raise RefusedError(502, "Upstream", "The upstream hub redirects without end.")
        found.headers.update({name: value for name, value in linked.items() if name != "content-length"})
        return found


async def _pieces(found: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in found.aiter_raw():
            yield piece
    finally:
        await found.aclose()
