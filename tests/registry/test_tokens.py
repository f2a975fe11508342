"""Access tokens: made once, kept as digests, and void when they should be."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lorareg.registry import tokens
from lorareg.registry.errors import IntegrityError, InvalidNameError, TokenError
from lorareg.registry.reader import Reader
from lorareg.registry.schema import TokenRow
from lorareg.registry.store import Registry
from lorareg.registry.tokens import covers, create_token, find_token, holds, revoke_token

Raw = Callable[..., Any]


def test_a_token_is_found_by_its_text_alone(registry: Registry, home: Path) -> None:
    made, text = create_token(registry, "ci", "write", "team", days=30)
    other, _ = create_token(registry, "other", "read", "*")
    assert find_token(registry, text) == made
    with Reader(home) as reader:
        assert find_token(reader, text) == made
        assert reader.tokens() == [made, other]
    secret = text.rpartition("_")[2]
    for wrong in (
        "",
        "lrg",
        text[:-1],
        text + "A",
        text.replace("lrg_1", "lrg_2"),
        text.replace("lrg_1", "lrg_9"),
        secret,
    ):
        assert find_token(registry, wrong) is None


def test_the_secret_is_nowhere_in_the_registry(registry: Registry, home: Path) -> None:
    _, text = create_token(registry, "ci", "read", "*")
    registry.close()
    for path in home.rglob("*"):
        if path.is_file():
            assert text[-20:].encode() not in path.read_bytes()


def test_revoked_and_expired_tokens_are_void(registry: Registry) -> None:
    _, text = create_token(registry, "ci", "read", "*", days=1)
    assert find_token(registry, text) is not None
    with registry.writing() as session:
        row = session.query(TokenRow).one()
        row.expires_at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="microseconds")
    assert find_token(registry, text) is None
    _, text = create_token(registry, "ci2", "read", "*")
    first = revoke_token(registry, "ci2")
    assert find_token(registry, text) is None
    assert not holds(first)
    assert revoke_token(registry, "ci2") == first


def test_comparing_takes_as_long_where_there_is_no_such_token(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))))
    _, text = create_token(registry, "ci", "read", "*")
    for asked in (text, f"lrg_7_{'A' * 43}", "nothing"):
        find_token(registry, asked)
    assert compared == [(64, 64)] * 3


def test_a_name_is_one_tokens_for_good(registry: Registry) -> None:
    create_token(registry, "ci", "read", "*")
    revoke_token(registry, "ci")
    with pytest.raises(TokenError, match="'ci': there is one of that name"):
        create_token(registry, "ci", "read", "*")
    with pytest.raises(TokenError, match="'no': there is none of that name"):
        revoke_token(registry, "no")


@pytest.mark.parametrize(("name", "namespace"), [("", "*"), ("a b", "*"), ("ok", ""), ("ok", "a/b"), ("ok", "..")])
def test_names_and_namespaces_are_checked(registry: Registry, name: str, namespace: str) -> None:
    with pytest.raises(InvalidNameError):
        create_token(registry, name, "read", namespace)


@pytest.mark.parametrize("days", [0, -1, 4000, float("nan"), float("inf")])
def test_when_tokens_can_expire(registry: Registry, days: float) -> None:
    with pytest.raises(TokenError, match="cannot expire"):
        create_token(registry, "ci", "read", "*", days)


def test_a_damaged_token_is_refused(registry: Registry, home: Path, raw: Raw) -> None:

    _, text = create_token(registry, "ci", "read", "team")
    registry.close()
    raw("UPDATE token SET scope = 'write', namespace = '*'")
    with Reader(home) as reader:
        with pytest.raises(IntegrityError, match="table 'token'"):
            find_token(reader, text)
        with Registry.open(home, create=False) as again:
            assert any("token" in finding.what for finding in again.check())


def test_what_a_namespace_covers() -> None:
    assert covers("*", "task")
    assert covers("*", "team/task")
    assert covers("team", "team/task")
    for task in ("task", "team", "teams/task", "other/task"):
        assert not covers("team", task)
