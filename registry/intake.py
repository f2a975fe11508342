"""Taking in many adapters: copied and hashed ahead by threads, flushed together, recorded in one transaction a batch.

    requests -> read, copied, hashed (the batch after, meanwhile) -> blobs published -> one transaction -> outcomes

Nobody hears of an adapter before its rows are committed, and no row is written before its blobs last. A batch of which
anything is refused is recorded adapter by adapter, so that none takes others with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from lorareg.registry.blobs import Staging
from lorareg.registry.encodings import claim_blobs
from lorareg.registry.errors import LoraregError, MissingBlobError
from lorareg.registry.ingest import IngestOutcome, IngestRequest, Staged, record_adapters, stage_files
from lorareg.registry.names import validate_task_name
from lorareg.registry.peft_format import PeftFolder, read_adapter
from lorareg.registry.types import WEIGHTS_FILE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from lorareg.registry.store import Registry

BATCH_ADAPTERS = 32
BATCH_BYTES = 256_000_000
"""Of weights, where that is more than one adapter: what lies staged meanwhile takes room on the disk."""

_THREADS = 2


@dataclass(slots=True)
class _Batch:
    """Adapters on their way in; what of them is not published when it is closed is dropped."""

    staging: Staging
    open: ExitStack
    staged: list[Future[Staged]] = field(default_factory=list)


def take_in_each(registry: Registry, requests: Iterable[IngestRequest]) -> Iterator[IngestOutcome | LoraregError]:
    """Take in adapters in order, giving the outcome of each, or the error with which it is refused.

    Raises:
        OSError: the machine refused (disk full); what came before is taken in, and told.
    """
    waiting = iter(requests)
    with ExitStack() as batches, ThreadPoolExecutor(max_workers=_THREADS) as threads:
        try:
            coming = _begin(registry, waiting, threads, batches)
            while coming.staged:
                batch, coming = coming, _begin(registry, waiting, threads, batches)
                yield from _finish(registry, batch)
                batch.open.close()
        finally:
            threads.shutdown(cancel_futures=True)


def take_in(registry: Registry, folder: PeftFolder, request: IngestRequest) -> IngestOutcome:
    """Take in one adapter that was read before.

    Raises:
        LoraregError: it is refused.
    """
    with registry.blobs.staging() as staging:
        staged = Staged(request, folder, stage_files(staging, folder))
        staging.publish()
    return _record_alone(registry, staged)


def _begin(
    registry: Registry, waiting: Iterator[IngestRequest], threads: ThreadPoolExecutor, batches: ExitStack
) -> _Batch:
    """Have threads stage the next adapters."""
    opened = batches.enter_context(ExitStack())
    batch, size_bytes = _Batch(opened.enter_context(registry.blobs.staging()), opened), 0
    for request in waiting:
        size_bytes += _weights_bytes(request)
        batch.staged.append(threads.submit(_stage, batch.staging, request))
        if len(batch.staged) == BATCH_ADAPTERS or size_bytes >= BATCH_BYTES:
            break
    return batch


def _stage(staging: Staging, request: IngestRequest) -> Staged:
    validate_task_name(request.name)
    folder = read_adapter(request.path, request.base_model)
    return Staged(request, folder, stage_files(staging, folder))


def _finish(registry: Registry, batch: _Batch) -> Iterator[IngestOutcome | LoraregError]:
    """Publish and record what was staged; give what became of each, up to what the machine refused."""
    found: list[Staged | LoraregError] = []
    refused: OSError | None = None
    for future in batch.staged:
        try:
            found.append(future.result())
        except LoraregError as error:
            found.append(error)
        except OSError as error:
            refused = error
            break
    staged = [one for one in found if isinstance(one, Staged)]
    registry.blobs.publish(list(chain.from_iterable(one.files.values() for one in staged)))
    recorded = iter(_record(registry, staged))
    for one in found:
        yield one if isinstance(one, LoraregError) else next(recorded)
    if refused is not None:
        raise refused


def _record(registry: Registry, staged: Sequence[Staged]) -> list[IngestOutcome | LoraregError]:
    """Write the rows of all in one transaction; where one is refused, of each in its own."""
    try:
        return list(_record_together(registry, staged))
    except LoraregError:
        outcomes: list[IngestOutcome | LoraregError] = []
        for one in staged:
            try:
                outcomes.append(_record_alone(registry, one))
            except LoraregError as error:
                outcomes.append(error)
        return outcomes


def _record_alone(registry: Registry, staged: Staged) -> IngestOutcome:
    """Write the rows of one.

    Files that were taken for nobody's since they were stored are stored once more within the transaction, where nothing
    is deleted.
    """
    try:
        (outcome,) = _record_together(registry, [staged])
    except MissingBlobError:
        with registry.writing() as session:
            with registry.blobs.staging() as staging:
                again = Staged(staged.request, staged.folder, stage_files(staging, staged.folder))
                staging.publish()
            (outcome,) = _written(session, registry, [again])
    return outcome


def _record_together(registry: Registry, staged: Sequence[Staged]) -> list[IngestOutcome]:
    if not staged:
        return []
    with registry.writing() as session:
        return _written(session, registry, staged)


def _written(session: Session, registry: Registry, staged: Sequence[Staged]) -> list[IngestOutcome]:
    claim_blobs(session, registry.blobs, {b.sha256: b.size_bytes for one in staged for b in one.files.values()})
    return record_adapters(session, staged)


def _weights_bytes(request: IngestRequest) -> int:
    path = request.path / WEIGHTS_FILE if request.path.is_dir() else request.path
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it says why
