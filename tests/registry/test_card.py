from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorareg.registry.card import MAX_DESCRIPTION_CHARS, card_description, tidy_description


@pytest.mark.parametrize(
    ("card", "description"),
    [
        ("---\nbase_model: x\n---\n\n# man-nl\n\nContinue Dutch\npages.\n\nTrained.\n", "Continue Dutch pages."),
        ("# Title\nText straight under it.\n", "Text straight under it."),
        ("\ufeff---\r\na: b\r\n---\r\n\r\nWindows text.\r\n", "Windows text."),
        ("Title\n=====\n\nText.\n", "Text."),
        ("<!-- Summary -->\n\n- **Developed by:** me\n\n| a | b |\n\n```\ncode\n```\n\n> quote\n\nText.\n", "Text."),
        ("# Model Card\n\n[More Information Needed]\n", ""),
        ("---\nnever: closed\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_first_prose_is_the_description(card: str, description: str) -> None:
    assert card_description(card) == description


@given(st.text())
def test_any_text_gives_one_printable_line(text: str) -> None:
    for line in (card_description(text), tidy_description(text)):
        assert len(line) <= MAX_DESCRIPTION_CHARS
        assert line.isprintable()
        assert line == line.strip()
