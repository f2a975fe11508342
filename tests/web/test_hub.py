"""The Hub's protocol, read: what each route says, and what it says of what is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorareg.cli.web import hub
from lorareg.compress import materialize
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

Serve = Callable[..., TestClient]
WEIGHTS = "adapter_model.safetensors"


def test_files_are_what_materialize_writes(serve: Serve, home: Path, tmp_path: Path) -> None:
    client = serve()
    for task in ("man-de", "team/man-nl"):
        materialize.materialize(home, task, tmp_path / "out" / task)
        written = {path.name: path.read_bytes() for path in (tmp_path / "out" / task).iterdir()}
        told = client.get(f"/api/models/{task}", params={"blobs": "true"}).json()
        assert {entry["rfilename"]: entry["size"] for entry in told["siblings"]} == {
            n: len(d) for n, d in written.items()
        }
        for name, data in written.items():
            answer = client.get(f"/{task}/resolve/main/{name}")
            assert answer.content == data
            assert answer.headers["x-repo-commit"] == told["sha"]
            assert int(answer.headers["content-length"]) == len(data)
            assert "content-encoding" not in answer.headers


def test_head_decodes_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "restore_weights", pytest.fail)
    answer = serve().head(f"/team/man-nl/resolve/main/{WEIGHTS}", headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.headers["content-length"] == "476224"
    assert len(answer.headers["etag"].strip('"')) == 64
    assert "content-encoding" not in answer.headers


def test_weights_are_decoded_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, real = [], hub.restore_weights
    monkeypatch.setattr(hub, "restore_weights", lambda *args: decoded.append(args) or real(*args))
    client = serve()
    digests = {hashlib.sha256(client.get(f"/man-de/resolve/main/{WEIGHTS}").content).hexdigest() for _ in range(3)}
    assert digests == {client.head(f"/man-de/resolve/main/{WEIGHTS}").headers["etag"].strip('"')}
    assert len(decoded) == 1


def test_ranges(serve: Serve) -> None:
    client, path = serve(), f"/man-de/resolve/main/{WEIGHTS}"
    whole = client.get(path).content
    part = client.get(path, headers={"Range": "bytes=1000-"})
    assert (part.status_code, part.content) == (206, whole[1000:])
    assert part.headers["content-range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert client.get(path, headers={"Range": "bytes=-10"}).content == whole[-10:]
    several = client.get(path, headers={"Range": "bytes=0-1,10-11"})
    assert several.status_code == 206
    assert several.headers["content-type"].startswith("multipart/byteranges")
    past = client.get(path, headers={"Range": f"bytes={len(whole)}-"})
    assert past.status_code == 416
    assert past.headers["content-range"] == f"bytes */{len(whole)}"
    etag = client.head(path).headers["etag"]
    assert client.get(path, headers={"Range": "bytes=5-", "If-Range": etag}).status_code == 206
    assert client.get(path, headers={"Range": "bytes=5-", "If-Range": '"another"'}).status_code == 200
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/nobody", "RepoNotFound"),
        ("/api/models/team/nobody", "RepoNotFound"),
        ("/api/models/man-de/revision/v9", "RevisionNotFound"),
        ("/api/models/man-de/revision/refs%2Fpr%2F1", "RevisionNotFound"),
        ("/man-de/resolve/main/config.json", "EntryNotFound"),
        ("/man-de/resolve/none/adapter_config.json", "RevisionNotFound"),
        ("/HuggingFaceTB/SmolLM2-135M/resolve/main/config.json", "RepoNotFound"),
        ("/api/models/man-de/tree/main/folder", "EntryNotFound"),
        ("/api/models/man-de@1", "RepoNotFound"),
        ("/api/datasets/man-de", "RepoNotFound"),
        ("/nothing", "RepoNotFound"),
    ],
)
def test_what_is_not_there_says_so_by_the_hubs_codes(serve: Serve, path: str, code: str) -> None:
    answer = serve().get(path)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, code)
    assert answer.json()["error"] == answer.headers["x-error-message"]


def test_versions_labels_and_commits_are_revisions(serve: Serve, home: Path, make_adapter: Any) -> None:
    from lorareg.registry.peft_format import read_folder

    client = serve()
    first = client.get("/api/models/team/man-nl").json()["sha"]
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_folder(make_adapter()), name="team/man-nl")
    newest = client.get("/api/models/team/man-nl").json()["sha"]
    assert newest != first
    for revision, commit in (("v1", first), ("1", first), ("stable", first), (first, first), ("v2", newest)):
        assert client.get(f"/api/models/team/man-nl/revision/{revision}").json()["sha"] == commit
    refs = client.get("/api/models/team/man-nl/refs").json()
    assert refs["branches"] == [{"name": "main", "ref": "refs/heads/main", "targetCommit": newest}]
    assert {tag["name"]: tag["targetCommit"] for tag in refs["tags"]} == {"v1": first, "v2": newest, "stable": first}
    assert [entry["id"] for entry in client.get("/api/models/team/man-nl/commits/main").json()] == [newest, first]


def test_a_removed_task_is_gone_at_once(serve: Serve, home: Path) -> None:
    client = serve()
    assert client.get("/api/models/man-de").status_code == 200
    with Registry.open(home, create=False) as registry:
        registry.remove(registry.adapter("man-de"))
    assert client.get("/api/models/man-de").status_code == 404


def test_another_card_is_another_commit(serve: Serve, home: Path) -> None:
    client = serve()
    before = client.get("/api/models/man-de").json()["sha"]
    with Registry.open(home, create=False) as registry:
        registry.put_files(registry.adapter("man-de"), {"README.md": b"# Another\n"})
    assert client.get("/api/models/man-de").json()["sha"] != before
    assert client.get("/man-de/resolve/main/README.md").text.endswith("# Another\n")


def test_listing_searches_filters_and_pages(serve: Serve) -> None:
    client = serve()

    def names(**query: Any) -> list[str]:
        return [entry["id"] for entry in client.get("/api/models", params=query).json()]

    assert names() == ["man-de", "other/src-rust", "team/man-nl"]
    assert names(search="MAN") == ["man-de", "team/man-nl"]
    assert names(author="team") == ["team/man-nl"]
    assert names(filter="lora,peft") == names()
    assert names(filter="tensorflow") == []
    assert names(limit=1) == ["man-de"]
    page, seen = client.get("/api/models", params={"limit": 1, "search": "man"}), []
    while True:
        seen += [entry["id"] for entry in page.json()]
        if "next" not in page.links:
            break
        page = client.get(page.links["next"]["url"])
    assert seen == ["man-de", "team/man-nl"]


def test_tree_and_paths(serve: Serve) -> None:
    client = serve()
    told = client.get("/api/models/man-de/tree/main", params={"recursive": "true", "expand": "false"}).json()
    assert [entry["path"] for entry in told] == ["README.md", "adapter_config.json", WEIGHTS]
    config = client.get("/man-de/resolve/main/adapter_config.json").content
    git_id = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    assert told[1]["oid"] == git_id
    weights = client.get(f"/man-de/resolve/main/{WEIGHTS}").content
    assert told[2]["lfs"]["oid"] == hashlib.sha256(weights).hexdigest()
    for body in ({"data": {"paths": ["README.md", "no"]}}, {"json": {"paths": ["README.md", "no"]}}):
        found = client.post("/api/models/man-de/paths-info/main", **body).json()
        assert [entry["path"] for entry in found] == ["README.md"]
    assert client.post("/api/models/man-de/paths-info/main", json=[1]).status_code == 400
    assert client.post("/api/models/man-de/paths-info/main", json={"paths": [1]}).status_code == 400


def test_damaged_bytes_are_never_sent(serve: Serve, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Reader(home) as reader:
        encoding = reader.encoding(reader.adapter("man-de").id)
        assert encoding is not None
        path = reader.blobs.path(encoding.sha256)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    answer = serve().get(f"/man-de/resolve/main/{WEIGHTS}")
    assert (answer.status_code, answer.headers["x-error-code"]) == (500, "Damaged")
    assert encoding.sha256 not in answer.text
    (told,) = [record.told for record in caplog.records if record.getMessage() == "failed"]
    assert told["kind"] == "IntegrityError"


def test_a_lone_file_is_offered_under_its_own_name(serve: Serve, home: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from lorareg.registry.peft_format import read_adapter

    tensors = {
        f"unet.down.to_q.lora_{ab}.weight": np.ones(shape, np.float32) for ab, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", {"format": "pt"})
    with Registry.open(home, create=False) as registry:
        registry.ingest(read_adapter(tmp_path / "pytorch_lora_weights.safetensors", "some/unet"), name="team/picture")
    client = serve()
    told = client.get("/api/models/team/picture").json()
    assert [entry["rfilename"] for entry in told["siblings"]] == ["pytorch_lora_weights.safetensors"]
    data = client.get("/team/picture/resolve/main/pytorch_lora_weights.safetensors").content
    assert data == (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()


def test_health_metrics_and_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lorareg.serve")
    client = serve()
    assert client.get("/healthz").json() == {"status": "ok"}
    client.get(f"/man-de/resolve/main/{WEIGHTS}?secret=1", headers={"Authorization": ""})
    figures = client.get("/metrics").text
    assert 'lorareg_requests_total{method="GET",route="resolve",status="200"} 1.0' in figures
    assert "lorareg_decoded_misses 1.0" in figures
    assert "lorareg_decoded_bytes 476224.0" in figures
    lines = [json.dumps(record.told) for record in caplog.records if record.getMessage() == "request"]
    assert any('"status": 200, "bytes": 476224' in line for line in lines)
    assert "secret" not in "".join(lines)
