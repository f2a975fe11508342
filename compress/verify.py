"""Decoding everything that is stored, to see that it still decodes to what was recorded."""

from __future__ import annotations

from collections.abc import Iterator

from lorareg.compress.materialize import restore_weights
from lorareg.registry.errors import LoraregError
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import Finding


def check_encodings(lookup: Lookup) -> Iterator[Finding]:
    """Decode the current encoding of every adapter; yields one finding for each that fails."""
    for cohort in lookup.cohorts():
        encodings = {encoding.adapter_id: encoding for encoding in lookup.encodings(cohort.id)}
        for adapter in lookup.adapters(cohort_id=cohort.id, include_removed=True):
            if adapter.id not in encodings:
                continue
            try:
                restore_weights(lookup, adapter, encodings[adapter.id])
            except LoraregError as error:
                yield Finding(
                    what=f"adapter {adapter.ref}",
                    problem=str(error),
                    remedy="While its original is kept, `lorareg compress --retrain` encodes it anew.",
                )
