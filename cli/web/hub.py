"""Reading, as stock clients of the Hugging Face Hub do it.

    GET       /api/models                                   search, author, filter, limit, sort
    GET       /api/models/{task}[/revision/{revision}]      blobs=true for sizes
    GET       /api/models/{task}/tree/{revision}[/{path}]
    POST      /api/models/{task}/paths-info/{revision}
    GET       /api/models/{task}/refs
    GET       /api/models/{task}/commits/{revision}
    GET       /api/whoami-v2
    HEAD GET  /{task}/resolve/{revision}/{file}             Range, ETag

A task is a repository, a version a commit. HEAD is answered from recorded digests; the first GET of a weights file
decodes it. What is not here is 404 with the Hub's code, base models among it, or asked of an upstream if there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lorareg.cli.web.access import granted
from lorareg.cli.web.bodies import read_body
from lorareg.cli.web.decoded import DecodedFiles
from lorareg.cli.web.offers import (
    MAIN,
    Offer,
    OfferedFile,
    Offers,
    facts_of,
    hub_time,
    model_info,
    summary,
    tags_of,
    tree,
)
from lorareg.cli.web.readers import Readers
from lorareg.cli.web.replies import bad_request, no_entry, no_repository, no_revision
from lorareg.compress.materialize import restore_weights
from lorareg.registry.errors import InvalidNameError, MissingBlobError, OriginalGoneError, UnknownAdapterError
from lorareg.registry.lookup import Lookup
from lorareg.registry.meanwhile import LOOKS, look_again
from lorareg.registry.types import Adapter

PAGE = 1000
MOST_PATHS_BYTES = 1 << 20
Result = TypeVar("Result")


class Hub:
    """The handlers of one registry."""

    def __init__(self, readers: Readers, offers: Offers, decoded: DecodedFiles) -> None:
        self.readers, self.offers, self.decoded = readers, offers, decoded

    def routes(self) -> list[Route]:
        """Every route above, for tasks with and without a namespace."""
        routes = [Route("/api/models", self.list_models), Route("/api/whoami-v2", self.whoami)]
        for task in ("{namespace}/{task}", "{task}"):
            api = f"/api/models/{task}"
            routes += [
                Route(f"{api}/revision/{{revision:path}}", self.model),
                Route(f"{api}/tree/{{revision}}", self.tree),
                Route(f"{api}/tree/{{revision}}/{{path:path}}", self.tree),
                Route(f"{api}/paths-info/{{revision}}", self.paths_info, methods=["POST"]),
                Route(f"{api}/refs", self.refs),
                Route(f"{api}/commits/{{revision}}", self.commits),
                Route(f"/{task}/resolve/{{revision}}/{{path:path}}", self.resolve),
            ]
        return [*routes, Route("/api/models/{task}", self.model), Route("/api/models/{namespace}/{task}", self.model)]

    async def list_models(self, request: Request) -> Response:
        """Tasks by name, a page at a time; what `Link` names is the next."""
        query = request.query_params
        limit = min(max(int(query["limit"][:9]), 1), PAGE) if _is_number(query.get("limit", "")) else PAGE
        found = await self._ask(lambda reader: self._listed(reader, request, limit + 1))
        headers = {}
        if len(found) > limit:
            after = [*((k, v) for k, v in query.multi_items() if k != "cursor"), ("cursor", found[limit - 1]["id"])]
            headers["Link"] = f'<{request.url.replace(query=urlencode(after))}>; rel="next"'
        return JSONResponse(found[:limit], headers=headers)

    async def model(self, request: Request) -> Response:
        """One task at a revision."""
        offer = await self.offer(request)
        sizes = request.query_params.get("blobs", "").lower() in ("1", "true")
        return JSONResponse(model_info(offer, with_sizes=sizes), headers=_commit(offer))

    async def tree(self, request: Request) -> Response:
        """The files of a revision; there are no folders."""
        offer = await self.offer(request)
        path = request.path_params.get("path", "").strip("/")
        if path:
            raise no_entry(offer.adapter.ref, path)
        return JSONResponse(tree(offer), headers=_commit(offer))

    async def paths_info(self, request: Request) -> Response:
        """What is known of some of a revision's files; those that are not there are left out."""
        body = await read_body(request, MOST_PATHS_BYTES)
        asked = await run_in_threadpool(_paths_in, request.headers.get("content-type", ""), body)
        offer = await self.offer(request)
        return JSONResponse([entry for entry in tree(offer) if entry["path"] in asked], headers=_commit(offer))

    async def refs(self, request: Request) -> Response:
        """Versions and labels, as tags; the newest version is the branch `main`."""
        name = task_of(request)
        return JSONResponse(await self._ask(lambda reader: self._refs(reader, self._visible(reader, request, name))))

    async def commits(self, request: Request) -> Response:
        """Versions, newest first."""
        offer = await self.offer(request)
        newest = offer.adapter

        def told(reader: Lookup) -> list[dict[str, Any]]:
            versions = [one for one in reader.versions(newest.name) if one.adapter.version <= newest.version]
            return [
                {
                    "id": facts.commit,
                    "title": f"Version {facts.adapter.version}",
                    "message": facts.adapter.description,
                    "date": hub_time(facts.adapter.created_at),
                    "authors": [],
                }
                for facts in facts_of(reader, versions[::-1])
            ]

        return JSONResponse(await self._ask(told))

    async def whoami(self, request: Request) -> Response:
        """Whose token it is."""
        grant = granted(request)
        role = "write" if grant.may_write else "read"
        auth = {"accessToken": {"displayName": grant.who, "role": role}, "type": "access_token"}
        return JSONResponse({"type": "user", "name": grant.who, "fullname": grant.who, "orgs": [], "auth": auth})

    async def resolve(self, request: Request) -> Response:
        """A file: HEAD from rows alone, GET decoded once and then from disk."""
        for _ in range(LOOKS - 1):
            with suppress(
                MissingBlobError, OriginalGoneError
            ):  # encoded anew since its rows were read: as `look_again`
                return await self._resolved(request)
        return await self._resolved(request)

    async def _resolved(self, request: Request) -> Response:
        offer = await self.offer(request)
        path = request.path_params["path"]
        file = offer.files.get(path)
        if file is None:
            raise no_entry(offer.adapter.ref, path)
        headers = {
            **_commit(offer),
            "ETag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Last-Modified": _http_date(offer.encoding.created_at if offer.encoding else offer.adapter.created_at),
            "Cache-Control": "private, no-cache" if request.path_params["revision"] == MAIN else "private",
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(file.name)}",
        }
        if f'"{file.etag}"' in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        media_type = _media_type(file)
        if request.method == "HEAD":
            headers["Content-Length"] = str(file.size_bytes)
            return Response(headers=headers, media_type=media_type)
        path_on_disk, status = await run_in_threadpool(self._leased, offer, file)
        return _Leased(path_on_disk, status, headers, media_type, lambda: self.decoded.release(file.sha256))

    async def offer(self, request: Request) -> Offer:
        """What a request's path is about, if whoever asks may see it.

        Raises:
            RefusedError: 404.
        """
        name, revision = task_of(request), request.path_params.get("revision", MAIN)

        def find(reader: Lookup) -> Offer | None:
            return self.offers.find(reader, self._visible(reader, request, name).name, revision)

        offer = await self._ask(find)
        if offer is None:
            raise no_revision(name, revision)
        return offer

    async def _ask(self, question: Callable[[Lookup], Result]) -> Result:
        def asked() -> Result:
            with self.readers.borrow() as reader:
                return look_again(lambda: question(reader))

        return await run_in_threadpool(asked)

    def _visible(self, reader: Lookup, request: Request, name: str) -> Adapter:
        try:
            if "@" not in name and granted(request).covers(name):
                return reader.adapter(name)
        except (UnknownAdapterError, InvalidNameError) as error:
            raise no_repository(name) from error
        raise no_repository(name)

    def _leased(self, offer: Offer, file: OfferedFile) -> tuple[Path, os.stat_result]:
        path = self.decoded.lease(file.sha256, lambda: self._content(offer, file))
        try:
            return path, path.stat()
        except BaseException:
            self.decoded.release(file.sha256)
            raise

    def _content(self, offer: Offer, file: OfferedFile) -> bytes:
        if file.data is not None:
            return file.data
        with self.readers.borrow() as reader:
            return restore_weights(reader, offer.adapter, offer.encoding)

    def _listed(self, reader: Lookup, request: Request, most: int) -> list[dict[str, Any]]:
        query, grant = request.query_params, granted(request)
        author, search, after = query.get("author"), query.get("search", "").lower(), query.get("cursor", "")
        wanted = {word for value in query.getlist("filter") for word in value.split(",") if word}
        found: list[dict[str, Any]] = []
        while names := reader.names(after, PAGE):
            after = names[-1]
            fitting = [
                name
                for name in names
                if search in name.lower() and (author is None or name.startswith(f"{author}/")) and grant.covers(name)
            ]
            fitting_too = [one for one in reader.newest(fitting) if wanted <= set(tags_of(one.adapter))]
            room = fitting_too[: most - len(found)]
            if query.get("full") is None:
                found += [summary(facts.adapter, facts.commit) for facts in facts_of(reader, room)]
            else:
                found += [model_info(self.offers.of(reader, one.adapter)) for one in room]
            if len(found) >= most:
                return found
        return found

    def _refs(self, reader: Lookup, newest: Adapter) -> dict[str, Any]:
        told = facts_of(reader, reader.versions(newest.name))
        commits = {facts.adapter.id: facts.commit for facts in told}
        tags = [(f"v{facts.adapter.version}", facts.commit) for facts in told]
        labels = reader.labels(newest.name)
        tags += [(tag.label, commits[tag.adapter_id]) for tag in labels if tag.adapter_id in commits]
        return {
            "branches": [{"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": commits[newest.id]}],
            "tags": [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit} for name, commit in tags],
            "converts": [],
        }


