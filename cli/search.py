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
    from lorareg.compress.tasks.search import Score
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
        model = registry.setting(SENTENCE_MODEL)
        if by is By.SENTENCES and model is None:
            raise BaseModelError(
                path="(none)",
                reason="no sentence model was given yet",
                remedy="Run `lorareg describe --sentences PATH` first, or search --by text.",
            )
        if by is By.TEXT or model is None:
            from lorareg.compress.tasks.search import search_by_text

            encoder, found = "text", search_by_text(query, registry.texts(), limit)
        else:
            encoder, found = _by_sentences(registry.home, Path(model), query, limit, output)
        if not found:
            raise NothingToDoError(
                message=f"There are no adapters in {registry.home}. Run `lorareg ingest PATH` first."
            )
        scores = dict(found)
        hits = [(one.adapter, scores[one.adapter.id]) for one in registry.listed(list(scores))]
    _show(output, encoder, hits)


def _by_sentences(home: Path, model: Path, query: str, limit: int, output: Output) -> tuple[str, list[Score]]:
    """The encoder's name, and the best by the meaning of their sentences; vectors that are missing are made."""
    from lorareg.compress.tasks.describe import TaskVectors
    from lorareg.compress.tasks.search import search_by_vector
    from lorareg.registry.store import Registry

    if not model.exists():
        raise BaseModelError(
            path=model, reason="it is not there any more", remedy="Give `lorareg describe --sentences` once more."
        )
    with Registry.open(home, create=False) as registry, progress(output) as reporter:
        vectors = TaskVectors(registry, None, reporter, model)
        wanted = vectors.encoder.encode(query, ())
        return vectors.encoder.name, search_by_vector(wanted, map(vectors.of, registry.texts()), limit)


def _show(output: Output, encoder: str, hits: list[tuple[Adapter, float]]) -> None:
    found = [{"ref": one.ref, "score": score, "description": one.description} for one, score in hits]
    rows = [(f"{score:.3f}", one.ref, one.description or MISSING) for one, score in hits]
    table = Table(("score", "adapter", "task"), rows, numbers=frozenset({"score"}), flexible=frozenset({"task"}))
    output.show({"encoder": encoder, "adapters": found}, table, brief=[one.ref for one, _ in hits])
