"""Recording generators, encodings and certificates: the rows, inside the transaction that decides.

Blobs are looked for inside that transaction, because a sweep unlinks within one too: what is here when a
row comes to mention it stays. A blob that was on its way out and is needed again comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lorareg.registry.blobs import BlobStore
from lorareg.registry.certificate import Proof
from lorareg.registry.errors import (
    IntegrityError,
    LayoutMismatchError,
    StoreError,
    UnknownAdapterError,
    UnknownCohortError,
    UnknownGeneratorError,
)
from lorareg.registry.home import STORE
from lorareg.registry.ingest import next_id, now
from lorareg.registry.schema import (
    AdapterRow,
    CertificateRow,
    CohortRow,
    EncodingRow,
    GeneratorRow,
    RetiredBlobRow,
    SettingRow,
)
from lorareg.registry.types import NewEncoding, NewGenerator, canonical_json

DIGESTS_A_QUERY = 500


def add_generator(session: Session, home: Path, blobs: BlobStore, new: NewGenerator) -> GeneratorRow:
    """The row of a generator whose file is stored; the same file with the same config has one already.

    Raises:
        UnknownCohortError: there is no cohort of that id.
        MissingBlobError: its file is not in the blob store.
        IntegrityError: its file has another size.
    """
    claim_blob(session, blobs, new.sha256, new.size_bytes)
    if session.get(CohortRow, new.cohort_id) is None:
        raise UnknownCohortError(cohort=new.cohort_id, home=home)
    mine, config = GeneratorRow.cohort_id == new.cohort_id, canonical_json(new.config)
    row = session.scalar(select(GeneratorRow).where(mine, GeneratorRow.sha256 == new.sha256))
    if row is not None and row.config == config:
        return row
    row = GeneratorRow(
        id=next_id(session, GeneratorRow),
        cohort_id=new.cohort_id,
        version=(session.scalar(select(func.max(GeneratorRow.version)).where(mine)) or 0) + 1,
        sha256=new.sha256,
        size_bytes=new.size_bytes,
        arch=new.arch,
        encoder=new.encoder,
        config=config,
        metrics=canonical_json(new.metrics),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row


def add_encoding(session: Session, home: Path, blobs: BlobStore, new: NewEncoding) -> EncodingRow:
    """The row of an adapter's new encoding; the one before is superseded.

    Raises:
        MissingBlobError: its code is not in the blob store.
        IntegrityError: its code has another size.
        UnknownAdapterError: there is no adapter of that id.
        UnknownGeneratorError: there is no generator of that id.
        LayoutMismatchError: the generator is for another base model than the adapter.
    """
    claim_blob(session, blobs, new.sha256, new.size_bytes)
    _check_generator(session, home, blobs, new)
    current = select(EncodingRow).where(EncodingRow.adapter_id == new.adapter_id, EncodingRow.superseded_at.is_(None))
    for older in session.scalars(current):
        older.superseded_at = now()
    session.flush()
    row = EncodingRow(
        id=next_id(session, EncodingRow),
        adapter_id=new.adapter_id,
        generator_id=new.generator_id,
        codec=new.codec,
        tier=new.tier,
        sha256=new.sha256,
        size_bytes=new.size_bytes,
        output_digest=new.output_digest,
        output_bytes=new.output_bytes,
        tolerance=canonical_json(new.tolerance),
        fidelity=canonical_json(new.fidelity),
        created_at=now(),
        superseded_at=None,
    )
    session.add(row)
    session.flush()
    return row


def put_certificate(session: Session, encoding_id: int, digest: str, proof: Proof) -> CertificateRow:
    """The row of an encoding's certificate, replacing an earlier one."""
    row = session.get(CertificateRow, encoding_id)
    if row is None:
        row = CertificateRow(encoding_id=encoding_id)
        session.add(row)
    row.digest, row.facts = digest, canonical_json(proof.facts)
    row.module_errors, row.projections = proof.module_errors, proof.projections
    session.flush()
    return row


def claim_blob(session: Session, blobs: BlobStore, sha256: str, size_bytes: int) -> None:
    """As `claim_blobs`, one."""
    claim_blobs(session, blobs, {sha256: size_bytes})


def claim_blobs(session: Session, blobs: BlobStore, sizes: Mapping[str, int]) -> None:
    """Make sure that blobs, by digest and size in bytes, are here, and not on their way out.

    Raises:
        MissingBlobError: one is not in the blob store.
        IntegrityError: one has another size.
        StoreError: the registry's blobs were moved to another store since this one was opened.
    """
    remembered = session.get(SettingRow, STORE)
    if (None if remembered is None else json.loads(remembered.value)) != blobs.remembered:
        remedy = "Nothing was recorded. Run the same command again; start servers anew."
        raise StoreError(store=blobs.place, reason="the registry's blobs were moved elsewhere meanwhile", remedy=remedy)
    for sha256, size_bytes in sizes.items():
        found = blobs.size(sha256)
        if found != size_bytes:
            raise IntegrityError(
                what=f"Blob {sha256}", expected=f"{size_bytes} bytes", found=f"{found}", remedy="Store it again."
            )
    bring_back(session, sizes)


def bring_back(session: Session, digests: Iterable[str]) -> None:
    """Take blobs off the way out."""
    wanted = list(digests)
    for start in range(0, len(wanted), DIGESTS_A_QUERY):
        some = RetiredBlobRow.sha256.in_(wanted[start : start + DIGESTS_A_QUERY])
        for row in session.scalars(select(RetiredBlobRow).where(some)):
            session.delete(row)


def _check_generator(session: Session, home: Path, blobs: BlobStore, new: NewEncoding) -> None:
    adapter = session.get(AdapterRow, new.adapter_id)
    if adapter is None:
        raise UnknownAdapterError(name=f"with id {new.adapter_id}", home=home, hint="")
    if new.generator_id is None:
        return
    generator = session.get(GeneratorRow, new.generator_id)
    if generator is None:
        raise UnknownGeneratorError(generator=new.generator_id, home=home)
    cohort = session.get(CohortRow, generator.cohort_id)
    if cohort is None or cohort.base_model != adapter.base_model:
        raise LayoutMismatchError(
            what=f"Adapter {adapter.name}@{adapter.version}",
            found=f"of base model {adapter.base_model}",
            expected=f"one of {'an unknown one' if cohort is None else cohort.base_model}, as generator {generator.id}",
            remedy="Use a generator for its own base model.",
        )
    claim_blob(session, blobs, generator.sha256, generator.size_bytes)
