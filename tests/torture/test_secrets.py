"""Canaries in every place that a secret can have, and a look at everything that lorareg says, logs and keeps."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frozen_registries import thaw

CANARY = "c4n4ry"
"""Every secret has it somewhere; in no other word of lorareg's is it."""

TASK = "alone/one"
NOWHERE = "127.0.0.1:1"  # where nothing answers
Run = Any


def secret(what: str) -> str:
    """A secret that tells where it was seen from where it came."""
    return f"{what}-{CANARY}-kept"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment, where clients of lorareg's dependencies look for them too."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "LORAREG_ENGINE_API_KEY",
        "PGPASSWORD",
    ):
        monkeypatch.setenv(name, secret(name))
    monkeypatch.setenv("AWS_REGION", "nowhere-1")
    monkeypatch.setenv("LORAREG_DEBUG", "1")  # tracebacks are looked at too


def leaks(folder: Path, *said: str) -> list[str]:
    """Where a canary is: in what was said, or in any file or name below a folder, plain or base64."""
    found = [text for text in said if has_canary(text.encode())]
    for path in folder.rglob("*"):
        data = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        found += [str(path)] if has_canary(data) else []
    return found


def has_canary(data: bytes) -> bool:
    return any(needle in data for needle in (CANARY.encode(), *ENCODED))


