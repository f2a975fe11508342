"""What a registry knows that a new task can be told from: its tasks, their vectors, and their adapters decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorareg.compress.factors.weights import Factors, read_weights
from lorareg.compress.materialize import restore_present
from lorareg.compress.progress import Reporter
from lorareg.compress.tasks.novel import Condition
from lorareg.compress.tasks.task_vectors import SentenceEncoder, TaskEncoder, TextEncoder
from lorareg.registry.errors import ContractError, MissingExtraError, NothingToDoError
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import SENTENCE_MODEL, Adapter, Cohort, Layout


@dataclass(frozen=True, slots=True)
class Comparison:
    """A new task beside the known ones, by one encoder."""

    encoder: TaskEncoder
    condition: Condition

    def part(self, chosen: Sequence[int]) -> Comparison:
        """With some of the known tasks alone."""
        known = [self.condition.known[index] for index in chosen]
        return Comparison(self.encoder, Condition(self.condition.encoder, known, self.condition.wanted))


def find_cohort(lookup: Lookup, name: str | None) -> Cohort:
    """The cohort of that name, or the only one that has adapters.

    Raises:
        UnknownCohortError: there is none of that name.
        NothingToDoError: there are no adapters at all.
        ContractError: there are several to choose from, or that one's adapters are more than factors.
    """
    if name is not None:
        cohort = lookup.cohort(name)
        if not _can_be_mixed(cohort):
            reason = "its adapters hold tensors that are no factors, of which nobody knows how to mix them"
            raise ContractError(option=f"--cohort {name}", reason=reason)
        return cohort
    filled = [cohort for cohort in lookup.cohorts() if _can_be_mixed(cohort) and lookup.has_adapters(cohort.id)]
    if not filled:
        raise NothingToDoError(message=f"There are no adapters in {lookup.home}. Run `lorareg ingest PATH` first.")
    if len(filled) > 1:
        names = ", ".join(cohort.name for cohort in filled)
        raise ContractError(option="--cohort", reason=f"the registry has {len(filled)}, {names}: name one")
    return filled[0]


def _can_be_mixed(cohort: Cohort) -> bool:
    layout = Layout.from_json(cohort.layout)
    return bool(layout.slots) and not layout.extras


def newest(lookup: Lookup, cohort: Cohort) -> list[Adapter]:
    """The newest version of each task of a cohort.

    Raises:
        NothingToDoError: there are fewer than two.
    """
    adapters = list({adapter.name: adapter for adapter in lookup.adapters(cohort_id=cohort.id)}.values())
    if len(adapters) < 2:
        found = f"{len(adapters)} task{'s' * (len(adapters) != 1)}"
        message = f"A new task is told from two known ones or more, and cohort {cohort.name!r} has {found}."
        raise NothingToDoError(message=message)
    return adapters


def compare(
    lookup: Lookup, adapters: Sequence[Adapter], description: str, reporter: Reporter
) -> tuple[Comparison, ...]:
    """A description beside those of adapters: by text, and by meaning where the registry was given a sentence model.

    The best comes last. Vectors that are not stored are made, and not stored either.
    """
    return tuple(
        Comparison(
            encoder,
            Condition(
                encoder.name,
                [_vector(lookup, encoder, adapter) for adapter in adapters],
                encoder.encode(description, ()),
            ),
        )
        for encoder in _encoders(lookup, reporter)
    )


def decode_all(lookup: Lookup, adapters: Sequence[Adapter], reporter: Reporter) -> list[tuple[Factors, ...]]:
    """The factors of adapters of one layout, as they would be materialized.

    Raises:
        IntegrityError: stored bytes are damaged.
    """
    decoded = []
    reporter.start("reading adapters", len(adapters))
    for adapter in adapters:
        layout = Layout.from_json(lookup.cohort(adapter.cohort_id).layout)
        decoded.append(read_weights(restore_present(lookup, adapter), layout))
        reporter.advance(1)
    reporter.finish()
    return decoded


def _encoders(lookup: Lookup, reporter: Reporter) -> list[TaskEncoder]:
    remembered = lookup.setting(SENTENCE_MODEL)
    if remembered is None or not Path(remembered).exists():
        return [TextEncoder()]
    try:
        return [TextEncoder(), SentenceEncoder(Path(remembered))]
    except MissingExtraError as error:
        reporter.note(f"Tasks are compared by their words alone: {error}")
        return [TextEncoder()]


def _vector(lookup: Lookup, encoder: TaskEncoder, adapter: Adapter) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    stored = lookup.task_vector(adapter.id, encoder.name)
    if stored is not None:
        return np.frombuffer(stored.vector, np.int8)
    if isinstance(encoder, TextEncoder):
        return encoder.encode(adapter.description, ())
    from lorareg.compress.tasks.describe import encoded  # needs SQLAlchemy

    return encoded(lookup, encoder, adapter)
