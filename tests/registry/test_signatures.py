"""Signed certificates: whose they are, and that nothing in them was changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry.certificate import digest_of
from lorareg.registry.errors import MissingExtraError, SignatureError
from lorareg.registry.signatures import check_export, sign

STATEMENT = {"format": "lorareg-certificate-1", "adapter": {"name": "task"}, "error": 0.1}
EXPORTED = {"statement": STATEMENT, "digest": digest_of(STATEMENT)}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    return write_key(tmp_path / "key.pem", ed25519.Ed25519PrivateKey.generate())


def write_key(path: Path, key: Any) -> Path:
    from cryptography.hazmat.primitives import serialization as s

    path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    return path


def written(path: Path, exported: Any) -> Path:
    path.write_text(json.dumps(exported))
    return path


def test_a_signature_holds_until_anything_changes(key: Path, tmp_path: Path) -> None:
    signed = sign(EXPORTED, key)
    assert check_export(written(tmp_path / "c.json", signed)) == signed
    other = {**STATEMENT, "error": 0.05}
    with pytest.raises(SignatureError, match="its statement does not have the digest it gives"):
        check_export(written(tmp_path / "c.json", {**signed, "statement": other}))
    with pytest.raises(SignatureError, match=r"its signature does not hold .InvalidSignature"):
        check_export(written(tmp_path / "c.json", {**signed, "statement": other, "digest": digest_of(other)}))
    with pytest.raises(SignatureError, match="its signature does not hold"):
        check_export(written(tmp_path / "c.json", {**signed, "signature": {"public_key": "x", "value": "y"}}))


def test_unsigned_is_fine_and_says_nothing_of_a_key(tmp_path: Path) -> None:
    assert check_export(written(tmp_path / "c.json", EXPORTED)) == EXPORTED


@pytest.mark.parametrize("text", ["", "[]", '{"statement": 1}', "nonsense"])
def test_what_is_no_certificate(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SignatureError, match="it is no certificate"):
        check_export(tmp_path / "c.json")


def test_keys_that_cannot_sign(tmp_path: Path, key: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(SignatureError, match=r"it cannot be used .*openssl genpkey -algorithm ed25519"):
        sign(EXPORTED, tmp_path / "bad.pem")
    with pytest.raises(SignatureError, match="it cannot be used"):
        sign(EXPORTED, tmp_path / "missing.pem")
    other = write_key(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SignatureError, match="not Ed25519"):
        sign(EXPORTED, other)


def test_signing_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'cryptography'.*lorareg\[sign\]"):
        sign(EXPORTED, tmp_path / "key.pem")
