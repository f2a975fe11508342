"""A plugin of vLLM: a request for a model that vLLM does not have is answered with an adapter of the registry.

    request --> vLLM: no such model --> `resolve_lora` --> row --> base model --> folder --> LoRARequest

vLLM finds `register` through the entry-point group `vllm.general_plugins` and calls it in each of its processes, so
this module imports the standard library alone; a name that the registry does not have costs a look into its database.
Nothing that goes wrong here is an exception in vLLM: it is logged, and the adapter is then not found.

The registry is the one that `LORAREG_HOME` names. Folders are written below `LORAREG_VLLM_CACHE`, else in the
registry's `serving/vllm`. With `LORAREG_VLLM_ANY_BASE=1` nobody asks which base model an adapter is for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from lorareg.compress.serving.folders import Served
    from lorareg.registry.types import Adapter

NAME = "lorareg"
PROFILE = "vllm"
CACHE_VARIABLE = "LORAREG_VLLM_CACHE"
ANY_BASE_VARIABLE = "LORAREG_VLLM_ANY_BASE"
MAX_INT_ID = 2**31 - 1
_THREADS = 2  # decoding is arithmetic: more threads would only take cores from the engine

logger = logging.getLogger("vllm.lorareg")  # below vLLM's own, which has the handlers


def register() -> None:
    """Make the registry known to vLLM, once a process."""
    try:
        from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

        if NAME in LoRAResolverRegistry.get_supported_resolvers():
            return
        LoRAResolver.register(RegistryResolver)  # its kind without being its child, which would import vLLM
        LoRAResolverRegistry.register_resolver(NAME, RegistryResolver())
    except Exception as error:  # vLLM calls plugins unguarded: what is raised here would end it
        logger.error("lorareg is no resolver of this vLLM: %s: %s", type(error).__name__, error)


class RegistryResolver:
    """Finds adapters in a registry: what vLLM calls a `LoRAResolver`."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lorareg")
        self._flights: dict[tuple[Path, int], Future[Served]] = {}
        self._lock = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter that `lora_name` ("task", "task@3", "task@label") names, if it is one for this base model."""
        try:
            home = _home()
            adapter = await asyncio.to_thread(_find, home, base_model_name, lora_name)
            if adapter is None:
                return None
            # Shielded: a client that hangs up must not take the folder from the others who wait for it.
            served = await asyncio.shield(asyncio.wrap_future(self._fly(home, adapter)))
            return _request(lora_name, served)
        except Exception as error:
            _log_failure(lora_name, error)
            return None

    def _fly(self, home: Path, adapter: Adapter) -> Future[Served]:
        """The making of an adapter's folder: the one that is under way, or a new one."""
        key = (home, adapter.id)
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            flight = self._flights[key] = self._threads.submit(_serve, home, adapter)
        flight.add_done_callback(lambda _: self._flights.pop(key))
        return flight


def _home() -> Path:
    from lorareg.registry.home import resolve_home

    return resolve_home().absolute()


def _find(home: Path, base_model_name: str, lora_name: str) -> Adapter | None:
    """The adapter, if there is one of that name for that base model. Imports neither numpy nor SQLAlchemy."""
    from lorareg.compress.serving.engines import is_same_model
    from lorareg.registry.backend import backend_of
    from lorareg.registry.errors import InvalidNameError
    from lorareg.registry.names import parse_ref
    from lorareg.registry.reader import Reader

    if not backend_of(home).is_there():
        logger.debug("there is no registry at %s", home)
        return None
    try:
        asked = parse_ref(lora_name)
    except InvalidNameError:
        return None  # a name for another resolver: of a folder, or on the Hub
    with Reader(home) as reader:
        adapter = reader.find_adapter(asked)
    if adapter is None:
        logger.debug("no adapter %r in %s", lora_name, home)
    elif os.environ.get(ANY_BASE_VARIABLE) != "1" and not is_same_model(adapter.base_model, base_model_name):
        logger.warning(
            "adapter %s is for the base model %r and not for %r; set %s=1 if that is the same",
            adapter.ref,
            adapter.base_model,
            base_model_name,
            ANY_BASE_VARIABLE,
        )
        return None
    return adapter


def _serve(home: Path, adapter: Adapter) -> Served:
    from lorareg.compress.serving.folders import serve, serving_folder
    from lorareg.registry.reader import Reader

    cache = os.environ.get(CACHE_VARIABLE)
    with Reader(home) as reader:
        served = serve(reader, adapter, PROFILE, Path(cache) if cache else serving_folder(home, PROFILE))
    logger.info("adapter %s is at %s (vLLM needs %s)", adapter.ref, served.path, served.adapted.needs)
    return served


def _request(lora_name: str, served: Served) -> LoRARequest:
    """A new request each time: vLLM writes an id of its own into it."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=lora_name, lora_int_id=_int_id(lora_name, served.digest), lora_path=str(served.path))


def _int_id(lora_name: str, digest: str) -> int:
    """From 1 on, below 2^31, the same in every process; another one once the adapter's content is another."""
    number = int.from_bytes(hashlib.sha256(f"{lora_name}\0{digest}".encode()).digest()[:8], "big")
    return 1 + number % MAX_INT_ID


def _log_failure(lora_name: str, error: Exception) -> None:
    from lorareg.registry.errors import LoraregError

    foreseen = isinstance(error, LoraregError | OSError)
    logger.error("adapter %r was not resolved: %s", lora_name, error, exc_info=None if foreseen else error)
