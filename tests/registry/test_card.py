from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorareg.registry.card import (
    MARK_END,
    MARK_START,
    MAX_DESCRIPTION_CHARS,
    card_description,
    mark_reconstructed,
    tidy_description,
)


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


CARD = "---\nbase_model: x\n---\n\n# man-nl\n\nContinue Dutch pages.\n"


def test_a_mark_stands_after_the_front_matter_and_changes_nothing_else() -> None:
    marked = mark_reconstructed(CARD, "x", ["**Reconstructed**", "error 0.2"])
    mark = f"{MARK_START}\n> **Reconstructed**\n> error 0.2\n{MARK_END}\n\n"
    assert marked == CARD.replace("---\n\n#", f"---\n{mark}\n#")
    assert card_description(marked) == "Continue Dutch pages."


def test_a_mark_is_replaced_and_said_to_have_been_there() -> None:
    twice = mark_reconstructed(mark_reconstructed(CARD, "x", ["first"]), "x", ["second"])
    assert "first" not in twice
    assert twice.count(MARK_START) == 1
    assert "> second\n> What was ingested had itself been reconstructed by lorareg.\n" in twice


def test_without_a_card_there_is_one_that_names_the_base_model() -> None:
    made = mark_reconstructed("", 'odd "name": x', ["mark"])
    assert made.startswith('---\nbase_model: "odd \\"name\\": x"\nlibrary_name: peft\n---\n' + MARK_START)
    assert mark_reconstructed("No front matter.", "x", ["mark"]).startswith(MARK_START)


@given(st.text())
def test_marking_any_card_twice_is_marking_it_once(card: str) -> None:
    once = mark_reconstructed(card, "x", ["a"])
    assert MARK_START in once
    assert mark_reconstructed(once, "x", ["a"]).count(MARK_START) == once.count(MARK_START)


def test_what_the_template_says_of_every_model_is_no_description() -> None:
    said = (
        "Users (both direct and downstream) should be made aware of the risks.",
        "Use the code below to get started with the model.",
        "Carbon emissions can be estimated using the calculator.",
    )
    template = "---\nbase_model: m\n---\n\n# Model Card\n\n" + "\n\n## Heading\n\n".join(said) + "\n"
    assert card_description(template) == ""
    assert card_description(f"{template}\nDraft clauses.\n") == "Draft clauses."
