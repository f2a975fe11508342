"""Verifying what is stored against what was certified, at any time.

While an adapter's original is kept, its decoded bytes are measured against it anew. Once it is gone, the
decoded bytes must still have the certified digest, which *proves* that what was measured then holds now;
the projections that the certificate keeps of the original give a second, independent *estimate* of the error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from lorareg.compress.factors.fidelity import ModuleFidelity, measure, measure_modules, summarise
from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.materialize import restore_present, restore_weights
from lorareg.compress.proofs.certificate import carry, error_shares, estimate, make_proof, project
from lorareg.registry.certificate import Proof, Subject, compose, is_stale, projection_seed
from lorareg.registry.damage import Damage
from lorareg.registry.errors import LoraregError, NoCertificateError
from lorareg.registry.lookup import Lookup
from lorareg.registry.prune import contract_failure
from lorareg.registry.types import (
    WEIGHTS_FILE,
    Adapter,
    Certificate,
    Encoding,
    Finding,
    Layout,
    Whereabouts,
    sha256_hex,
)

if TYPE_CHECKING:
    from lorareg.compress.contracts.judge import Judge

SAME = 1e-5
"""How far, relatively, a weight error measured anew may lie from the recorded one: sums come in another order."""

CLOSE = 0.02
"""The same for what the base model says, on another machine and other kernels; absolute below 0.001."""


@dataclass(slots=True)
class Verdict:
    """What verifying one adapter came to. It holds when there are no problems."""

    ref: str
    adapter_id: int
    encoding_id: int | None
    tier: str
    original: Whereabouts
    output_sha256: str | None = None
    certificate: str | None = None  # digest
    problems: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    estimated: dict[str, float] = field(default_factory=dict)
    modules: list[ModuleFidelity] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def check_encodings(lookup: Lookup) -> Iterator[Finding]:
    """Decode the current encoding of every adapter, past damaged rows; yields one finding for each that fails."""
    damage = Damage()
    pages = (lookup.pages(damage, cohort_id=one.id, include_history=True) for one in lookup.cohorts(damage))
    for page in chain.from_iterable(pages):
        for adapter in (listed.adapter for listed in page if listed.encoding is not None):
            try:
                restore_present(lookup, adapter)
            except LoraregError as error:
                yield Finding(
                    what=f"adapter {adapter.ref}",
                    problem=str(error),
                    remedy="While its original is kept, `lorareg compress --retrain` encodes it anew.",
                )


def verify(lookup: Lookup, adapter: Adapter, judge: Judge | None = None, levels: Sequence[str] = ()) -> Verdict:
    """Decode what is stored of an adapter and compare it with its original, or with what was certified of it.

    Args:
        lookup: the registry.
        adapter: a version of an adapter.
        judge: measures `levels` "kl" and "gain" where they are asked for.
        levels: beside "weight".
    """
    verdict = _verify(lookup, adapter, judge, levels)
    now = lookup.encoding(adapter.id)
    if verdict.problems and verdict.encoding_id != (now and now.id):  # it was encoded anew meanwhile
        return verify(lookup, adapter, judge, levels)
    return verdict


def _verify(lookup: Lookup, adapter: Adapter, judge: Judge | None, levels: Sequence[str]) -> Verdict:
    encoding = lookup.encoding(adapter.id)
    if encoding is None:
        return _verify_original(lookup, adapter)
    verdict = Verdict(adapter.ref, adapter.id, encoding.id, encoding.tier, lookup.original(adapter))
    try:
        output = restore_weights(lookup, adapter, encoding)
    except LoraregError as error:
        verdict.problems.append(str(error))
        return verdict
    verdict.output_sha256 = sha256_hex(output)
    verdict.proven.append("its stored bytes decode to the recorded output")
    return _Verifying(lookup, adapter, encoding, output, verdict).run(judge, levels)


def prove(lookup: Lookup, adapter: Adapter, code_sha256: str, output: bytes, original: Sequence[Factors]) -> Proof:
    """Measure what a code decodes to against the original, for a certificate."""
    layout = Layout.from_json(lookup.cohort(adapter.cohort_id).layout)
    weights = next(file.sha256 for file in lookup.files(adapter) if file.path == WEIGHTS_FILE)
    digest = sha256_hex(output)
    seed = None if digest == weights else projection_seed(weights, code_sha256, digest)
    return make_proof(layout, original, read_weights(output, layout), seed)


def prove_carried(
    lookup: Lookup, adapter: Adapter, present: Encoding, output: bytes, source: Sequence[Factors]
) -> Proof:
    """The proof of a code made from what the code `present` decodes to (`source`), the original being gone.

    Raises:
        NoCertificateError: that code has none, so nothing is known of the original.
    """
    earlier = lookup.certificate(present.id)
    if earlier is None:
        raise NoCertificateError(
            ref=adapter.ref, reason="its original is gone", remedy="Its code stays; ingest the original to encode it."
        )
    subject = Subject.of(lookup, adapter, present)
    seed = compose(subject, earlier)["projections"]["seed"]
    layout = Layout.from_json(subject.cohort.layout)
    facts = Proof(json.loads(earlier.facts), earlier.module_errors, earlier.projections)
    return carry(facts, seed, measure_modules(layout, source, read_weights(output, layout)))


def prove_again(lookup: Lookup, adapter: Adapter) -> tuple[Encoding, Proof]:
    """A new proof of an adapter's present encoding.

    Raises:
        NoCertificateError: it has no encoding.
        OriginalGoneError: there is nothing to measure against.
        IntegrityError: stored bytes are damaged.
    """
    encoding = lookup.encoding(adapter.id)
    if encoding is None:
        raise NoCertificateError(
            ref=adapter.ref, reason="it is stored as it came", remedy="`lorareg compress` makes a code to certify."
        )
    layout = Layout.from_json(lookup.cohort(adapter.cohort_id).layout)
    original = read_weights(lookup.read_file(adapter, WEIGHTS_FILE), layout)
    return encoding, prove(lookup, adapter, encoding.sha256, restore_weights(lookup, adapter, encoding), original)


def certified_statement(lookup: Lookup, adapter: Adapter) -> dict[str, Any]:
    """An adapter's certificate as it is exported: the statement, its digest, and the decoded weights' projections.

    Raises:
        NoCertificateError: it has none.
        IntegrityError: stored bytes are damaged.
    """
    encoding = lookup.encoding(adapter.id)
    certificate = None if encoding is None else lookup.certificate(encoding.id)
    if encoding is None or certificate is None:
        raise NoCertificateError(
            ref=adapter.ref,
            reason="it is stored as it came" if encoding is None else "none was made when it was encoded",
            remedy="Run `lorareg compress`." if encoding is None else "`lorareg verify` makes one.",
        )
    subject = Subject.of(lookup, adapter, encoding)
    statement = compose(subject, certificate)
    exported = {"statement": statement, "digest": certificate.digest, "stale": is_stale(subject, certificate)}
    if statement["projections"] is not None:
        layout = Layout.from_json(subject.cohort.layout)
        restored = read_weights(restore_weights(lookup, adapter, encoding), layout)
        (projected,) = project(layout, [restored], bytes.fromhex(statement["projections"]["seed"]))
        exported["decoded_projections"] = [float(value) for value in projected]
    return exported


class _Verifying:
    """One adapter whose stored bytes have been decoded."""

    def __init__(self, lookup: Lookup, adapter: Adapter, encoding: Encoding, output: bytes, verdict: Verdict) -> None:
        self.lookup, self.adapter, self.encoding, self.output, self.verdict = lookup, adapter, encoding, output, verdict
        self.subject = Subject.of(lookup, adapter, encoding)
        self.layout = Layout.from_json(self.subject.cohort.layout)
        self.restored = read_weights(output, self.layout)
        self.recorded = json.loads(encoding.fidelity)

    def run(self, judge: Judge | None, levels: Sequence[str]) -> Verdict:
        certificate = self._certificate()
        if self.verdict.original == "kept":
            self._against_original(certificate, judge, levels)
        elif certificate is not None:
            self._against_certificate(certificate)
            self._gain_alone(judge, levels)
        else:
            self.verdict.problems.append(f"its original is {self.verdict.original} and it has no certificate")
        if self.verdict.original == "missing":
            self.verdict.problems.append("its original is missing, and was not pruned")
        failure = contract_failure(self.encoding)
        if failure:
            self.verdict.problems.append(f"it {failure}")
        return self.verdict

    def _certificate(self) -> Certificate | None:
        found = self.lookup.certificate(self.encoding.id)
        if found is None:
            return None
        self.verdict.certificate = found.digest
        if is_stale(self.subject, found):
            self.verdict.problems.append("its certificate is stale: its rows say something else now")
        return found

    def _against_original(self, certificate: Certificate | None, judge: Judge | None, levels: Sequence[str]) -> None:
        try:
            data = self.lookup.read_file(self.adapter, WEIGHTS_FILE)
        except LoraregError as error:
            self.verdict.problems.append(str(error))
            return
        original = read_weights(data, self.layout)
        fidelity = measure(self.layout, original, self.restored)
        self.verdict.modules = list(measure_modules(self.layout, original, self.restored))
        self.verdict.measured = {**fidelity.to_dict(), **summarise(self.verdict.modules)}
        bound = float(self.recorded["relative_error"])
        if self.recorded.get("carried_error"):
            if fidelity.relative_error > bound * (1 + SAME):
                self.verdict.problems.append(f"its error is {fidelity.relative_error:.6g}, past its bound {bound:.6g}")
        else:
            self._compare("relative_error", fidelity.relative_error, SAME)
            self._compare("worst_module_error", fidelity.worst_module_error, SAME)
        self.verdict.proven.append("its error was measured anew against the original")
        if certificate is not None and certificate.projections:
            self._check_projections(certificate, original)
        if judge is not None:
            self._behaviour(judge, levels, original)

    def _check_projections(self, certificate: Certificate, original: Sequence[Factors]) -> None:
        """The certificate's projections must be the original's: they are what is left when it is gone."""
        kept = compose(self.subject, certificate)["projections"]
        (projected,) = project(self.layout, [original], bytes.fromhex(kept["seed"]))
        if np.abs(projected / kept["scale"] - np.array(kept["original"])).max() > 1:
            self.verdict.problems.append("the projections in its certificate are not those of its original")

    def _against_certificate(self, certificate: Certificate) -> None:
        """What can still be said with the original gone."""
        if self.subject.is_exact:
            self.verdict.proven.append("its output is the original, byte for byte")
            self.verdict.measured = {"relative_error": 0.0, "exact": True}
            return
        kept = compose(self.subject, certificate)["projections"]
        errors = np.frombuffer(certificate.module_errors, "<f4").tolist()
        (projected,) = project(self.layout, [self.restored], bytes.fromhex(kept["seed"]))
        found = estimate(
            np.array(kept["original"], np.int16),
            kept["scale"],
            kept["norm"],
            projected,
            error_shares(self.layout, self.restored, errors),
        )
        self.verdict.estimated = asdict(found)
        claimed = float(self.recorded["relative_error"])
        above = claimed > found.high and not self.recorded.get("carried_error")  # a bound may lie above the truth
        if claimed < found.low or above:
            self.verdict.problems.append(
                f"its certificate claims a relative error of {claimed:.6g}, and the projections of its original put it "
                f"between {found.low:.6g} and {found.high:.6g}"
            )
        self.verdict.proven.append("its output is the one that was measured against the original when it was certified")

    def _behaviour(self, judge: Judge, levels: Sequence[str], original: Sequence[Factors]) -> None:
        from lorareg.compress.codec.encode import Original

        if not self._same_model(judge):
            return
        data = self.lookup.read_file(self.adapter, WEIGHTS_FILE)
        source = Original(f"Adapter {self.adapter.ref!r}", lambda: data, self.layout)
        found: dict[str, Any] = {}
        if "kl" in levels:
            found |= judge.divergence(self.adapter, source, self.restored)
            self._compare("kl_divergence", float(found["kl_divergence"]), CLOSE)
        if "gain" in levels:
            found |= judge.gain(judge.case(self.adapter, source), self.restored)
            self._compare("gain_retained", float(found["gain_retained"]), CLOSE)
        self.verdict.measured |= found
        self._hold(found)

    def _gain_alone(self, judge: Judge | None, levels: Sequence[str]) -> None:
        """Without the original, the losses recorded when it was there still tell what gain is retained."""
        if judge is None or "gain" not in levels or "loss_original" not in self.recorded:
            return
        if not self._same_model(judge):
            return
        found = judge.gain_from_losses(
            self.adapter, self.layout, self.restored, self.recorded["loss_base"], self.recorded["loss_original"]
        )
        if found is None:
            return
        self.verdict.measured |= found
        self._compare("gain_retained", float(found["gain_retained"]), CLOSE)
        self._hold(found)

    def _same_model(self, judge: Judge) -> bool:
        """Whether what the model says can be compared with what was recorded."""
        then = self.recorded.get("base_model_sha256", judge.model.digest)
        if then != judge.model.digest:
            self.verdict.problems.append(
                f"it was certified with the base model {then[:12]}, and this one is {judge.model.digest[:12]}"
            )
        return bool(then == judge.model.digest)

    def _hold(self, found: dict[str, Any]) -> None:
        """Levels measured now against what was asked for."""
        held = json.loads(self.encoding.tolerance)
        if "kl" in held and "kl_divergence" in found and float(found["kl_divergence"]) > held["kl"] * (1 + CLOSE):
            self.verdict.problems.append(f"kl={held['kl']:g} was asked for, and it is {found['kl_divergence']:.6g} now")
        if "gain" in held and "gain_retained" in found and float(found["gain_retained"]) < held["gain"] - CLOSE / 10:
            self.verdict.problems.append(
                f"gain={held['gain']:g} was asked for, and it is {found['gain_retained']:.6g} now"
            )

    def _compare(self, name: str, now: float, allowed: float) -> None:
        """What was measured now with what was recorded."""
        then = self.recorded.get(name)
        if then is None or (math.isnan(now) and math.isnan(float(then))):
            return
        if not abs(now - float(then)) <= allowed * max(abs(float(then)), 0.05 if allowed == CLOSE else 1e-3):
            self.verdict.problems.append(f"its {name} was recorded as {float(then):.6g}, and is {now:.6g} now")


def _verify_original(lookup: Lookup, adapter: Adapter) -> Verdict:
    verdict = Verdict(adapter.ref, adapter.id, None, "original", lookup.original(adapter))
    try:
        verdict.output_sha256 = sha256_hex(lookup.read_file(adapter, WEIGHTS_FILE))
        verdict.proven.append("its original is stored undamaged; it has no code")
    except LoraregError as error:
        verdict.problems.append(str(error))
    return verdict
