"""The job that is shared out: one adapter encoded, its code stored, decoded from the store, measured and proven.

What is left for whoever records it is rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from threadpoolctl import threadpool_limits

from lorareg.compress.codec.codecs import LoadedGenerator, decode
from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.course import Outcome
from lorareg.compress.contracts.gate import Ask, Candidate, Gate, Kept
from lorareg.compress.contracts.judge import Judge
from lorareg.compress.contracts.source import Source
from lorareg.compress.factors.weights import Factors
from lorareg.compress.generators.generator import Int8
from lorareg.compress.materialize import expect_output
from lorareg.compress.planning.coordinates import EMPTY, draft_of
from lorareg.compress.proofs.verify import prove, prove_carried
from lorareg.registry.certificate import Proof
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import NewEncoding, sha256_hex


@dataclass(frozen=True, slots=True)
class Job:
    """An adapter to encode."""

    index: int  # in its group
    ask: Ask
    latent: Int8 = field(default_factory=lambda: EMPTY)
    condition: Int8 = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Made:
    """What a job came to: a code in the store, decoded and measured, or the finding that none is smaller."""

    outcome: Outcome
    encoding: NewEncoding | None = None  # None where the code there is stays
    proof: Proof | None = None
    has_extras: bool = False  # beside the factors, which whoever records it has yet to store

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "outcome": asdict(self.outcome),
            "encoding": self.encoding and asdict(self.encoding),
            "proof": self.proof
            and {
                "facts": dict(self.proof.facts),
                "module_errors": self.proof.module_errors.hex(),
                "projections": self.proof.projections.hex(),
            },
            "has_extras": self.has_extras,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `to_dict` gave."""
        encoding, proof = values["encoding"], values["proof"]
        return cls(
            Outcome(**values["outcome"]),
            encoding and NewEncoding(**encoding),
            proof and Proof(proof["facts"], bytes.fromhex(proof["module_errors"]), bytes.fromhex(proof["projections"])),
            values["has_extras"],
        )


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where jobs are done: a registry to read and blobs to add to, the contract, and what judges it."""

    lookup: Lookup
    contract: Contract
    judge: Judge | None = None

    def make(self, source: Source, job: Job, loaded: LoadedGenerator | None, generator_id: int | None) -> Made:
        """Do one job.

        Raises:
            IntegrityError: what was stored decodes to something else than was measured.
        """
        draft = draft_of(loaded, source.original, job.latent, job.condition) if loaded is not None else None
        candidate = Candidate(source.adapter, source.original, draft, source.carried)
        with one_thread():
            kept = Gate(self.contract, self.judge).encode(candidate, job.ask)
            encoded = kept.encoded
            outcome = Outcome(len(encoded.code), encoded.step, kept.found)
            if source.present is not None and len(encoded.code) >= source.present.size_bytes:
                return Made(outcome)
            return self._stored(source, kept, loaded, generator_id, outcome)

    def _stored(
        self, source: Source, kept: Kept, loaded: LoadedGenerator | None, generator_id: int | None, outcome: Outcome
    ) -> Made:
        encoded, adapter, blobs = kept.encoded, source.adapter, self.lookup.blobs
        reason = {"reason": encoded.reason} if encoded.reason else {}
        new = NewEncoding(
            adapter_id=adapter.id,
            generator_id=generator_id if encoded.uses_generator else None,
            codec=encoded.codec.name,
            tier=encoded.codec.tier,
            sha256=blobs.put_bytes(encoded.code),
            size_bytes=len(encoded.code),
            output_digest=sha256_hex(encoded.output),
            output_bytes=len(encoded.output),
            tolerance=kept.tolerance,
            fidelity={**encoded.fidelity.to_dict(), **kept.measured, **reason},
        )
        extras, what = source.original.extras, source.original.what
        used = loaded if encoded.uses_generator else None
        output = decode(blobs.get(new.sha256), source.original.layout, used, what, extras)
        expect_output(output, new, what)
        proof = self._proof(source, new.sha256, output, source.original.factors)
        has_extras = encoded.codec.tier != "lossless" and not extras.is_plain
        return Made(outcome, new, proof, has_extras)

    def _proof(self, source: Source, code_sha256: str, output: bytes, factors: Sequence[Factors]) -> Proof:
        if source.carried and source.present is not None:
            return prove_carried(self.lookup, source.adapter, source.present, output, factors)
        return prove(self.lookup, source.adapter, code_sha256, output, factors)


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS with one thread: how many there are decides in what order numbers are added, and so a code's last bits.

    Nothing is lost: a module's factors are too small to share.
    """
    with threadpool_limits(1, "blas"):
        yield
