"""Proving, letting go and bringing back, as a user does it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry.store import Registry

Run = Callable[..., Any]


@pytest.fixture
def coded(run: Run, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real adapters with codes: made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "coded"
    if not kept.exists():
        assert run("compress", "--arch", "mean", "--home", home, "-q").exit_code == 0
        shutil.copytree(home, kept)
    shutil.rmtree(home)
    shutil.copytree(kept, home)
    return home


def test_from_originals_to_codes_alone_and_what_is_said_of_them(run: Run, coded: Path, tmp_path: Path) -> None:
    copy, at = tmp_path / "copy", ("--home", coded)
    assert "0 files (0 B) could go, 3 originals stay" in run("prune", *at).out
    assert "which has no second copy" in run("prune", *at).out
    assert run("replicate", copy, *at, "--json").data["generators"] == 1
    assert run("pin", "man-de", "--reason", "a customer", *at).exit_code == 0
    plan = run("prune", *at, "--json").data
    assert {(entry["what"], entry["kind"]) for entry in plan["would_go"]} == {
        ("man-nl@1", "original"),
        ("src-rust@1", "original"),
    }
    assert [entry["reason"] for entry in plan["stays"]] == ["is pinned: a customer"]
    applied = run("prune", "--apply", *at, "--json").data
    assert applied["size_bytes"] == plan["would_go_bytes"] == 2 * 476224
    assert run("restore", "man-nl", *at).out == "1 files of man-nl@1 are out of quarantine (476 kB)\n"
    assert "0 files deleted" in run("prune", "--sweep", *at).out
    assert "1 files deleted, 476 kB freed" in run("prune", "--sweep", "--grace-days", "0", *at).out
    assert run("check", "--read-data", *at).exit_code == 0
    verified = {one["ref"]: one for one in run("verify", "--all", *at, "--json").data["adapters"]}
    assert {ref: one["original"] for ref, one in verified.items()} == {
        "man-de@1": "kept",
        "man-nl@1": "kept",
        "src-rust@1": "pruned",
    }
    assert "estimated" in run("verify", "src-rust", *at).out
    out = tmp_path / "out"
    assert run("materialize", "src-rust", "-o", out, *at).exit_code == 0
    assert "**Reconstructed by lorareg; these are not the original weights.**" in (out / "README.md").read_text()
    for place in (copy, coded):
        assert run("materialize", "src-rust", "-o", out, "--force", "--home", place).exit_code == 0
    totals = run("report", *at, "--json").data["totals"]
    assert totals["stored"]["certificates"] > 3 * 2048
    assert (
        totals["on_disk_bytes"]
        == sum(f.stat().st_size for f in (coded / "blobs").rglob("*") if f.is_file())
        + (totals["stored"]["task_vectors"] + totals["stored"]["certificates"] + totals["stored"]["rows"])
        + totals["stored"]["database_overhead"]
        + totals["beside"]["reserve"]
    )


def test_verify_shows_the_worst_modules_of_one(run: Run, coded: Path) -> None:
    result = run("verify", "man-de", "--home", coded)
    assert result.exit_code == 0
    assert "Worst 5 of 60 modules; 0 weights are not a number or infinite" in result.out
    assert "man-de@1 proven: its stored bytes decode to the recorded output; its error was measured anew" in result.out


def test_verify_fails_where_something_is_damaged(run: Run, coded: Path) -> None:
    with Registry.open(coded, create=False) as registry:
        encoding = registry.encoding(registry.adapter("man-nl").id)
        assert encoding is not None
        path = registry.blobs.path(encoding.sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = run("verify", "--all", "--home", coded)
    assert result.exit_code == 40
    assert "1 of 3 adapters are not what was certified" in result.err
    assert f"man-nl@1: Blob {path.parent.name}{path.name} is damaged" in result.out


def test_verify_makes_a_certificate_where_there_is_none(run: Run, coded: Path) -> None:
    with Registry.open(coded, create=False) as registry, registry.writing() as session:
        session.connection().exec_driver_sql("DELETE FROM certificate")
    assert "has no certificate; `lorareg verify` makes one" in run("prune", "--home", coded).out
    missing = run("certificate", "man-de", "--home", coded)
    assert (missing.exit_code, "man-de@1 has no certificate" in missing.err) == (41, True)
    assert "a certificate was made" in run("verify", "man-de", "--home", coded).out
    assert run("certificate", "man-de", "--home", coded).data["stale"] is False


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ((), 6, "Name the adapters to verify, or pass --all"),
        (("man-de", "--all"), 6, "Name the adapters to verify, or pass --all"),
        (("nobody",), 4, "No adapter 'nobody'"),
        (("--all", "--level", "taste"), 30, "--level taste is not valid: the levels are weight, kl, gain"),
        (("--all", "--level", "kl"), 30, "--level kl is not valid: what a model does is measured on it"),
    ],
)
def test_what_verify_refuses(run: Run, home: Path, arguments: tuple[str, ...], exit_code: int, words: str) -> None:
    result = run("verify", *arguments, "--home", home)
    assert (result.exit_code, words in result.err) == (exit_code, True), result.err


def test_adapters_without_a_code_verify_as_they_came(run: Run, home: Path) -> None:
    (one,) = run("verify", "man-de", "--home", home, "--json").data["adapters"]
    assert (one["tier"], one["holds"], one["encoding_id"]) == ("original", True, None)


def test_certificates_are_exported_signed_and_checked(run: Run, coded: Path, tmp_path: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as s

    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    file, at = tmp_path / "c.json", ("--home", coded)
    assert run("certificate", "man-de", "--sign", tmp_path / "key.pem", "-o", file, *at).exit_code == 0
    exported = json.loads(file.read_text())
    assert exported["signature"]["algorithm"] == "ed25519"
    assert len(exported["statement"]["projections"]["original"]) == len(exported["decoded_projections"]) == 1024
    held = run("certificate", "man-de", "--check", file, *at)
    assert f"signed by the key {exported['signature']['public_key']}" in held.out
    other = run("certificate", "man-nl", "--check", file, *at)
    assert (other.exit_code, "it is not the certificate of man-nl@1 as it is stored now" in other.err) == (44, True)
    assert run("certificate", "man-de", "--check", file, "-o", file, *at).exit_code == 2


def test_gc_lists_before_it_deletes(run: Run, home: Path) -> None:
    with Registry.open(home, create=False) as registry:
        digest = registry.blobs.put_bytes(b"nobody's")
    assert "0 files that nothing refers to" in run("gc", "--home", home).out
    listed = run("gc", "--grace-days", "0", "--home", home, "--json").data
    assert ([one["sha256"] for one in listed["orphans"]], listed["applied"]) == ([digest], False)
    assert (
        "1 files that nothing refers to (8 B) deleted." in run("gc", "--apply", "--grace-days", "0", "--home", home).out
    )
    assert digest not in registry.blobs


def test_odd_wishes(run: Run, home: Path) -> None:
    assert run("prune", "--apply", "--sweep", "--home", home).exit_code == 2
    negative = run("prune", "--sweep", "--grace-days", "-1", "--home", home)
    assert (negative.exit_code, "--grace-days -1 is not valid: it is at least 0 days" in negative.err) == (30, True)
    unpinned = run("pin", "man-de", "--delete", "--home", home)
    assert (unpinned.exit_code, "man-de@1 is not pinned" in unpinned.err) == (6, True)
    assert run("pin", "man-de", "--home", home).exit_code == 0
    assert "no longer pinned" in run("pin", "man-de", "--delete", "--home", home).out


def test_a_second_copy_mends_damage(run: Run, coded: Path, tmp_path: Path) -> None:
    run("replicate", tmp_path / "copy", "--home", coded)
    with Registry.open(coded, create=False) as registry:
        generator = registry.blobs.path(registry.generator(1).sha256)
    generator.unlink()
    assert run("check", "--home", coded).exit_code == 26
    assert "1 files mended" in run("replicate", tmp_path / "copy", "--repair", "--home", coded).out
    assert run("check", "--read-data", "--home", coded).exit_code == 0
