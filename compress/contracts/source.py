"""What an adapter is encoded from: its original, or, once that is gone, what its present code decodes to.

Errors add up then: a code at relative error d of something that is itself at e of the original is at most
e + d(1 + e) away from it, because ||ΔW'|| is at most (1 + e) ||ΔW||. What no longer fits is refused: the
present code is as close to the original as anything can get that is made from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from lorareg.compress.codec.encode import Original
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.materialize import restore_weights
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import WEIGHTS_FILE, Adapter, Encoding, Layout

LEAST_ROOM = 0.1
"""Of the tolerance: with less left, another code would not be smaller than the present one."""


@dataclass(frozen=True, slots=True)
class Source:
    """Weights to encode, and the relative error of ΔW by which they may differ from the original."""

    adapter: Adapter
    original: Original
    carried: float = 0.0
    present: Encoding | None = None  # the code they are from, where they are not the original
    is_certified: bool = True  # whether it is known how far that code is from the original


def source_of(lookup: Lookup, adapter: Adapter, layout: Layout, encoding: Encoding | None) -> Source:
    """Where the weights of an adapter are to be had; read when they are looked at.

    An original that is missing, though nobody let it go, is an error then, and no reason to do without it.
    """
    what = f"Adapter {adapter.ref!r}"
    if encoding is None or lookup.original(adapter) != "pruned":
        return Source(adapter, Original(what, partial(lookup.read_file, adapter, WEIGHTS_FILE), layout))
    weights = next(file for file in lookup.files(adapter) if file.path == WEIGHTS_FILE)
    exact = weights.sha256 == encoding.output_digest
    carried = 0.0 if exact else float(json.loads(encoding.fidelity)["relative_error"])
    restored = Original(what, partial(restore_weights, lookup, adapter, encoding), layout)
    return Source(adapter, restored, carried, encoding, lookup.certificate(encoding.id) is not None)


def room(tolerance: float, carried: float) -> float:
    """The relative error that may still be added to a carried one within a tolerance; below 0 for none."""
    return (tolerance - carried) / (1 + carried)


def refusal(source: Source, contract: Contract, tolerance: float) -> str:
    """Why an adapter whose original is gone is not encoded again; empty if it can be."""
    if not source.carried:
        return ""
    if not source.is_certified:
        return "its original is gone, and its code was never certified"
    if contract.behaves or contract.distill or contract.budget is not None:
        return "its original is gone, so that nothing but the error of its weights can still be promised"
    if room(tolerance, source.carried) < LEAST_ROOM * tolerance:
        return f"its original is gone, and its code is at an error of {source.carried:.4f} already"
    return ""
