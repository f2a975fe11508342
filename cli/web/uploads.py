"""Writing, as stock clients of the Hugging Face Hub do it: what is pushed is ingested, with all that `ingest` checks.

    POST    /api/repos/create                       a name that may be pushed to
    DELETE  /api/repos/delete                       quarantine, as `lorareg rm` does it
    POST    /api/validate-yaml                      nothing is asked of cards
    POST    /api/models/{task}/preupload/{revision} which files to send, all of them as they are
    POST    /api/models/{task}/commit/{revision}    ndjson: header, file, deletedFile, deletedFolder
    POST    /api/models/{task}/tag/{revision}       a label
    DELETE  /api/models/{task}/tag/{label}

A commit is what the newest version's files become: a new version, or the same one with another card. Weights that are
what this server gave out count as unchanged, so that what was reconstructed never takes an original's place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import IO, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lorareg.cli.audit import record_event
from lorareg.cli.web.access import Grant, expect_write
from lorareg.cli.web.bodies import read_object
from lorareg.cli.web.commits import Changes, is_looked_at, read_changes
from lorareg.cli.web.hub import task_of
from lorareg.cli.web.observe import Figures
from lorareg.cli.web.offers import MAIN, Offer, Offers
from lorareg.cli.web.readers import Readers
from lorareg.cli.web.replies import (
    MOST_MESSAGE_CHARS,
    RefusedError,
    bad_request,
    busy,
    no_repository,
    no_revision,
)
from lorareg.registry.card import card_description, unmarked
from lorareg.registry.errors import InvalidAdapterError, InvalidNameError, LoraregError, UnknownAdapterError
from lorareg.registry.files import read_capped
from lorareg.registry.names import validate_label, validate_task_name
from lorareg.registry.peft_format import MAX_FILE_BYTES
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EXTRAS_FOLDER,
    WEIGHTS_FILE,
    sha256_hex,
)

MOST_JSON_BYTES = 1 << 20
MOST_PREUPLOAD_BYTES = 16 << 20


class Uploads:
    """The handlers of one registry."""

    def __init__(self, readers: Readers, offers: Offers, figures: Figures, incoming: Path, at_once: int) -> None:
        self.readers, self.offers, self.figures, self.incoming, self._room = readers, offers, figures, incoming, at_once
        self._recording = Lock()
        shutil.rmtree(incoming, ignore_errors=True)  # what an earlier process was stopped in
        incoming.mkdir(parents=True)

    def routes(self) -> list[Route]:
        """Every route above, for tasks with and without a namespace."""
        routes = [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/repos/delete", self.delete, methods=["DELETE"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
        ]
        for task in ("{namespace}/{task}", "{task}"):
            api = f"/api/models/{task}"
            routes += [
                Route(f"{api}/preupload/{{revision:path}}", self.preupload, methods=["POST"]),
                Route(f"{api}/commit/{{revision:path}}", self.commit, methods=["POST"]),
                Route(f"{api}/tag/{{revision}}", self.tag, methods=["POST"]),
                Route(f"{api}/tag/{{revision}}", self.untag, methods=["DELETE"]),
            ]
        return routes

    async def create(self, request: Request) -> Response:
        """Say whether a task may be pushed; it comes to be with its first files."""
        name = _name_in(await read_object(request, MOST_JSON_BYTES))
        expect_write(request, name)
        there = await run_in_threadpool(self._newest, name) is not None
        told = {"url": f"{request.base_url}{name}", "name": name, "id": name}
        return JSONResponse(told | ({"error": "It is there already."} if there else {}), 409 if there else 200)

    async def delete(self, request: Request) -> Response:
        """Put every version of a task in quarantine; `lorareg restore` brings them back."""
        name = _name_in(await read_object(request, MOST_JSON_BYTES))
        grant = expect_write(request, name)
        versions = await run_in_threadpool(self._remove, name)
        await self._audit("removed", grant, task=name, versions=versions)
        return JSONResponse({"removed": versions})

    async def validate_yaml(self, request: Request) -> Response:
        """Cards may say what they like."""
        async for _ in request.stream():
            pass  # whoever may read may ask this: nothing is kept of it, nor worked out
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request) -> Response:
        """What to send of a folder: nothing that would not be looked at."""
        name = task_of(request)
        expect_write(request, _valid(name))
        _expect_main(request)
        asked = await read_object(request, MOST_PREUPLOAD_BYTES)
        files = asked.get("files")
        if not isinstance(files, list) or not all(
            isinstance(f, dict) and isinstance(f.get("path"), str) for f in files
        ):
            raise bad_request("files has to be a list of objects with a path.")
        offer = await run_in_threadpool(self._newest, name)
        known = {} if offer is None else {f.name: f.blob_id for f in offer.files.values() if f.data is not None}
        told = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": not is_looked_at(file["path"]),
                "oid": known.get(file["path"]),
            }
            for file in files
        ]
        return JSONResponse({"files": told})

    async def commit(self, request: Request) -> Response:
        """Take a commit in; the answer comes when it is recorded."""
        name = task_of(request)
        grant = expect_write(request, _valid(name))
        _expect_main(request)
        if self._room <= 0:
            raise busy(503, "Other uploads are being taken in.", 5)
        try:
            async with self._place() as folder:
                with (folder / "body").open("w+b") as body:
                    async for piece in request.stream():
                        await run_in_threadpool(body.write, piece)
                    body.seek(0)
                    offer, outcome = await run_in_threadpool(self._taken_in, name, grant, folder, body)
        except (LoraregError, RefusedError) as error:
            self.figures.uploads.labels("refused").inc()
            await self._audit("upload refused", grant, task=name, reason=str(error)[:MOST_MESSAGE_CHARS])
            raise
        self.figures.uploads.labels(outcome).inc()
        await self._audit("uploaded", grant, task=offer.adapter.ref, outcome=outcome)
        url = f"{request.base_url}{name}/commit/{offer.commit}"
        return JSONResponse({"success": True, "commitOid": offer.commit, "commitUrl": url, "hookOutput": ""})

    async def tag(self, request: Request) -> Response:
        """Put a label on a version, moving it from any other."""
        name, revision = task_of(request), request.path_params["revision"]
        grant = expect_write(request, _valid(name))
        label = (await read_object(request, MOST_JSON_BYTES)).get("tag")
        if not isinstance(label, str):
            raise bad_request("tag has to be a name.")
        ref = await run_in_threadpool(self._label, name, revision, validate_label(label))
        await self._audit("tagged", grant, task=ref, label=label)
        return JSONResponse({"tag": label})

    async def untag(self, request: Request) -> Response:
        """Take a label away."""
        name, label = task_of(request), request.path_params["revision"]
        grant = expect_write(request, _valid(name))
        ref = await run_in_threadpool(self._unlabel, name, validate_label(label))
        await self._audit("untagged", grant, task=ref, label=label)
        return JSONResponse({"tag": label})

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Path]:
        """An empty folder for an upload, which has the place that was found free."""
        self._room -= 1
        try:
            folder = Path(await run_in_threadpool(tempfile.mkdtemp, dir=self.incoming))
            try:
                yield folder
            finally:
                await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
        finally:
            self._room += 1

    async def _audit(self, event: str, grant: Grant, **fields: object) -> None:
        await run_in_threadpool(record_event, self.readers.home, event, by=grant.who, **fields)

    def _newest(self, name: str) -> Offer | None:
        with self.readers.borrow() as reader:
            try:
                return self.offers.find(reader, name, MAIN)
            except UnknownAdapterError:
                return None

    def _taken_in(self, name: str, grant: Grant, folder: Path, body: IO[bytes]) -> tuple[Offer, str]:
        from lorareg.registry.store import Registry

        changes = read_changes(body, folder / "files")
        with self._recording:  # of two that begin from the same version, the second has to hear of the first
            before = self._newest(name)
            if changes.parent is not None and (before is None or before.commit != changes.parent):
                raise RefusedError(412, "Conflict", "The task has another version by now; begin from that one.")
            with Registry.open(self.readers.home, create=False) as registry:
                if before is not None:
                    _complete(registry, before, changes)
                outcome = _record(registry, name, before, changes, f"pushed by {grant.who}")
            after = self._newest(name)
        assert after is not None
        return after, outcome

    def _remove(self, name: str) -> list[int]:
        from lorareg.registry.store import Registry

        with Registry.open(self.readers.home, create=False) as registry:
            versions = registry.adapters(name=name)
            for version in versions:
                registry.remove(version)
        if not versions:
            raise no_repository(name)
        return [version.version for version in versions]

    def _label(self, name: str, revision: str, label: str) -> str:
        from lorareg.registry.store import Registry

        with self.readers.borrow() as reader:
            offer = self.offers.find(reader, name, revision)
        if offer is None:
            raise no_revision(name, revision)
        with Registry.open(self.readers.home, create=False) as registry:
            registry.tag(offer.adapter, label)
        return offer.adapter.ref

    def _unlabel(self, name: str, label: str) -> str:
        from lorareg.registry.store import Registry

        with Registry.open(self.readers.home, create=False) as registry:
            registry.adapter(name)
            try:
                adapter = registry.adapter(f"{name}@{label}")
            except UnknownAdapterError as error:
                raise no_revision(name, label) from error
            registry.untag(adapter, label)
        return adapter.ref


def _complete(registry: Any, before: Offer, changes: Changes) -> None:
    """Beside what changed, put what did not, as it was ingested; what this server made of it is not what changed."""
    weights = before.weights
    pushed = changes.folder / weights.name
    if pushed.exists() and sha256_hex(pushed.read_bytes()) == weights.sha256:
        pushed.unlink()
        changes.added.discard(weights.name)
        card = changes.folder / CARD_FILE
        if card.exists():
            text = card.read_bytes().decode("utf-8", "surrogateescape")
            card.write_bytes(unmarked(text).encode("utf-8", "surrogateescape"))
    if changes.is_card_alone:
        return
    gone = changes.deleted | changes.added
    if before.is_lone:
        gone |= {CONFIG_FILE}  # a record of ours, which is made anew
    for file in registry.files(before.adapter):
        name = weights.name if file.path == WEIGHTS_FILE else file.path
        kept = not file.path.startswith(EXTRAS_FOLDER) and name not in gone
        if kept and not (changes.deletes_all and file.path != WEIGHTS_FILE):
            (changes.folder / name).write_bytes(registry.read_file(before.adapter, file.path))


def _record(registry: Any, name: str, before: Offer | None, changes: Changes, source: str) -> str:
    from contextlib import ExitStack

    from lorareg.registry.ingest import IngestRequest
    from lorareg.registry.sources import AdapterSource, find_sources

    if before is not None and changes.is_card_alone:
        files = {path: read_capped(changes.folder / path, MAX_FILE_BYTES[path]) for path in changes.added}
        registry.put_files(before.adapter, files)
        description = card_description(files.get(CARD_FILE, b"").decode("utf-8", "replace"))
        if description:
            registry.describe(before.adapter, description)
        return "updated" if files else "known"
    with ExitStack() as stack:
        (found, *others) = find_sources([changes.folder], stack)
        source_shown = AdapterSource(found.root, found.path, name, found.error)
        if others:
            raise bad_request(f"A task is one adapter; there are {1 + len(others)} in this commit.")
        if found.error is not None:
            raise source_shown.named(found.error)
        request = IngestRequest(found.path, name, source=source)
        (outcome,) = registry.ingest_each([request])
        if isinstance(outcome, InvalidAdapterError) and before is not None and before.is_lone:
            # A lone file need not say which model it is for; the version before was told.
            (outcome,) = registry.ingest_each([replace(request, base_model=before.adapter.base_model)])
    if isinstance(outcome, LoraregError):
        raise source_shown.named(outcome)
    return str(outcome.kind)


def _name_in(asked: Mapping[str, Any]) -> str:
    """The task that creating or deleting is about, of the two ways in which clients say it."""
    if asked.get("type") not in (None, "model"):
        raise bad_request("There are models here, and nothing else.")
    name, organization = asked.get("name"), asked.get("organization")
    if not isinstance(name, str) or not isinstance(organization, str | None):
        raise bad_request("name has to be the name of a task.")
    return validate_task_name(f"{organization}/{name}" if organization else name)


def _valid(name: str) -> str:
    try:
        return validate_task_name(name)
    except InvalidNameError as error:
        raise bad_request(str(error)) from error


def _expect_main(request: Request) -> None:
    if request.path_params["revision"] != MAIN:
        raise bad_request("What is pushed becomes the newest version: push to main.")
