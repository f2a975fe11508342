"""Recording a finished code: what the weights file has beside factors, then the code, decoded again, then its proof."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from lorareg.compress.codec.extras import is_reference, pack_extras
from lorareg.compress.contracts.gate import Kept
from lorareg.compress.contracts.source import Source
from lorareg.compress.materialize import restore_weights
from lorareg.compress.proofs.verify import prove, prove_carried
from lorareg.registry.errors import IntegrityError
from lorareg.registry.store import Registry
from lorareg.registry.types import Adapter, NewEncoding, sha256_hex


def record_code(registry: Registry, source: Source, kept: Kept, generator_id: int | None) -> None:
    """Store the code, decode it from the store, only then make it the adapter's encoding, and certify it.

    What the weights file has beside factors is stored first: it is the adapter's, whatever codes it has.

    Args:
        registry: where it is recorded.
        source: what was encoded.
        kept: the code that holds its contract, and what was measured.
        generator_id: of the generator that the code was made against, if it was.

    Raises:
        IntegrityError: what was stored decodes to something else than was measured.
    """
    encoded, adapter = kept.encoded, source.adapter
    reason = {"reason": encoded.reason} if encoded.reason else {}
    new = NewEncoding(
        adapter_id=adapter.id,
        generator_id=generator_id,
        codec=encoded.codec.name,
        tier=encoded.codec.tier,
        sha256=registry.blobs.put_bytes(encoded.code),
        size_bytes=len(encoded.code),
        output_digest=sha256_hex(encoded.output),
        output_bytes=len(encoded.output),
        tolerance=kept.tolerance,
        fidelity={**encoded.fidelity.to_dict(), **kept.measured, **reason},
    )
    if encoded.codec.tier != "lossless":
        find = partial(_reference, registry, adapter)
        registry.put_files(adapter, pack_extras(source.original.extras, source.original.layout, find))
    output = restore_weights(registry, adapter, new)
    factors = source.original.factors  # read before the code they may come from is superseded
    encoding = registry.record_encoding(new)
    if source.carried and source.present is not None:
        proof = prove_carried(registry, adapter, source.present, encoding, output, factors)
    else:
        proof = prove(registry, adapter, encoding, output, factors)
    registry.certify(adapter, encoding, proof)


def _reference(registry: Registry, adapter: Adapter, path: str) -> bytes | None:
    """What the first other adapter of the cohort that keeps it whole has at a path of extras."""
    others = (
        "SELECT sha256, MIN(adapter_id) AS first FROM adapter_file WHERE path = :path AND adapter_id <> :id "
        "AND adapter_id IN (SELECT id FROM adapter WHERE cohort_id = :cohort_id) GROUP BY sha256 ORDER BY first"
    )
    for row in registry.fetch(others, path=path, id=adapter.id, cohort_id=adapter.cohort_id):
        with suppress(IntegrityError):  # a damaged one is no reference; `check` tells of it
            data = registry.blobs.get(row["sha256"])
            if is_reference(data):
                return data
    return None
