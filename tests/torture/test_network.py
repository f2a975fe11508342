"""A network that fails on the way to PostgreSQL and to S3: nothing is lost, nothing is there twice.

Adapters are ingested by way of a proxy, and in the course of each something goes wrong. What is refused is given again.
Then, past the proxy, the registry has to hold exactly what was ingested, and all of it has to decode.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, a server of the S3 protocol, is not installed")

import postgres_proxy
import s3_server

from lorareg.registry import object_blobs
from lorareg.registry.errors import IntegrityError, LoraregError, RegistryRefusedError
from lorareg.registry.object_blobs import ObjectBlobs
from lorareg.registry.peft_format import read_folder
from lorareg.registry.store import Registry
from lorareg.registry.types import WEIGHTS_FILE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # moto's
MakeAdapter = Callable[..., Path]
PASSING = ("reset", "500", "503", "409", "412", "lost answer", "short body")
"""Faults that a client gets over by asking again."""

FIXED = {"409": 1, "412": 1}
"""Faults found here that are mended: a conflict was taken for a bucket that is not there."""

SLOW = ("stall", "late answer")
METHODS = {"409": ("PUT",), "412": ("PUT",), "short body": ("GET",), "wrong bytes": ("GET",)}
"""With what kinds of requests something can go wrong so."""


@pytest.fixture
def database(empty_postgres: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LORAREG_DATABASE", empty_postgres)
    return empty_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """Host and port of a server of the S3 protocol."""
    with s3_server.s3_server() as found:
        yield found


@pytest.fixture
def endpoint(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Of an empty store in S3, past the proxy."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server[0]}:{server[1]}")
    monkeypatch.setenv("LORAREG_STORE", f"s3://bucket/{uuid.uuid4().hex}")
    return server


def expect_exactly(home: Path, count: int) -> None:
    with Registry.open(home, create=False) as registry:
        assert sorted(registry.names()) == sorted(f"task-{number}" for number in range(count))
        assert [adapter.version for adapter in registry.adapters()] == [1] * count
        assert list(registry.check(read_data=True)) == []


def ingested(registry: Registry, make_adapter: MakeAdapter, number: int) -> LoraregError | None:
    """Ingest an adapter of its own; the error, if it is refused."""
    try:
        registry.ingest(read_folder(make_adapter(seed=number)), name=f"task-{number}")
    except LoraregError as error:
        return error
    return None


@pytest.mark.parametrize("fault", postgres_proxy.FAULTS)
def test_on_the_way_to_postgresql(
    fault: str, database: str, tmp_path: Path, make_adapter: MakeAdapter, torture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torture.promise(f"{fault} on the way to PostgreSQL: an error says to run again, and nothing is lost or doubled")
    home, random_, count, refused = tmp_path / "home", random.Random(torture.seed), torture.runs(3, 1000), 0
    with postgres_proxy.proxy(database) as (url, faults):
        monkeypatch.setenv("LORAREG_DATABASE", url)
        with Registry.open(home, create=True) as registry:
            assert ingested(registry, make_adapter, 0) is None
            before = faults.seen
            assert ingested(registry, make_adapter, 1) is None
            messages = faults.seen - before
            number = 2
            while len(faults.happened) < count:
                faults.waiting = (fault, 0 if fault.startswith("COMMIT") else random_.randrange(messages))
                if refusal := ingested(registry, make_adapter, number):
                    refused += 1
                    assert isinstance(refusal, RegistryRefusedError)
                    assert "run the same command again" in str(refusal)
                    assert ingested(registry, make_adapter, number) is None
                number += 1
            assert number < 2 * count + 2  # mostly something did go wrong
    assert len(faults.happened) == count
    if fault.startswith("COMMIT"):
        assert refused == count  # nobody knows what became of it
    if fault == "stall":
        assert refused == 0
    monkeypatch.setenv("LORAREG_DATABASE", database)
    expect_exactly(home, number)
    torture.held(count)


@pytest.mark.parametrize("fault", [*PASSING, *SLOW, "wrong bytes"])
def test_on_the_way_to_s3(
    fault: str,
    endpoint: tuple[str, int],
    tmp_path: Path,
    make_adapter: MakeAdapter,
    torture: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = "an error names the blob" if fault == "wrong bytes" else "it is asked again"
    torture.promise(f"{fault} on the way to S3: {outcome}, and nothing is lost or doubled", fixed=FIXED.get(fault, 0))
    home, random_, count = tmp_path / "home", random.Random(torture.seed), torture.runs(2, 1000)
    if fault in SLOW:
        timeout_s = 0.3 if torture.long else 1  # beside other tests, an answer may take a while
        monkeypatch.setattr(object_blobs, "TIMEOUT_S", timeout_s)
        monkeypatch.setattr(s3_server, "STALL_S", 1.5 * timeout_s)
    methods = METHODS.get(fault, ("PUT", "GET", "HEAD"))
    with s3_server.proxy(*endpoint) as (url, faults), Registry.open(home, create=True) as registry:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        registry.blobs.cold = True
        assert ingested(registry, make_adapter, 0) is None
        for number in range(1, count + 1):
            method = random_.choice(methods)
            faults.waiting.append((method, fault))
            refusal = ingested(registry, make_adapter, number)
            if fault == "wrong bytes":  # or what was there already was not believed, and put again
                assert refusal is None or (isinstance(refusal, IntegrityError) and "as s3://" in str(refusal))
                refusal = refusal and ingested(registry, make_adapter, number)
            assert refusal is None
            assert faults.waiting == []
            expect_read(registry, number, faults, fault)
    assert len(faults.happened) == 2 * count
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint[0]}:{endpoint[1]}")
    expect_exactly(home, count + 1)
    torture.held(count)


def expect_read(registry: Registry, number: int, faults: Any, fault: str) -> None:
    """What is read is what was written, or an error."""
    adapter = registry.adapter(f"task-{number}")
    faults.waiting.append(("GET", fault if "GET" in METHODS.get(fault, ("GET",)) else "500"))
    try:
        first = registry.read_file(adapter, WEIGHTS_FILE)
    except IntegrityError:
        assert fault == "wrong bytes"
        return
    assert fault != "wrong bytes"
    assert first == registry.read_file(adapter, WEIGHTS_FILE)


@pytest.mark.parametrize("fault", ["reset", "500", "lost answer"])
def test_within_a_blob_that_goes_in_parts(
    fault: str, endpoint: tuple[str, int], tmp_path: Path, torture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torture.promise(f"{fault} while a large blob goes to S3 in parts: it is there whole, or not at all")
    monkeypatch.setattr(object_blobs, "PART_BYTES", 5 << 20)
    random_, count = random.Random(torture.seed), torture.runs(2, 1000)
    with s3_server.proxy(*endpoint) as (url, faults):
        clean = ObjectBlobs(f"s3://bucket/{uuid.uuid4().hex}", tmp_path / "clean", 0)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = ObjectBlobs(clean.url, tmp_path / "proxied", 0)
        for _ in range(count):
            data = random_.randbytes((5 << 20) + 1)
            passing = random_.randrange(2)
            faults.waiting += (
                [("POST", "")] * passing + [("POST", fault)] if random_.random() < 0.5 else [("PUT", fault)]
            )
            digest = store.put_bytes(data)
            assert faults.waiting == []
            assert clean.get(digest) == data
            assert list(clean) == [digest]
            clean.delete([digest])
    torture.held(count)
