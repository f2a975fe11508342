"""A server whose registry is encoded anew between a request's rows and its bytes, what was there before let go of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.cli.web import hub, offers
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.registry.prune import plan
from lorareg.registry.store import Registry
from lorareg.registry.sweep import delete_orphans, retire, sweep
from lorareg.registry.types import sha256_hex

NO_GRACE = timedelta(0)


@pytest.fixture
def meanwhile(home: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that does something else first, once: a new code for all, another card, and what was there goes."""
    done: list[int] = []

    def encode_anew() -> None:
        done.append(1)
        with Registry.open(home, create=False) as registry:
            compress(registry, (), CompressOptions(Contract(tolerance=0.1), arch="none"), Silent())
            for adapter in registry.adapters():
                registry.put_files(adapter, {"README.md": b"# Another card\n\nOther text.\n"})
            retire(registry, {blob.sha256: blob.proof for blob in plan(registry.fetch).fresh})
            assert {blob.kind for blob in sweep(registry, NO_GRACE).deleted} >= {"older code", "older generator"}
            assert len(delete_orphans(registry, NO_GRACE)) >= 1

    def before(of: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **named: Any) -> Any:
            if not done:
                encode_anew()
            return of(*arguments, **named)

        return function

    return before


@pytest.mark.parametrize(("room", "step"), [(hub, "restore_weights"), (offers, "_told")])
def test_what_is_answered_is_what_is_there_now(
    home: Path, serve: Any, meanwhile: Any, monkeypatch: pytest.MonkeyPatch, room: Any, step: str
) -> None:
    monkeypatch.setattr(room, step, meanwhile(getattr(room, step)))
    answer = serve().get("/man-de/resolve/main/adapter_model.safetensors")
    assert answer.status_code == 200, answer.text
    with Registry.open(home, create=False) as registry:
        encoding = registry.encoding(registry.adapter("man-de").id)
    assert encoding is not None
    assert encoding.tolerance == '{"relative_error":0.1}'
    assert sha256_hex(answer.content) == encoding.output_digest == answer.headers["ETag"].strip('"')
