"""Ed25519 signatures on certificates: who says so, beside what was measured.

A key is a PEM file as OpenSSL makes it: `openssl genpkey -algorithm ed25519 -out key.pem`.
What is signed is the canonical JSON of a certificate's statement (sorted keys, no spaces, ASCII).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorareg.registry.certificate import FORMAT, digest_of
from lorareg.registry.errors import MissingExtraError, NewerFormatError, SignatureError
from lorareg.registry.types import canonical_json

ALGORITHM = "ed25519"


def sign(exported: Mapping[str, Any], key_file: Path) -> dict[str, Any]:
    """An exported certificate with a signature over its statement.

    Raises:
        MissingExtraError: `cryptography` is not installed.
        SignatureError: the file holds no Ed25519 private key.
    """
    key = _load_key(key_file)
    raw = key.public_key().public_bytes_raw()
    value = key.sign(canonical_json(exported["statement"]).encode())
    signature = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(raw).decode(),
        "value": base64.b64encode(value).decode(),
    }
    return {**exported, "signature": signature}


def check_export(path: Path) -> dict[str, Any]:
    """An exported certificate, its digest compared, and its signature if it has one.

    Whose key it is, is for the reader to know: compare `signature.public_key`.

    Raises:
        MissingExtraError: it is signed and `cryptography` is not installed.
        NewerFormatError: a later lorareg wrote it.
        SignatureError: it is no certificate, or its digest or signature is not that of its statement.
    """
    what = str(path)
    try:
        exported = json.loads(path.read_text("utf-8"))
        statement, digest = exported["statement"], exported["digest"]
        form = statement["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SignatureError(
            what=what, reason=f"it is no certificate ({error})", remedy="Give a file that `lorareg certificate` wrote."
        ) from error
    if digest_of(statement) != digest:
        raise SignatureError(
            what=what,
            reason="its statement does not have the digest it gives",
            remedy="It was changed; do not trust it.",
        )
    if form != FORMAT:
        raise NewerFormatError(what=what, found=str(form)[:40], expected=FORMAT)
    if "signature" in exported:
        _check_signature(what, statement, exported["signature"])
    return dict(exported)


def _check_signature(what: str, statement: Mapping[str, Any], signature: Mapping[str, Any]) -> None:
    crypto = _cryptography()
    try:
        key = crypto.Ed25519PublicKey.from_public_bytes(base64.b64decode(signature["public_key"], validate=True))
        key.verify(base64.b64decode(signature["value"], validate=True), canonical_json(statement).encode())
    except Exception as error:  # InvalidSignature, or anything a forged field makes the decoder say
        raise SignatureError(
            what=what,
            reason=f"its signature does not hold ({type(error).__name__})",
            remedy="It was changed, or another key signed it; do not trust it.",
        ) from error


def _load_key(path: Path) -> Any:
    crypto = _cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(
            what=str(path),
            reason=f"it cannot be used ({error})",
            remedy="`openssl genpkey -algorithm ed25519 -out key.pem` makes a key.",
        ) from error
    if not isinstance(key, crypto.Ed25519PrivateKey):
        raise SignatureError(
            what=str(path),
            reason=f"it is a {type(key).__name__}, not Ed25519",
            remedy="`openssl genpkey -algorithm ed25519 -out key.pem` makes a key.",
        )
    return key


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError(feature="A signature", package="cryptography", extra="sign") from error
    return ed25519
