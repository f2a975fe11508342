"""Pushing: what a commit becomes, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from lorareg.cli.audit import AUDIT_FILE
from lorareg.cli.web import uploads
from lorareg.cli.web.guard import Limits
from lorareg.registry.peft_format import read_adapter
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, DIFFUSERS_FILE, WEIGHTS_FILE

Serve = Callable[..., TestClient]


def lines(files: Mapping[str, bytes], *others: tuple[str, Any], parent: str | None = None) -> bytes:
    header: dict[str, Any] = {"summary": "Upload", "description": ""}
    if parent:
        header["parentCommit"] = parent
    told = [("header", header), *others]
    for path, data in files.items():
        told.append(("file", {"path": path, "encoding": "base64", "content": base64.b64encode(data).decode()}))
    return "\n".join(json.dumps({"key": key, "value": value}) for key, value in told).encode()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def push(serve: Serve, tokens: Any) -> Callable[..., Any]:
    client = serve()

    def commit(task: str, body: bytes, kind: str = "write", revision: str = "main") -> Any:
        return client.post(f"/api/models/{task}/commit/{revision}", content=body, headers=tokens.headers(kind))

    commit.client = client  # type: ignore[attr-defined]
    return commit


def test_a_push_is_an_ingest(push: Any, home: Path, make_adapter: Any) -> None:
    files = files_of(make_adapter())
    answer = push("team/new", lines(files))
    assert answer.status_code == 200
    with Reader(home) as reader:
        adapter = reader.adapter("team/new")
        assert reader.read_file(adapter, WEIGHTS_FILE) == files[WEIGHTS_FILE]
        assert adapter.source == "pushed by writer"
        assert adapter.description == "Continue the text."
    assert push.client.get("/api/models/team/new").json()["sha"] == answer.json()["commitOid"]
    events = [json.loads(line) for line in (home / AUDIT_FILE).read_text().splitlines()]
    assert {"event": "uploaded", "by": "writer", "task": "team/new@1", "outcome": "new"}.items() <= events[-1].items()
    again = push("team/new", lines(files))
    assert again.json()["commitOid"] == answer.json()["commitOid"]


def test_other_weights_are_the_next_version(push: Any, home: Path, make_adapter: Any) -> None:
    push("team/new", lines(files_of(make_adapter("a"))))
    answer = push("team/new", lines({WEIGHTS_FILE: files_of(make_adapter("b", seed=1))[WEIGHTS_FILE]}))
    assert answer.status_code == 200
    with Reader(home) as reader:
        assert [one.version for one in reader.adapters(name="team/new")] == [1, 2]
        assert reader.read_file(reader.adapter("team/new@2"), CARD_FILE)  # what was not pushed stays


def test_another_card_alone_needs_no_weights(push: Any, home: Path) -> None:
    with Registry.open(home, create=False) as registry:
        weights = next(file for file in registry.files(registry.adapter("man-de")) if file.path == WEIGHTS_FILE)
        registry.blobs.path(weights.sha256).unlink()
    assert push("man-de", lines({CARD_FILE: b"# Man\n\nTranslate manuals.\n"})).status_code == 200
    with Reader(home) as reader:
        assert reader.adapter("man-de").description == "Translate manuals."
        assert len(reader.adapters(name="man-de")) == 1


def test_what_was_given_out_never_takes_the_originals_place(push: Any, home: Path) -> None:
    """Somebody downloads a reconstructed adapter, writes into its card, and pushes the folder back."""
    told = push.client.get("/api/models/man-de").json()["siblings"]
    names = [entry["rfilename"] for entry in told]
    files = {name: push.client.get(f"/man-de/resolve/main/{name}").content for name in names}
    assert b"Reconstructed by lorareg" in files[CARD_FILE]
    files[CARD_FILE] += b"\nA note.\n"
    with Reader(home) as reader:
        before = reader.read_file(reader.adapter("man-de"), WEIGHTS_FILE)
    assert files[WEIGHTS_FILE] != before
    assert push("man-de", lines(files)).status_code == 200
    with Reader(home) as reader:
        (adapter,) = reader.adapters(name="man-de")
        assert reader.read_file(adapter, WEIGHTS_FILE) == before
        card = reader.read_file(adapter, CARD_FILE)
    assert card.endswith(b"\nA note.\n")
    assert b"Reconstructed by lorareg" not in card


def test_a_commit_on_another_version_is_refused(push: Any, make_adapter: Any) -> None:
    body = lines(files_of(make_adapter()), parent="0" * 40)
    assert push("man-de", body).status_code == 412
    assert push("team/new", body).status_code == 412
    sha = push.client.get("/api/models/man-de").json()["sha"]
    assert push("man-de", lines({CARD_FILE: b"# New\n"}, parent=sha)).status_code == 200


def test_deleting_files(push: Any, home: Path, make_adapter: Any) -> None:
    push("team/new", lines(files_of(make_adapter())))
    assert push("team/new", lines({}, ("deletedFile", {"path": CARD_FILE}))).status_code == 200
    with Reader(home) as reader:
        assert CARD_FILE not in [file.path for file in reader.files(reader.adapter("team/new"))]
    answer = push("team/new", lines({}, ("deletedFile", {"path": WEIGHTS_FILE})))
    assert answer.status_code == 400
    whole = files_of(make_adapter("c", seed=3))
    assert push("team/new", lines(whole, ("deletedFolder", {"path": "./"}))).status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no adapter"),
        (b"not json", "Line 1"),
        (b"[1]", "Line 1"),
        (b"[" * 100_000, "Line 1"),
        (b'{"key": "file", "value": {}}', "Line 1"),
        (lines({}, ("file", {"path": "README.md", "content": "%%%"})), "not base64"),
        (lines({}, ("file", {"path": "README.md", "content": "", "encoding": "utf-8"})), "base64"),
        (lines({}, ("lfsFile", {"path": "x.safetensors", "oid": "0"})), "LFS"),
        (lines({}, ("copyFile", {"path": "x"})), "copyFile"),
        (lines({"../../x": b""}), "File path"),
        (lines({"/etc/passwd": b""}), "File path"),
        (lines({"a\\b": b""}), "File path"),
        (lines({"adapter_model.bin": b"\x80\x02."}), "pickle"),
        (lines({CONFIG_FILE: b"{}", WEIGHTS_FILE: b"junk"}), "base_model_name_or_path"),
        (b"\n".join([b'{"key":"header","value":{}}'] * 10_001), "10000 lines"),
    ],
)
def test_what_is_refused(push: Any, home: Path, tmp_path: Path, body: bytes, reason: str) -> None:
    answer = push("team/new", body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert str(tmp_path) not in answer.text
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []
    with Reader(home) as reader:
        assert "team/new" not in [adapter.name for adapter in reader.adapters()]


@pytest.mark.parametrize("task", ["a--b", "..", "a/b/c", "-x", "a" * 97])
def test_names_that_are_none(push: Any, task: str) -> None:
    assert push(task, lines({})).status_code in (400, 404)


def test_only_main_can_be_pushed_to(push: Any) -> None:
    assert push("team/new", lines({}), revision="refs%2Fpr%2F1").status_code == 400


def test_preupload_leaves_out_what_is_not_looked_at(serve: Serve, tokens: Any) -> None:
    client = serve()
    names = [CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, "optimizer.pt", "checkpoint-1/adapter_model.safetensors", "a.bin"]
    asked = {"files": [{"path": name, "sample": "", "size": 1} for name in names]}
    told = client.post("/api/models/man-de/preupload/main", json=asked, headers=tokens.headers("write")).json()["files"]
    assert {one["path"] for one in told if not one["shouldIgnore"]} == {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}
    assert {one["uploadMode"] for one in told} == {"regular"}
    tree = {entry["path"]: entry["oid"] for entry in client.get("/api/models/man-de/tree/main").json()}
    assert {one["path"]: one["oid"] for one in told}[CONFIG_FILE] == tree[CONFIG_FILE]
    for body in ({}, {"files": 1}, {"files": [{"path": 1}]}, []):
        answer = client.post("/api/models/man-de/preupload/main", json=body, headers=tokens.headers("write"))
        assert answer.status_code == 400


def test_creating_says_whether_it_is_there(serve: Serve, tokens: Any) -> None:
    client, headers = serve(), tokens.headers("team-write")
    there = client.post("/api/repos/create", json={"name": "man-nl", "organization": "team"}, headers=headers)
    assert (there.status_code, there.json()["url"]) == (409, "http://localhost/team/man-nl")
    fresh = client.post("/api/repos/create", json={"name": "team/fresh"}, headers=headers)
    assert (fresh.status_code, fresh.json()["url"]) == (200, "http://localhost/team/fresh")
    assert client.post("/api/repos/create", json={"name": "x", "type": "dataset"}, headers=headers).status_code == 400
    assert client.post("/api/repos/create", json={"name": 1}, headers=headers).status_code == 400
    assert client.post("/api/repos/create", content=b"{", headers=headers).status_code == 400


def test_deleting_is_quarantine(serve: Serve, tokens: Any, home: Path) -> None:
    client = serve()
    answer = client.request("DELETE", "/api/repos/delete", json={"name": "man-de"}, headers=tokens.headers("write"))
    assert answer.json() == {"removed": [1]}
    assert client.get("/api/models/man-de").status_code == 404
    with Registry.open(home, create=False) as registry:
        registry.restore("man-de")
    assert client.get("/api/models/man-de").status_code == 200


def test_labels(serve: Serve, tokens: Any) -> None:
    client, headers = serve(), tokens.headers("write")
    assert client.post("/api/models/man-de/tag/main", json={"tag": "prod"}, headers=headers).status_code == 200
    assert client.get("/api/models/man-de/revision/prod").status_code == 200
    assert client.request("DELETE", "/api/models/man-de/tag/prod", headers=headers).status_code == 200
    for method, path, body, status in (
        ("POST", "/api/models/man-de/tag/v9", {"tag": "prod"}, 404),
        ("POST", "/api/models/nobody/tag/main", {"tag": "prod"}, 404),
        ("POST", "/api/models/man-de/tag/main", {"tag": "7"}, 400),
        ("POST", "/api/models/man-de/tag/main", {}, 400),
        ("DELETE", "/api/models/man-de/tag/prod", None, 404),
        ("DELETE", "/api/models/nobody/tag/prod", None, 404),
    ):
        assert client.request(method, path, json=body, headers=headers).status_code == status, path


def test_bodies_are_bounded(serve: Serve, tokens: Any, make_adapter: Any) -> None:
    client = serve(limits=Limits(body_bytes=1000))
    body = lines(files_of(make_adapter()))
    assert len(body) > 1000
    path, headers = "/api/models/team/new/commit/main", tokens.headers("write")
    assert client.post(path, content=body, headers=headers).status_code == 413
    assert client.post(path, content=iter([body[:600], body[600:]]), headers=headers).status_code == 413


def test_uploads_at_once_are_bounded(serve: Serve, tokens: Any) -> None:
    answer = serve(limits=Limits(uploads=0)).post(
        "/api/models/team/new/commit/main", content=lines({}), headers=tokens.headers("write")
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_a_full_disk_takes_no_place_for_good(
    serve: Serve, tokens: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> str:
        raise OSError(28, "No space left on device")

    client = serve()

    def push() -> Any:
        body, headers = lines(files_of(make_adapter())), tokens.headers("write")
        return client.post("/api/models/team/new/commit/main", content=body, headers=headers)

    with monkeypatch.context() as full:
        full.setattr(uploads.tempfile, "mkdtemp", fail)
        assert [push().status_code for _ in range(3)] == [503] * 3
    assert push().status_code == 200


def test_what_is_refused_is_in_the_audit_log_and_short(push: Any, home: Path) -> None:
    for body in (b"not json", lines({}, parent="0" * 40), lines({"a" * 1_000_000: b""})):
        assert push("team/new", body).status_code in (400, 412)
    said = (home / AUDIT_FILE).read_text().splitlines()
    events = [json.loads(line) for line in said if "upload refused" in line]
    assert [event["reason"][:25] for event in events] == [
        "Line 1 of the commit is n",
        "The task has another vers",
        "File path 'aaaaaaaaaaaaaa",
    ]
    assert max(map(len, said)) < 1000


def test_small_bodies_are_small(serve: Serve, tokens: Any) -> None:
    """Whoever may read may ask these, many at once: what they bring is not kept in memory until it is looked at."""
    client = serve()
    large = b'{"paths": ["' + b"a" * (2 << 20) + b'"]}'
    for kind in ("none", "read"):
        told = client.post("/api/models/man-de/paths-info/main", content=large, headers=tokens.headers(kind))
        assert told.status_code == 413
    create = client.post("/api/repos/create", content=large, headers=tokens.headers("write"))
    assert create.status_code == 413


def test_a_line_cannot_take_many_times_its_bytes(push: Any) -> None:
    body = b'{"key": "header", "value": [' + b"[]," * 500_000 + b"[]]}"
    assert "too many parts" in push("team/new", body).json()["error"]


def test_of_two_pushes_from_one_version_the_second_is_refused(
    push: Any, home: Path, make_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = push("team/new", lines(files_of(make_adapter()))).json()["commitOid"]
    bodies = [lines(files_of(make_adapter(str(seed), seed=seed)), parent=parent) for seed in (1, 2)]
    real, meet = uploads._complete, threading.Barrier(2, timeout=1)

    def complete(*given: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            meet.wait()  # both have looked at the version before, if they can
        real(*given)

    monkeypatch.setattr(uploads, "_complete", complete)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda body: push("team/new", body).status_code, bodies))
    assert sorted(answers) == [200, 412]
    with Reader(home) as reader:
        assert len(reader.adapters(name="team/new")) == 2


@pytest.fixture
def lone(home: Path, tmp_path: Path) -> Callable[[float], bytes]:
    """Weights in one file, as diffusers writes them; the first are those of `team/picture`."""
    path = tmp_path / DIFFUSERS_FILE

    def make(value: float) -> bytes:
        shapes = {"A": (2, 4), "B": (4, 2)}
        tensors = {f"unet.down.to_q.lora_{ab}.weight": np.full(s, value, np.float32) for ab, s in shapes.items()}
        save_file(tensors, path, {"format": "pt"})
        return path.read_bytes()

    make(1)
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_adapter(path, "some/unet"), name="team/picture")
    return make


def test_a_lone_file_has_versions_too(push: Any, home: Path, lone: Callable[[float], bytes]) -> None:
    answer = push("team/picture", lines({DIFFUSERS_FILE: lone(2)}))
    assert answer.status_code == 200, answer.text
    assert push.client.get(f"/team/picture/resolve/main/{DIFFUSERS_FILE}").content == lone(2)
    with Reader(home) as reader:
        assert {one.base_model for one in reader.adapters(name="team/picture")} == {"some/unet"}
    again = push("team/picture", lines({DIFFUSERS_FILE: lone(2)}))
    assert again.json()["commitOid"] == answer.json()["commitOid"]
