"""`lorareg search`: tasks by meaning."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorareg.cli.options import AsJson, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table
from lorareg.cli.progress import progress
from lorareg.registry.errors import BaseModelError, NothingToDoError
from lorareg.registry.types import SENTENCE_MODEL

if TYPE_CHECKING:
    from lorareg.compress.tasks.search import Hit
    from lorareg.registry.types import Adapter


class By(StrEnum):
    """What tasks are compared by."""

    AUTO = "auto"
    TEXT = "text"
    SENTENCES = "sentences"


def search(
    query: Annotated[str, typer.Argument(metavar="TEXT", help="What the task is, in your words.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most adapters to show.")] = 10,
    by: Annotated[
        By,
        typer.Option("--by", help="sentences, the model given to `describe --sentences`; text, words and trigrams."),
    ] = By.AUTO,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find adapters by what they are for.

    By the meaning of sentences where `lorareg describe --sentences` was given a model, else by words.

    Raises:
        NothingToDoError: there is nothing to look for, or nothing to look in.
        BaseModelError: there is no sentence model, or it is not there any more.
    """
    from lorareg.registry.reader import Reader

    if not query.strip():
        raise NothingToDoError(message="There is nothing to look for: give some words.")
    output = Output(as_json, quiet)
    with Reader(home) as registry:
        where, model = registry.home, registry.setting(SENTENCE_MODEL)
        newest = {adapter.name: adapter for adapter in registry.adapters()}
    if not newest:
        raise NothingToDoError(message=f"There are no adapters in {where}. Run `lorareg ingest PATH` first.")
    adapters = list(newest.values())
    if by is By.SENTENCES and model is None:
        raise BaseModelError(
            path="(none)",
            reason="no sentence model was given yet",
            remedy="Run `lorareg describe --sentences PATH` first, or search --by text.",
        )
    if by is By.TEXT or model is None:
        from lorareg.compress.tasks.search import search_by_text

        encoder, hits = "text", search_by_text(query, adapters)
    else:
        encoder, hits = _by_sentences(where, Path(model), query, adapters, output)
    _show(output, encoder, hits[:limit])


def _by_sentences(
    home: Path, model: Path, query: str, adapters: list[Adapter], output: Output
) -> tuple[str, list[Hit]]:
    """The encoder's name, and all adapters by the meaning of their sentences; vectors that are missing are made."""
    import numpy as np

    from lorareg.compress.tasks.describe import TaskVectors
    from lorareg.compress.tasks.search import search_by_vector
    from lorareg.registry.store import Registry

    if not model.exists():
        raise BaseModelError(
            path=model, reason="it is not there any more", remedy="Give `lorareg describe --sentences` once more."
        )
    with Registry.open(home, create=False) as registry, progress(output) as reporter:
        vectors = TaskVectors(registry, None, reporter, model)
        name = vectors.encoder.name
        stored = {adapter.id: registry.task_vector(adapter.id, name) for adapter in adapters}
        missing = [adapter for adapter in adapters if stored[adapter.id] is None]
        made = dict(zip((adapter.id for adapter in missing), vectors.make(missing) if missing else [], strict=True))
        kept = {key: np.frombuffer(vector.vector, np.int8) for key, vector in stored.items() if vector is not None}
        known = kept | made
        wanted = vectors.encoder.encode(query, ())
    return name, search_by_vector(wanted, adapters, [known[adapter.id] for adapter in adapters])


def _show(output: Output, encoder: str, hits: list[Hit]) -> None:
    found = [{"ref": h.adapter.ref, "score": h.score, "description": h.adapter.description} for h in hits]
    rows = [(f"{hit.score:.3f}", hit.adapter.ref, hit.adapter.description or MISSING) for hit in hits]
    table = Table(("score", "adapter", "task"), rows, numbers=frozenset({"score"}), flexible=frozenset({"task"}))
    output.show({"encoder": encoder, "adapters": found}, table, brief=[hit.adapter.ref for hit in hits])
