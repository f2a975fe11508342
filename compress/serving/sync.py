"""A running engine brought to serve chosen adapters, over the HTTP endpoints it has for that.

    GET /v1/models --> what is loaded, from which folder --> unload, load or replace --> GET /v1/models again

A folder is named by what is in it, so an adapter that is loaded from the wanted folder is left alone. What engines ask
and answer was read in vLLM 0.33.0 (`vllm/entrypoints/serve/lora/`, `openai/models/serving.py`) and SGLang 0.5.23
(`srt/entrypoints/http_server.py`, `srt/managers/tokenizer_control_mixin.py`).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from lorareg.compress.progress import Reporter, Silent
from lorareg.compress.serving.engines import ENGINES, is_same_model
from lorareg.compress.serving.folders import Served
from lorareg.registry.errors import EngineError, EngineRefusedError

Action = Literal["unchanged", "loaded", "replaced", "unloaded", "refused", "unlisted"]

MAX_ANSWER_BYTES = 32 << 20
_MAX_SAID_CHARS = 400
_SWAPS = 5
_ALREADY = "already"  # "has already been loaded" in vLLM, "is already loaded" in SGLang


@dataclass(frozen=True, slots=True)
class Endpoints:
    """How an engine is asked."""

    load: str
    unload: str
    start: str  # what makes it take adapters while it runs
    replaces: bool = False  # whether `load` can put an adapter in the place of another of its name
    info: str = ""  # where it says which model it runs, if /v1/models does not


ENDPOINTS = {
    "vllm": Endpoints(
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "Start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment.",
        replaces=True,
    ),
    "sglang": Endpoints(
        "/load_lora_adapter", "/unload_lora_adapter", "Start it with --enable-lora.", info="/model_info"
    ),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine says it serves."""

    bases: tuple[str, ...]  # names and paths of base models
    adapters: Mapping[str, str]  # path of each adapter, by name


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one name."""

    name: str
    action: Action
    path: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineClient:
    """A running engine.

    Raises:
        EngineError: the URL or the key cannot be one.
    """

    engine: str  # a key of `ENDPOINTS`
    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            named = parts.hostname if parts.port != 0 else None
        except ValueError:
            parts, named = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not named or parts.query or parts.fragment:
            self._fail("this is no address of a server", "Give one such as http://localhost:8000.")
        if parts.username is not None or parts.password is not None:
            self._fail("an address with a password is printed and logged", "Pass a key as --help says.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            self._fail("the key is empty, or has characters that no HTTP header has", "Check where it comes from.")

    @property
    def shown(self) -> str:
        """The address without what could be a password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}" if rest else self.url.rpartition("@")[2]

    def loaded(self) -> Loaded:
        """What is served now.

        Raises:
            EngineError: it cannot be reached, or says something else.
        """
        cards = self._ask("GET", "/v1/models").get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            self._fail("/v1/models lists no models", "Check that this is the address of the engine.")
        bases: list[str] = []
        adapters: dict[str, str] = {}
        for card in cards:
            name, root = str(card.get("id")), str(card.get("root") or "")
            if card.get("parent") is None:
                bases += [name, root]
            else:
                adapters[name] = root
        if ENDPOINTS[self.engine].info:
            _, data = self._send("GET", ENDPOINTS[self.engine].info)
            bases.append(str(_object(data).get("model_path") or ""))
        return Loaded(tuple(base for base in dict.fromkeys(bases) if base), adapters)

    def load(self, name: str, path: str, *, in_place: bool = False) -> None:
        """Have an adapter loaded.

        Raises:
            EngineRefusedError: it was not.
            EngineError: the engine cannot be reached, or takes no adapters.
        """
        body: dict[str, Any] = {"lora_name": name, "lora_path": path}
        self._ask("POST", ENDPOINTS[self.engine].load, body | ({"load_inplace": True} if in_place else {}))

    def unload(self, name: str) -> None:
        """Have an adapter unloaded.

        Raises:
            EngineRefusedError: it was not.
            EngineError: the engine cannot be reached, or takes no adapters.
        """
        self._ask("POST", ENDPOINTS[self.engine].unload, {"lora_name": name})

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer; what is not JSON, as vLLM's "Success: ...", is an empty one."""
        status, data = self._send(method, path, body)
        answer = _object(data)
        if status in (401, 403):
            self._fail("it wants a key", "Set the variable that `lorareg sync --help` names to the server's key.")
        if status in (404, 405) and (answer.get("detail") or not answer):  # of the framework: there is no such endpoint
            what = f"it has no {method} {path}"
            self._fail(what, ENDPOINTS[self.engine].start if body else "Check that this is the address of the engine.")
        if 300 <= status < 400:
            self._fail(f"{path} leads elsewhere (HTTP {status})", "Give the address it leads to.")
        if status >= 400 or answer.get("success") is False:
            said = _said(answer) or f"HTTP {status}"
            raise EngineRefusedError(engine=self.name, url=self.shown, reason=said, remedy=_remedy(said))
        return answer

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method=method)
        try:
            with _open(request, self.timeout_s) as response:
                status, found = response.status or 0, response.read(MAX_ANSWER_BYTES + 1)
        except TimeoutError:
            self._fail(f"no answer within {self.timeout_s:g} s", "It may be busy: pass a larger --timeout.")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                self._fail(f"no answer within {self.timeout_s:g} s", "It may be busy: pass a larger --timeout.")
            self._fail(f"it cannot be reached ({reason})", "Check the address, and that the engine is up.")
        if len(found) > MAX_ANSWER_BYTES:
            self._fail(f"an answer of over {MAX_ANSWER_BYTES} bytes", "Check that this is the address of the engine.")
        return status, found

    @property
    def name(self) -> str:
        """The engine's."""
        return ENGINES[self.engine].name

    def _fail(self, reason: str, remedy: str) -> NoReturn:
        raise EngineError(engine=self.name, url=self.shown, reason=reason, remedy=remedy)


