"""What the server answers, as an OpenAPI document, told from its routes and their handlers' docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from starlette.routing import Route

_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": r"^(?!.*(--|\.\.))[A-Za-z0-9]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?$"}
_LABEL = {"type": "string", "pattern": r"^(?!.*(--|\.\.)|latest$)[A-Za-z]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?$"}
_MAIN = {"type": "string", "enum": ["main"]}
_RANGE = {"type": "string", "pattern": "^bytes=[0-9]{1,9}-$"}
_ERROR = {"type": "object", "required": ["error", "code"], "properties": {"error": _TEXT, "code": _TEXT}}
_OBJECT = {"type": "object"}
_LIST = {"type": "array", "items": _OBJECT}
_REPOSITORY = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": _NAME, "organization": _NAME, "type": {"type": "string", "enum": ["model"]}},
}

_QUERIES = {
    "list_models": ("search", "author", "filter", "limit", "sort", "cursor", "full"),
    "model": ("blobs",),
    "tree": ("recursive", "expand"),
}
_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "paths_info": (
        "application/json",
        {"type": "object", "required": ["paths"], "properties": {"paths": {"type": "array", "items": _TEXT}}},
    ),
    "create": ("application/json", _REPOSITORY),
    "delete": ("application/json", _REPOSITORY),
    "validate_yaml": ("application/json", _OBJECT),
    "preupload": (
        "application/json",
        {
            "type": "object",
            "required": ["files"],
            "properties": {
                "files": {
                    "type": "array",
                    "items": {"type": "object", "required": ["path"], "properties": {"path": _TEXT}},
                }
            },
        },
    ),
    "commit": ("application/x-ndjson", _TEXT),
    "tag": ("application/json", {"type": "object", "required": ["tag"], "properties": {"tag": _LABEL}}),
}
_LISTS = frozenset({"list_models", "tree", "paths_info", "commits"})
_FILES = frozenset({"resolve"})
_REFUSALS = {
    "400": "The request makes no sense as it is.",
    "401": "A token is needed, or this one does not hold.",
    "403": "This token does not cover that.",
    "404": "There is no such task, version or file, or none that may be seen.",
    "408": "The request took too long to arrive.",
    "409": "It is there already, or what it needs is gone.",
    "412": "There is another version by now.",
    "413": "The request is too large.",
    "416": "There are no such bytes in the file.",
    "431": "The headers are too large.",
    "429": "This client has as many requests under way as it may; see Retry-After.",
    "503": "The server is busy; see Retry-After.",
}


def openapi(routes: Iterable[Route]) -> dict[str, Any]:
    """The document for these routes; pages for people are not in it."""
    paths: dict[str, Any] = {}
    for route in routes:
        handler = route.endpoint.__name__
        path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, handler, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lorareg", "version": version("lorareg"), "description": inspect.getdoc(openapi)},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
        "paths": paths,
    }


def _operation(route: Route, handler: str, method: str) -> dict[str, Any]:
    said = inspect.getdoc(route.endpoint) or ""
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(name, handler)}
        for name in re.findall(r"\{(\w+)", route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": _TEXT} for name in _QUERIES.get(handler, ())]
    refusals = {
        status: {"description": said, "content": {"application/json": {"schema": _ERROR}}}
        for status, said in _REFUSALS.items()
    }
    answers = {"200": {"description": "OK", "content": _content(handler)}}
    if handler in _FILES:
        parameters.append({"name": "Range", "in": "header", "schema": _RANGE})
        answers["206"] = {"description": "Part of the file", "content": {"*/*": {}}}
        answers["304"] = {"description": "The client has it already"}
        refusals["400"] = {"description": "The range cannot be read", "content": {"*/*": {}}}
        refusals["416"] = {"description": _REFUSALS["416"], "content": {"*/*": {}}}
    operation: dict[str, Any] = {
        "summary": said.splitlines()[0],
        "parameters": parameters,
        "responses": answers | refusals,
    }
    if handler in _BODIES:
        media_type, schema = _BODIES[handler]
        operation["requestBody"] = {"required": True, "content": {media_type: {"schema": schema}}}
    return operation


def _path_schema(name: str, handler: str) -> dict[str, Any]:
    if name in ("namespace", "task"):
        return _NAME
    if name == "revision" and handler in ("preupload", "commit"):
        return _MAIN
    return _LABEL if handler == "untag" else _TEXT


def _content(handler: str) -> dict[str, Any]:
    if handler in _FILES:
        return {"*/*": {}}
    if handler == "metrics":
        return {"text/plain": {"schema": _TEXT}}
    return {"application/json": {"schema": _LIST if handler in _LISTS else _OBJECT}}