ENCODED = [base64.b64encode(bytes(before) + CANARY.encode())[-(-8 * before // 6) : -4] for before in range(3)]
"""As base64 has it, after each number of bytes there can be before it; without ends that have bits of others."""


@pytest.mark.parametrize("before", range(5))
def test_a_canary_is_found_in_base64(before: int, tmp_path: Path) -> None:
    text = base64.b64encode(b"x" * before + secret("key").encode()).decode()
    assert CANARY not in text
    (tmp_path / "file").write_text(text)
    assert len(leaks(tmp_path, text)) == 2
    assert leaks(tmp_path / "none", "nothing here") == []


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A registry with adapters, codes, generators and certificates."""
    return thaw("0003", tmp_path) / "home"


def url(scheme: str, place: str) -> str:
    return f"{scheme}://user:{secret('url')}@{place}"


REFUSED: dict[str, tuple[dict[str, str], tuple[str, ...], int]] = {
    "a store with a password": ({"LORAREG_STORE": url("s3", "bucket/prefix")}, ("check",), 28),
    "a store with a signature": ({"LORAREG_STORE": f"s3://bucket/p?X-Sig={secret('url')}"}, ("check",), 28),
    "a store of no kind": ({"LORAREG_STORE": url("ftp", "host/prefix")}, ("check",), 28),
    "a move to a store": ({}, ("migrate", "--store", url("s3", "bucket/prefix")), 28),
    "a move to a store of no kind": ({}, ("migrate", "--store", url("gopher", "host/x")), 28),
    "a second copy": ({}, ("replicate", url("ftp", f"{NOWHERE}/copy")), 43),
    "a second copy with a token": ({}, ("replicate", f"memory://copy?token={secret('url')}"), 43),
    "a repair": ({}, ("replicate", "--repair", url("sftp", f"{NOWHERE}/copy")), 43),
    "an upstream": ({}, ("serve", "--port", "0", "--upstream", url("https", "hub.example")), 61),
    "an engine": ({}, ("sync", "--engine", "vllm", "--to", url("http", NOWHERE), TASK), 48),
    "an engine that is away": ({}, ("sync", "--engine", "vllm", "--to", f"http://{NOWHERE}", TASK), 48),
    "rows elsewhere": ({}, ("migrate", "--to", url("postgresql", f"{NOWHERE}/db")), 74),
    "rows elsewhere, by option": ({}, ("migrate", "--to", f"postgresql://{NOWHERE}/db?password={secret('url')}"), 74),
    "rows in no database": ({}, ("migrate", "--to", url("mysql", f"{NOWHERE}/db")), 20),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_secret_in_a_wrong_place_is_refused_without_repeating_it(
    case: str, filled: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, arguments, exit_code = REFUSED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = run(*arguments, "--home", filled)
    assert done.exit_code == exit_code, done.err
    assert leaks(filled, done.out, done.err) == []


@pytest.mark.parametrize("tail", ["/db", "/db?password=x", "/d@b", ":notaport/db", "/db?nonsense=1"])
def test_a_database_that_is_away_or_misspelt_is_told_without_its_password(
    tail: str, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAREG_DATABASE", url("postgresql", f"{NOWHERE}{tail}"))
    for arguments in (("list",), ("check",), ("migrate",)):
        done = run(*arguments, "--home", home)
        assert done.exit_code in (20, 74), done.err
        assert leaks(home, done.out, done.err) == []


def test_commands_keep_and_say_no_secret(filled: Path, run: Run, tmp_path: Path, torture: Any) -> None:
    torture.promise("No secret is in any output, traceback, log, row or blob", fixed=4)
    private = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519").Ed25519PrivateKey.generate()
    from cryptography.hazmat.primitives import serialization as forms

    pem = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    key, broken = tmp_path / "key.pem", tmp_path / "broken.pem"
    key.write_bytes(pem)
    broken.write_text(f"-----BEGIN PRIVATE KEY-----\n{secret('pem')}\n-----END PRIVATE KEY-----\n")
    out = tmp_path / "out"
    out.mkdir()
    commands = (
        ("list",),
        ("report",),
        ("report", "--html", out / "report.html"),
        ("check", "--read-data"),
        ("show", TASK),
        ("verify", "--all"),
        ("certificate", TASK, "-o", out / "c.json", "--sign", key),
        ("certificate", TASK, "-o", out / "d.json", "--sign", broken),
        ("materialize", TASK, "-o", out / "task"),
        ("export", "-o", out / "bundle.tar"),
        ("replicate", tmp_path / "out" / "copy"),
        ("prune", "--apply"),
        ("gc",),
    )
    said = []
    for command in commands:
        done = run(*command, "--home", filled)
        assert done.exit_code == (44 if broken in command else 0), done.err
        said += [done.out, done.err]
    body = pem.splitlines()[1].decode()
    assert leaks(filled, *said) + leaks(out) == []
    for path in (*filled.rglob("*"), *out.rglob("*")):
        assert not path.is_file() or body.encode() not in path.read_bytes()
    assert not any(body in text for text in said)
    torture.held(len(commands))


def test_a_token_is_told_once(filled: Path, run: Run) -> None:
    text = run("token", "create", "canary", "--home", filled, "--json").data["token"]
    hidden = text.rpartition("_")[2]
    said = [
        run(*command, "--home", filled) for command in (("token", "list"), ("report",), ("token", "revoke", "canary"))
    ]
    assert all(hidden not in done.out + done.err for done in said)
    for path in filled.rglob("*"):
        assert not path.is_file() or hidden.encode() not in path.read_bytes(), path


def test_a_store_that_is_away_is_told_without_its_keys(
    home: Path, run: Run, make_adapter: Any, monkeypatch: pytest.MonkeyPatch, torture: Any
) -> None:
    torture.promise("The keys of a store that does not answer are told to nobody")
    monkeypatch.setattr("lorareg.registry.object_blobs.TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    monkeypatch.setenv("LORAREG_STORE", "s3://bucket/prefix")
    commands = torture.runs(1, 2)
    for command in (("ingest", make_adapter("task")), ("check",))[:commands]:
        done = run(*command, "--home", home)
        assert done.exit_code != 0
        assert leaks(home, done.out, done.err) == []
    torture.held(commands)


@pytest.fixture
def server(filled: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that asks for tokens, and the file that has all it says."""
    log = tmp_path / "server.log"
    command = [sys.executable, "-m", "lorareg.cli", "serve", "--port", "0", "--tokens", "--home", str(filled)]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ)
    try:
        yield _address(process, log), log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    import time

    for _ in range(600):
        found = re.search(r"at (http://[\d.:]+)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError("the server says no address")


def test_a_server_logs_no_secret(filled: Path, run: Run, request: pytest.FixtureRequest, torture: Any) -> None:
    torture.promise("No secret that a client sends is in a server's answers, logs or registry")
    httpx2 = pytest.importorskip("httpx2")
    text = run("token", "create", "canary", "--scope", "write", "--home", filled, "--json").data["token"]
    hidden = text.rpartition("_")[2]
    address, log = request.getfixturevalue("server")
    wrong = f"lrg_1_{CANARY}{'x' * (43 - len(CANARY))}"
    headers: list[dict[str, str]] = [
        {"Authorization": f"Bearer {text}"},
        {"Authorization": f"Bearer {wrong}"},
        {"Authorization": f"Bearer {secret('bearer')}"},
        {"Authorization": "Basic " + base64.b64encode(f"x:{wrong}".encode()).decode()},
        {"Authorization": f"Digest {secret('digest')}"},
        {"Cookie": f"session={secret('cookie')}"},
        {"Proxy-Authorization": f"Basic {secret('proxy')}", "X-Api-Key": secret("key")},
        {"X-Request-Id": secret("id")},
    ]
    paths = [
        "/api/models",
        "/api/models/task",
        "/task/resolve/main/adapter_model.safetensors",
        "/",
        "/metrics",
        "/nope",
    ]
    answers = []
    with httpx2.Client(base_url=address) as client:
        for one in headers:
            answers += [client.get(path, headers=one) for path in paths]
        content = base64.b64encode(b"# Another card\n").decode()
        lines = [
            {"key": "header", "value": {"summary": "a push"}},
            {"key": "file", "value": {"path": "README.md", "content": content, "encoding": "base64"}},
        ]
        for token in (text, wrong):
            body = "\n".join(json.dumps(line) for line in lines)
            push = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"}
            answers.append(client.post("/api/models/alone/one/commit/main", content=body, headers=push))
    assert {200, 401} <= {answer.status_code for answer in answers}
    told = [answer.text + repr(answer.headers) for answer in answers] + [log.read_text()]
    assert len(log.read_text().splitlines()) >= len(answers)
    assert leaks(filled, *told) == []
    assert not any(hidden in one for one in told)
    for path in filled.rglob("*"):
        assert not path.is_file() or hidden.encode() not in path.read_bytes(), path
    torture.held(len(answers))
