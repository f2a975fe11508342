"""What the first page shows: what all tasks that may be seen take together, and one page of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorareg.registry.listings import Listed, TaskBytes
from lorareg.registry.lookup import Lookup
from lorareg.registry.report import UNCOMPRESSED, percent

PAGE_SIZE = 50
NAMES_AT_ONCE = 1000
MAX_COHORTS = 25
MAX_SUMMARY_CHARS = 160


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task as a line of a list: its newest version. `error` is None while it is stored as it came."""

    name: str
    version: int
    description: str
    tier: str
    error: float | None
    original_bytes: int
    stored_bytes: int

    @property
    def saved_percent(self) -> float:
        """Of the original."""
        return 100 - percent(self.stored_bytes, self.original_bytes)


@dataclass(frozen=True, slots=True)
class Sums:
    """Bytes of some adapters; `stored_bytes` has codes, weights that have none, and generators, each once."""

    label: str
    detail: str
    tasks: int
    versions: int
    original_bytes: int
    stored_bytes: int

    @property
    def stored_percent(self) -> float:
        """Of the originals."""
        return percent(self.stored_bytes, self.original_bytes)


def task_line(listed: Listed) -> TaskLine:
    """A line of a list."""
    adapter, encoding = listed.adapter, listed.encoding
    text = " ".join(adapter.description.split())
    error = None if encoding is None else json.loads(encoding.fidelity).get("relative_error")
    return TaskLine(
        adapter.name,
        adapter.version,
        text if len(text) <= MAX_SUMMARY_CHARS else f"{text[: MAX_SUMMARY_CHARS - 1].rstrip()}…",
        UNCOMPRESSED if encoding is None else encoding.tier,
        None if error is None else float(error),
        adapter.original_bytes,
        listed.stored_bytes,
    )


def page_of_names(lookup: Lookup, may_see: Callable[[str], bool], after: str) -> tuple[list[str], bool]:
    """The names on the page past `after`, and whether there is another page."""
    found: list[str] = []
    while len(found) <= PAGE_SIZE:
        names = lookup.names(after, NAMES_AT_ONCE)
        found += [name for name in names if may_see(name)]
        if len(names) < NAMES_AT_ONCE:
            break
        after = names[-1]
    return found[:PAGE_SIZE], len(found) > PAGE_SIZE


def sums(lookup: Lookup, may_see: Callable[[str], bool]) -> tuple[Sums, list[Sums]]:
    """All together, and cohort by cohort, the largest first: of what may be seen."""
    seen: dict[str, bool] = {}
    parts: dict[int, list[TaskBytes]] = defaultdict(list)
    for part in lookup.task_bytes():
        if part.name not in seen:
            seen[part.name] = may_see(part.name)
        if seen[part.name]:
            parts[part.cohort_id].append(part)
    generators = {generator.id: generator.size_bytes for generator in lookup.generators()}
    known = {cohort.id: cohort for cohort in lookup.cohorts()}
    each = [
        _add_up(known[cohort_id].name, known[cohort_id].base_model, members, generators)
        for cohort_id, members in parts.items()
    ]
    whole = _add_up("", "", [part for members in parts.values() for part in members], generators)
    return whole, sorted(each, key=lambda cohort: (-cohort.original_bytes, cohort.label))


def _add_up(label: str, detail: str, parts: Sequence[TaskBytes], generators: dict[int, int]) -> Sums:
    used = {part.generator_id for part in parts if part.generator_id is not None}
    return Sums(
        label,
        detail,
        len({part.name for part in parts}),
        sum(part.versions for part in parts),
        sum(part.original_bytes for part in parts),
        sum(part.stored_bytes for part in parts) + sum(generators[generator] for generator in used),
    )
