"""Mending a registry: what second copies or intact originals can bring back, and no more.

    indexes and rows <-- their tables, copies' rows that the ledger proves      (registry.mend)
    blobs            <-- copies
    a code that does not decode   --> dropped where the original is intact, which is then what is given back
    an original that is damaged   <-- its code, where that gives it back byte for byte

Then everything is checked once more: what is left could not be mended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorareg.compress.materialize import restore_weights
from lorareg.registry.errors import IntegrityError, LayoutMismatchError, LoraregError
from lorareg.registry.ingest import now
from lorareg.registry.mend import Mended, known_copies, mend_blobs, mend_database
from lorareg.registry.schema import EncodingRow
from lorareg.registry.store import Registry
from lorareg.registry.sweep import bring_back_adapter
from lorareg.registry.types import WEIGHTS_FILE, Adapter, AdapterFile, Encoding

_DROPPED = "its code was dropped: its original is intact and is given back; `lorareg compress` makes another code"


def repair(registry: Registry, locations: Sequence[str] = ()) -> Iterator[Mended | LoraregError]:
    """Mend what can be; yields each thing that was, and each error that stood in the way.

    Args:
        registry: what is damaged.
        locations: of second copies to take from, before those that the registry knows.

    Raises:
        BusyError: another process compresses or deletes: what is looked at here would change under it.
    """
    with registry.backend.working():
        yield from _repair(registry, locations)


def _repair(registry: Registry, locations: Sequence[str]) -> Iterator[Mended | LoraregError]:
    places = list(dict.fromkeys([*locations, *known_copies(registry)]))
    yield from mend_database(registry, places)
    try:
        for location in dict.fromkeys([*places, *known_copies(registry)]):  # its rows may know more by now
            yield from mend_blobs(registry, location)
        for adapter in registry.adapters(include_removed=True):
            yield from _mend_adapter(registry, adapter)
    except LoraregError as error:
        yield error


def _mend_adapter(registry: Registry, adapter: Adapter) -> Iterator[Mended | LoraregError]:
    try:
        encoding = registry.encoding(adapter.id)
        if encoding is None:
            return
        weights = next(file for file in registry.files(adapter) if file.path == WEIGHTS_FILE)
        decoded = _decoded(registry, adapter, encoding)
        if decoded is None and registry.blobs.is_intact(weights.sha256, weights.size_bytes):
            _drop(registry, adapter, encoding)
            yield Mended(f"adapter {adapter.ref}", _DROPPED)
        elif decoded is not None and _is_owed(registry, adapter, encoding, weights):
            registry.blobs.put_bytes(decoded)
            yield Mended(f"blob {weights.sha256}", f"the original of {adapter.ref}, decoded from its code")
    except LoraregError as error:
        yield error


def _decoded(registry: Registry, adapter: Adapter, encoding: Encoding) -> bytes | None:
    """What a code gives back; None where it is damaged.

    A store that does not answer, or a format of a later lorareg, says nothing against a code.
    """
    try:
        return restore_weights(registry, adapter, encoding)
    except (IntegrityError, LayoutMismatchError):
        return None


def _is_owed(registry: Registry, adapter: Adapter, encoding: Encoding, weights: AdapterFile) -> bool:
    """Whether an original that a code gives back byte for byte ought to be here, and is damaged or missing."""
    is_exact, is_here = encoding.output_digest == weights.sha256, registry.original(adapter) != "pruned"
    return is_exact and is_here and not registry.blobs.is_intact(weights.sha256, weights.size_bytes)


def _drop(registry: Registry, adapter: Adapter, encoding: Encoding) -> None:
    """The code is older from now on, and the original needed, so it does not go."""
    with registry.writing() as session:
        bring_back_adapter(session, adapter)
        row = session.get(EncodingRow, encoding.id)
        assert row is not None
        row.superseded_at = now()