class _Leased(FileResponse):
    """A file of the cache, released when it has been sent or the client is gone."""

    chunk_size = 1 << 20

    def __init__(
        self,
        path: Path,
        status: os.stat_result,
        headers: dict[str, str],
        media_type: str,
        release: Callable[[], None],
    ) -> None:
        super().__init__(path, headers=headers, media_type=media_type, stat_result=status)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def task_of(request: Request) -> str:
    """The task that a path names."""
    namespace = request.path_params.get("namespace")
    task: str = request.path_params["task"]
    return task if namespace is None else f"{namespace}/{task}"


def _paths_in(media_type: str, body: bytes) -> set[str]:
    from urllib.parse import parse_qs

    try:
        if media_type.startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode(), max_num_fields=10_000).get("paths", [])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise bad_request("The body has to name paths, as a form or as JSON.") from error
    if isinstance(paths, str):
        return {paths}
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise bad_request("paths has to be a list of names.")
    return set(paths)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _commit(offer: Offer) -> dict[str, str]:
    return {"X-Repo-Commit": offer.commit}


def _http_date(time: str) -> str:
    return format_datetime(datetime.fromisoformat(time), usegmt=True)


def _media_type(file: OfferedFile) -> str:
    if file.data is None:
        return "application/octet-stream"
    return "application/json" if file.name.endswith(".json") else "text/plain; charset=utf-8"
