from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorareg.registry.errors import InvalidNameError
from lorareg.registry.names import (
    Ref,
    natural_key,
    parse_ref,
    suggest,
    validate_label,
    validate_relative_path,
    validate_task_name,
)


@pytest.mark.parametrize("name", ["man-nl", "a", "team/man_nl.v2", "x" * 96, "3", "a__b"])
def test_good_task_names_pass(name: str) -> None:
    assert validate_task_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("a/", "empty part"),
        ("/a", "empty part"),
        ("a/b/c", "more than two parts"),
        ("x" * 97, "97 characters"),
        ("a--b", "'--'"),
        ("a..b", "'..'"),
        ("..", "punctuation"),
        ("../x", "punctuation"),
        ("-a", "punctuation"),
        ("a.", "punctuation"),
        ("a b", "not allowed"),
        ("a\n", "not allowed"),
        ("a\0", "not allowed"),
        ("ä", "not allowed"),
        ("a\\b", "not allowed"),
        ("٣", "not allowed"),
    ],
)
def test_bad_task_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidNameError, match=reason) as caught:
        validate_task_name(name)
    assert caught.value.fields["value"] == name


@pytest.mark.parametrize(
    ("label", "reason"), [("3", "is a number"), ("", "empty"), ("a b", "not allowed"), ("latest", "would go stale")]
)
def test_bad_labels_are_refused(label: str, reason: str) -> None:
    with pytest.raises(InvalidNameError, match=reason):
        validate_label(label)


def test_a_good_label_passes() -> None:
    assert validate_label("v1.stable") == "v1.stable"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "0 characters"),
        ("x" * 513, "513 characters"),
        ("/etc/passwd", "absolute"),
        ("../x", "'..'"),
        ("a/../b", "'..'"),
        ("a//b", "empty part"),
        ("./a", "'.'"),
        ("a\\b", "backslash"),
        ("a\0b", "control"),
        ("a\ud800", "surrogates"),
        ("e\u0301", "normal form C"),
    ],
)
def test_bad_paths_are_refused(path: str, reason: str) -> None:
    with pytest.raises(InvalidNameError, match=reason):
        validate_relative_path(path)


def test_good_paths_pass() -> None:
    assert validate_relative_path("sub/é.json") == "sub/é.json"


def test_refs() -> None:
    assert parse_ref("man-nl") == Ref("man-nl")
    assert parse_ref("ns/man-nl@3") == Ref("ns/man-nl", version=3)
    assert parse_ref("man-nl@stable") == Ref("man-nl", label="stable")


@pytest.mark.parametrize("ref", ["man-nl@0", "man-nl@9999999999", "man-nl@", "@3", "a@b@c", "a@٣"])
def test_bad_refs_are_refused(ref: str) -> None:
    with pytest.raises(InvalidNameError, match="is not valid"):
        parse_ref(ref)


def test_suggestions() -> None:
    assert suggest("man-n", ["man-nl", "src-cpp"]) == " Did you mean 'man-nl'?"
    assert suggest("zzz", ["man-nl"]) == ""


def test_natural_order() -> None:
    assert sorted(["l.10", "l.2", "l", "l.2.x"], key=natural_key) == ["l", "l.2", "l.2.x", "l.10"]


@given(st.text())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    for check in (validate_task_name, validate_label, validate_relative_path, parse_ref):
        with suppress(InvalidNameError):
            check(text)
    natural_key(text)


@given(st.from_regex(r"[a-z0-9]{1,9}(/[a-z0-9]{1,9})?", fullmatch=True), st.integers(1, 10**9 - 1))
def test_refs_round_trip(name: str, version: int) -> None:
    assert parse_ref(f"{name}@{version}") == Ref(name, version=version)
