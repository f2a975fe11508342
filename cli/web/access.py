"""Who asks, and what they may: decided once a request, before anything is looked up.

    no token, server on loopback    may read everything
    no token, any other address     nothing but /healthz
    a token of scope read           reads the tasks of its namespace
    a token of scope write          writes them too

What a token does not cover answers as what does not exist. A token comes as `Authorization: Bearer`, or as the password
of `Authorization: Basic`, which browsers ask people for.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from lorareg.cli.web.readers import Readers
from lorareg.cli.web.replies import RefusedError
from lorareg.registry.tokens import EVERY_NAMESPACE, covers, find_token

CHALLENGE = {"WWW-Authenticate": 'Basic realm="lorareg: a token is the password", charset="UTF-8"'}


@dataclass(frozen=True, slots=True)
class Grant:
    """What whoever asks may do."""

    who: str  # a token's name, or "anonymous"
    namespace: str
    may_write: bool

    def covers(self, task: str) -> bool:
        """Whether the task of that name is one of theirs."""
        return covers(self.namespace, task)


ANONYMOUS = Grant("anonymous", EVERY_NAMESPACE, may_write=False)


async def grant_of(connection: HTTPConnection, readers: Readers, *, anonymous: bool) -> Grant:
    """What whoever sent a request may do.

    Raises:
        RefusedError: 401 without a token that holds, where one is asked for, or with one that does not.
    """
    header = connection.headers.get("authorization", "")
    if not header:
        if anonymous:
            return ANONYMOUS
        raise RefusedError(401, "Unauthorized", "A token is needed; ask whoever runs this server.", CHALLENGE)
    text = _token_in(header)
    token = await run_in_threadpool(_find, readers, text)
    if token is None:
        raise RefusedError(401, "Unauthorized", "Invalid credentials in Authorization header", CHALLENGE)
    return token


def granted(request: Request) -> Grant:
    """The grant that the server found for a request."""
    grant = request.state.grant
    assert isinstance(grant, Grant)
    return grant


def expect_write(request: Request, task: str) -> Grant:
    """Whoever may write the task of that name.

    Raises:
        RefusedError: 401, or 403 where a page has a browser ask, too.
    """
    grant = granted(request)
    if "origin" in request.headers:  # a browser would add the password it remembers to whatever a page has it send
        raise RefusedError(403, "Forbidden", "Writing is for programs, not for pages that a browser shows.")
    if grant is ANONYMOUS:
        raise RefusedError(401, "Unauthorized", "Writing needs a token of scope write.", CHALLENGE)
    if not grant.may_write:
        raise RefusedError(403, "Forbidden", "This token is of scope read; writing needs one of scope write.")
    if not grant.covers(task):
        raise RefusedError(403, "Forbidden", f"This token is for tasks named {grant.namespace}/...")
    return grant


def _token_in(header: str) -> str:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
        except ValueError:  # no base64, or not even ASCII
            return ""
    return ""


def _find(readers: Readers, text: str) -> Grant | None:
    with readers.borrow() as reader:
        token = find_token(reader, text)
    return None if token is None else Grant(token.name, token.namespace, token.scope == "write")
