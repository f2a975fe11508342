"""Which adapters of a cohort are encoded: those without a code that holds the contract, as far as they may be.

What stays as it is, and why, is said in messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.contracts.source import Source, refusal, source_of
from lorareg.compress.proofs.verify import prove_again
from lorareg.registry.damage import Damage
from lorareg.registry.errors import IntegrityError
from lorareg.registry.listings import Listed
from lorareg.registry.store import Registry
from lorareg.registry.types import Adapter, Cohort, Encoding, Generator, Layout


class Selection:
    """One cohort, looked at for what is to be done."""

    def __init__(
        self,
        registry: Registry,
        cohort: Cohort,
        options: CompressOptions,
        contract: Contract,
        damage: Damage,
        messages: list[str],
    ) -> None:
        """What the user should hear of it is added to `messages`; damaged rows are passed over."""
        self.registry, self.cohort, self.layout = registry, cohort, Layout.from_json(cohort.layout)
        self.options, self.contract = options, contract
        self.damage, self.messages = damage, messages
        self.generators = {record.id: record for record in registry.generators(damage=damage)}  # some are lent

    @property
    def own_generators(self) -> list[Generator]:
        """The cohort's own, oldest first."""
        return [record for record in self.generators.values() if record.cohort_id == self.cohort.id]

    def due(self, adapters: Sequence[Adapter], current: Mapping[int, Encoding], tolerance: float) -> list[Source]:
        """What is encoded: the adapters that have no code, one that breaks the contract, or a damaged one.

        Those that stay are certified where they are not.
        """
        settled = {adapter.id: self._settled(adapter, current.get(adapter.id)) for adapter in adapters}
        self._certify([adapter for adapter in adapters if settled[adapter.id]], current)
        sources = self._sources((one for one in adapters if not settled[one.id]), current)
        allowed = self._allowed(sources, tolerance)
        self._tell_of_dropped([current[one.adapter.id] for one in allowed if one.adapter.id in current], tolerance)
        return allowed

    def listed(self) -> Iterator[Listed]:
        """The cohort's adapters, removed ones too, and their current encodings: of which neither is damaged."""
        for page in self.registry.pages(self.damage, cohort_id=self.cohort.id, include_history=True):
            yield from page

    def _settled(self, adapter: Adapter, encoding: Encoding | None) -> bool:
        """Whether an adapter can stay as it is stored."""
        if encoding is None:
            return False
        if self._is_intact(encoding):
            held = json.loads(encoding.tolerance)
            same = all(held.get(name) == value for name, value in self.contract.asked.items())
            return same and not self.options.retrain and not self.exceeds_cap(encoding)
        if self.registry.original(adapter) == "pruned":
            self.messages.append(
                f"{adapter.ref} is damaged and its original is gone; `lorareg replicate LOCATION --repair` brings it "
                "back from a second copy"
            )
            return True
        return False

    def _is_intact(self, encoding: Encoding) -> bool:
        """Whether an encoding's bytes are those that were recorded; says so where they are not."""
        try:
            self.registry.blobs.verify(encoding.sha256)
            if encoding.generator_id is not None:
                self.registry.blobs.verify(self.registry.generator(encoding.generator_id).sha256)
        except IntegrityError as error:
            self.messages.append(f"encoded anew because stored bytes are damaged: {error.fields.get('what', error)}")
            return False
        return True

    def exceeds_cap(self, encoding: Encoding) -> bool:
        """Whether an encoding needs a generator, its own cohort's or a lent one, that is larger than one may be now."""
        record = None if encoding.generator_id is None else self.generators.get(encoding.generator_id)
        return record is not None and self.is_too_large(record)

    def is_too_large(self, record: Generator) -> bool:
        """Whether a generator is larger than one may be now."""
        most_bytes = self.options.generator_budget
        return most_bytes is not None and record.size_bytes > most_bytes

    def _certify(self, settled: Sequence[Adapter], current: Mapping[int, Encoding]) -> None:
        """Prove codes that have no certificate: older versions recorded it after the code, and could be stopped."""
        there = self.registry.certificates_of([current[adapter.id].id for adapter in settled])
        for adapter in settled:
            if current[adapter.id].id in there:
                continue
            with self.damage.passed_over():
                if self.registry.original(adapter) == "kept":
                    self.registry.certify(adapter, *prove_again(self.registry, adapter))
                    self.messages.append(f"{adapter.ref} had no certificate and has one now")

    def _sources(self, adapters: Iterable[Adapter], current: Mapping[int, Encoding]) -> Iterator[Source]:
        """What adapters are encoded from, of those whose other rows are not damaged either."""
        for adapter in adapters:
            with self.damage.passed_over():
                self.registry.files(adapter)
                self.registry.task_vectors(adapter.id)
                yield source_of(self.registry, adapter, self.layout, current.get(adapter.id))

    def _allowed(self, sources: Iterable[Source], tolerance: float) -> list[Source]:
        """Those that may be encoded again; of the others, says why not."""
        allowed = []
        for source in sources:
            reason = refusal(source, self.contract, tolerance)
            if reason:
                self.messages.append(f"{source.adapter.ref} stays as it is: {reason}")
            else:
                allowed.append(source)
        return allowed

    def _tell_of_dropped(self, replaced: Sequence[Encoding], tolerance: float) -> None:
        """Where nobody named a contract, adapters encoded anew are held to their weights alone: say so."""
        held = [json.loads(encoding.tolerance).keys() - {"relative_error", "distilled"} for encoding in replaced]
        dropped = sorted(set().union(*held))
        if dropped and not self.contract.asked:
            count = sum(bool(names) for names in held)
            self.messages.append(
                f"{count} adapters encoded anew were held to {' and '.join(dropped)}, and are now held to "
                f"weight={tolerance:g}; name the contract again to have it back"
            )