def sync(
    client: EngineClient,
    wanted: Mapping[str, Served],
    *,
    unload_others: bool = False,
    any_base: bool = False,
    reporter: Reporter | None = None,
) -> list[Synced]:
    """Have an engine serve adapters under names.

    What the engine refuses of one adapter does not stop the others. Others are unloaded first, which makes room.

    Args:
        client: the engine.
        wanted: the folder of each name.
        unload_others: unload what the engine has loaded beside them.
        any_base: do not ask whether the adapters are for the model that the engine serves.
        reporter: told of each name.

    Raises:
        EngineError: the engine cannot be reached, takes no adapters, or serves another model.
    """
    reporter = reporter or Silent()
    before = client.loaded()
    if not any_base:
        _expect_base(client, before, wanted)
    others = sorted(set(before.adapters) - set(wanted)) if unload_others else []
    reporter.start("sync", len(others) + len(wanted))
    done = []
    for name in (*others, *wanted):
        there, path = before.adapters.get(name), str(wanted[name].path) if name in wanted else None
        shown = path or there or ""
        try:
            done.append(Synced(name, _bring(client, name, there, path), shown))
        except EngineRefusedError as error:
            done.append(Synced(name, "refused", shown, f"{error.fields['reason']}. {error.fields['remedy']}".strip()))
        reporter.advance()
    reporter.finish()
    after = client.loaded().adapters
    return [_confirmed(item, after) for item in done]


def _expect_base(client: EngineClient, loaded: Loaded, wanted: Mapping[str, Served]) -> None:
    serves = ", ".join(loaded.bases) or "no base model"
    for served in wanted.values():
        base = served.adapter.base_model
        if not any(is_same_model(base, other) for other in loaded.bases):
            raise EngineError(
                engine=client.name,
                url=client.shown,
                reason=f"it serves {serves}, and {served.adapter.ref} is for {base}",
                remedy="Pass --any-base if that is the same model under another name.",
            )


def _bring(client: EngineClient, name: str, there: str | None, path: str | None) -> Action:
    """Have `name` loaded from `path`, or unloaded where that is None; `there` is where it is loaded from."""
    if path is None:
        client.unload(name)
        return "unloaded"
    if there == path:
        return "unchanged"
    if there is None:
        client.load(name, path)
        return "loaded"
    if ENDPOINTS[client.engine].replaces:
        try:
            client.load(name, path, in_place=True)
            return "replaced"
        except EngineRefusedError as error:
            if _ALREADY not in str(error):
                raise  # the old one is still served; an engine that knows no `load_inplace` goes on below
    _swap(client, name, there, path)
    return "replaced"


def _swap(client: EngineClient, name: str, old: str, new: str) -> None:
    """Unload and load, anew where a request came between, for which SGLang loads the old one again."""
    for _ in range(_SWAPS):
        client.unload(name)
        try:
            client.load(name, new)
            return
        except EngineRefusedError as error:
            refused = error
            if _ALREADY not in str(error):
                break
    left = "The one before is served again."
    try:
        client.load(name, old)
    except EngineRefusedError as error:
        if _ALREADY not in str(error):
            left = "The one before could not be loaded again either."
    raise EngineRefusedError(**refused.fields | {"remedy": f"{refused.fields['remedy']} {left}".strip()}) from refused


def _confirmed(item: Synced, after: Mapping[str, str]) -> Synced:
    """What an engine said it did, compared with what it lists."""
    listed = after.get(item.name)
    as_wanted = listed is None if item.action == "unloaded" else listed == item.path
    if item.action == "refused" or as_wanted:
        return item
    reason = (
        "the engine said it did, and does not list it so: of several API servers each has a list of its own, and of "
        "more than --max-loaded-loras SGLang lets the least used go until it is asked for"
    )
    return Synced(item.name, "unlisted", item.path, reason)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is not carried to where a server points."""

    def redirect_request(self, *_: Any) -> None:
        """Do not follow."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _open(request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse | urllib.error.HTTPError:
    try:
        response: http.client.HTTPResponse = _OPENER.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        return error  # an answer like any other
    return response


def _object(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _said(answer: Mapping[str, Any]) -> str:
    """The message in an engine's error: vLLM's, SGLang's, and the web framework's."""
    error = answer.get("error")
    nested = error.get("message") if isinstance(error, dict) else error
    texts = (nested, answer.get("error_message"), answer.get("message"), answer.get("detail"))
    said = next((text for text in texts if text), "")
    return str(said)[:_MAX_SAID_CHARS].strip().rstrip(".")


def _remedy(said: str) -> str:
    if "No adapter found" in said or "No such file" in said or "adapter_config.json" in said:
        return "The engine must see the folder under the same path: --into names one that it does."
    if "rank" in said:
        return "Start it with a --max-lora-rank as large as the adapter's rank."
    return ""
