"""What a server says when the answer is no: one exception, one form.

Clients of the Hub go by `X-Error-Code` and show `X-Error-Message`; people and other programs read the JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from lorareg.registry.errors import (
    InvalidAdapterError,
    InvalidNameError,
    LoraregError,
    OriginalGoneError,
    RegistryError,
    UnknownAdapterError,
)

AGAIN_AFTER_S = 2
log = logging.getLogger("lorareg.serve")
MOST_MESSAGE_CHARS = 500


class RefusedError(Exception):
    """A request that is not answered with what it asked for."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


def no_repository(name: str) -> RefusedError:
    """There is no such task, or whoever asks may not see it: the same answer."""
    return RefusedError(404, "RepoNotFound", f"There is no task {name[:200]!r} here.")


def no_revision(name: str, revision: str) -> RefusedError:
    """There is such a task, and no such version of it."""
    return RefusedError(404, "RevisionNotFound", f"Task {name[:200]!r} has no version or tag {revision[:80]!r}.")


def no_entry(ref: str, path: str) -> RefusedError:
    """There is such a version, and no such file in it."""
    return RefusedError(404, "EntryNotFound", f"{ref} has no file {path[:200]!r}.")


def bad_request(message: str) -> RefusedError:
    """What was asked makes no sense as it is."""
    return RefusedError(400, "BadRequest", message)


def busy(status: int, message: str, after_s: int = AGAIN_AFTER_S) -> RefusedError:
    """Not now: 429 where the client itself is the reason, 503 where the server is."""
    return RefusedError(status, "TooManyRequests" if status == 429 else "Busy", message, {"Retry-After": str(after_s)})


def refusal_of(error: Exception) -> RefusedError:
    """What a client is told of an error. What is damaged or unforeseen is for whoever runs the server: in the log."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, HTTPException):  # of the router: no such route, or not with that method
        code = "RepoNotFound" if error.status_code == 404 else "BadRequest"
        return RefusedError(error.status_code, code, f"There is nothing to be had so: {error.detail}.", error.headers)
    if isinstance(error, UnknownAdapterError):
        return RefusedError(404, "RepoNotFound", "There is no such task here.")
    if isinstance(error, InvalidNameError | InvalidAdapterError):
        return bad_request(str(error))
    if isinstance(error, OriginalGoneError):
        return RefusedError(409, "Conflict", str(error))
    if isinstance(error, ClientDisconnect):  # nobody hears this; it is for the log's line
        return bad_request("The client went away before its request was whole.")
    if isinstance(error, TimeoutError):
        return RefusedError(408, "TooSlow", "The request took too long to arrive.", {"Connection": "close"})
    if isinstance(error, RegistryError | OSError):
        return busy(503, "The registry cannot be read or written now; the server's log says why.")
    if isinstance(error, LoraregError):
        return RefusedError(500, "Damaged", "What is stored cannot be given back; the server's log says why.")
    return RefusedError(500, "ServerError", "Something went wrong; the server's log says what.")


def answer_to(error: Exception, request_id: str) -> JSONResponse:
    """The answer that carries an error; what a client is not told of it goes to the log."""
    refusal = refusal_of(error)
    if refusal is not error and refusal.status >= 500:
        told = {"id": request_id, "kind": type(error).__name__, "error": str(error)}
        log.error("failed", extra={"told": told}, exc_info=error if refusal.code == "ServerError" else None)
    message = str(refusal)[:MOST_MESSAGE_CHARS]
    in_header = "".join(char if char.isprintable() and ord(char) < 127 else " " for char in message)
    headers = {"X-Error-Code": refusal.code, "X-Error-Message": in_header, **refusal.headers}
    return JSONResponse({"error": message, "code": refusal.code}, refusal.status, headers=headers)
