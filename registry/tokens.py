"""Access tokens: who may ask a server for what.

    lrg_<id>_<43 characters that stand for 256 random bits>

What is stored is SHA-256 of the whole text, which is enough for a secret that nobody can guess; slow hashes are for
passwords. A token is found by its id and its digest compared in constant time, with one that fits nothing where there
is none of that id, so that how long an answer takes says nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lorareg.registry.errors import TokenError
from lorareg.registry.lookup import Lookup
from lorareg.registry.names import validate_label, validate_namespace
from lorareg.registry.rows import record_from_row
from lorareg.registry.types import Scope, Token, sha256_hex

if TYPE_CHECKING:
    from lorareg.registry.store import Registry

EVERY_NAMESPACE = "*"
MOST_DAYS = 3650
_FORM = re.compile(r"lrg_(?P<id>[0-9]{1,9})_[A-Za-z0-9_-]{43}", re.ASCII)
_NO_DIGEST = "0" * 64


def create_token(
    registry: Registry, name: str, scope: Scope, namespace: str, days: float | None = None
) -> tuple[Token, str]:
    """A new token and its text, which is told this once; `days` from now on it is void.

    Raises:
        InvalidNameError: the name or the namespace is not valid.
        TokenError: there is a token of that name, or `days` is not above 0 and at most `MOST_DAYS`.
    """
    from lorareg.registry.ingest import next_id, now
    from lorareg.registry.schema import TokenRow, stored_values

    validate_label(name)
    if namespace != EVERY_NAMESPACE:
        validate_namespace(namespace)
    if days is not None and not 0 < days <= MOST_DAYS:
        raise TokenError(name=name, reason=f"it cannot expire after {days:g} days", remedy=f"Up to {MOST_DAYS} it can.")
    expires_at = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="microseconds")
    with registry.writing() as session:
        if session.query(TokenRow).filter_by(name=name).first() is not None:
            remedy = "Choose another name; those of revoked tokens stay taken, so that the audit log has one meaning."
            raise TokenError(name=name, reason="there is one of that name", remedy=remedy)
        token_id = next_id(session, TokenRow)
        text = f"lrg_{token_id}_{secrets.token_urlsafe(32)}"
        row = TokenRow(
            id=token_id,
            name=name,
            scope=scope,
            namespace=namespace,
            secret_sha256=sha256_hex(text.encode()),
            created_at=now(),
            expires_at=expires_at,
            revoked_at=None,
        )
        session.add(row)
        session.flush()
        return record_from_row(Token, "token", stored_values(row)), text


def revoke_token(registry: Registry, name: str) -> Token:
    """Make a token void for good, from the next request on.

    Raises:
        TokenError: there is none of that name.
    """
    from lorareg.registry.ingest import now
    from lorareg.registry.schema import TokenRow, stored_values

    with registry.writing() as session:
        row = session.query(TokenRow).filter_by(name=name).first()
        if row is None:
            remedy = "`lorareg token list` shows those there are."
            raise TokenError(name=name, reason="there is none of that name", remedy=remedy)
        row.revoked_at = row.revoked_at or now()
        session.flush()
        return record_from_row(Token, "token", stored_values(row))


def find_token(lookup: Lookup, text: str) -> Token | None:
    """The token of that text, if it is one and holds now.

    Raises:
        IntegrityError: its row is damaged.
    """
    form = _FORM.fullmatch(text)
    token = None if form is None else lookup.token(int(form["id"]))
    expected = _NO_DIGEST if token is None else token.secret_sha256
    if not hmac.compare_digest(sha256_hex(text.encode("utf-8", "surrogateescape")), expected):
        return None
    return token if token is not None and holds(token) else None


def holds(token: Token) -> bool:
    """Whether it is neither revoked nor expired."""
    expired = token.expires_at is not None and datetime.fromisoformat(token.expires_at) <= datetime.now(UTC)
    return token.revoked_at is None and not expired


def covers(namespace: str, task: str) -> bool:
    """Whether a token for `namespace` is one for the task of that name."""
    return namespace in (EVERY_NAMESPACE, task.partition("/")[0] if "/" in task else "")
