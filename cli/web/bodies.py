"""What requests bring, read no further than it may be long: the size that the server takes at most is for weights."""

from __future__ import annotations

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lorareg.cli.web.replies import RefusedError, bad_request


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: 413.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise RefusedError(413, "TooLarge", f"This may have {most_bytes} bytes.", {"Connection": "close"})
    return bytes(body)


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """The body of a request, a JSON object; read in a thread, since a long one takes its time.

    Raises:
        RefusedError: 413, or 400 where it is no such thing.
    """
    body = await read_body(request, most_bytes)
    try:
        value = await run_in_threadpool(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise bad_request("The body has to be JSON.") from error
    if not isinstance(value, dict):
        raise bad_request("The body has to be a JSON object.")
    return value
