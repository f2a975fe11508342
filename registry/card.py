"""Model cards: the task description in one (its first paragraph of prose), and the mark on what nobody trained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

MAX_DESCRIPTION_CHARS = 2000
MARK_START, MARK_END = "<!-- lorareg: reconstructed -->", "<!-- lorareg: end of mark -->"
NOVEL_START = "<!-- lorareg: novel -->"

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?(?P<name>[^\n\[]+)$", re.MULTILINE)
_MARK = re.compile(rf"{MARK_START}\n.*?{MARK_END}\n+", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = re.compile(r"^(```|~~~).*?(?:^\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_TEMPLATE = (
    "Users (both direct and downstream) should be made aware of",
    "Use the code below to get started with",
    "Carbon emissions can be estimated using",
)
"""Starts of what the Hub's template for cards says of every model, which PEFT writes with each adapter."""

_NOT_PROSE = re.compile(r"#|[-*+] |\d+[.)] |[|>!<]|\[!\[|=+$|-+$|\[More Information Needed\]")


def card_description(card: str) -> str:
    """The first paragraph that is no front matter, heading, list, table, image, placeholder or template; else ''."""
    text = card.removeprefix("\ufeff").replace("\r\n", "\n")
    text = _FENCE.sub("", _COMMENT.sub("", _FRONT_MATTER.sub("", text)))
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):  # a heading with its paragraph straight under it
            del lines[0]
        underlined = len(lines) == 2 and re.fullmatch(r"=+|-+", lines[1])
        if lines and not underlined and not _NOT_PROSE.match(lines[0]) and not lines[0].startswith(_TEMPLATE):
            return tidy_description(" ".join(lines))
    return ""


def card_base_model(card: str) -> str:
    """The first base model that a card's front matter names; else ''."""
    matter = _FRONT_MATTER.match(card.removeprefix("\ufeff").replace("\r\n", "\n"))
    found = _BASE_MODEL.search(matter[0]) if matter else None
    return found["name"].strip().strip("\"'") if found else ""


def tidy_description(text: str) -> str:
    """One line of printable text, at most `MAX_DESCRIPTION_CHARS` long."""
    words = "".join(char if char.isprintable() else " " for char in text).split()
    return " ".join(words)[:MAX_DESCRIPTION_CHARS].rstrip()


def unmarked(card: str) -> str:
    """The card without the block that `mark_reconstructed` puts in."""
    return _MARK.sub("", card)


def mark_reconstructed(card: str, base_model: str, lines: Sequence[str]) -> str:
    """The card with a quoted block that says what was reconstructed, straight after its front matter.

    A mark that is there already is replaced, and said to have been there. Without a card there is a new one.
    """
    if not card.strip():
        card = f"---\nbase_model: {json.dumps(base_model)}\nlibrary_name: peft\n---\n"
    unmarked, marks = _MARK.subn("", card)
    if marks:
        lines = [*lines, "What was ingested had itself been reconstructed by lorareg."]
    block = "\n".join([MARK_START, *(f"> {line}" for line in lines), MARK_END])
    matter = _FRONT_MATTER.match(unmarked)
    end = matter.end() if matter else 0
    head = unmarked[:end] + ("" if not end or unmarked[:end].endswith("\n") else "\n")
    return f"{head}{block}\n\n{unmarked[end:]}"


def novel_card(description: str, base_model: str, lines: Sequence[str]) -> str:
    """The card of an adapter that nobody trained: a quoted block that says so, then what it is meant for."""
    matter = f"---\nbase_model: {json.dumps(base_model)}\nlibrary_name: peft\ntags: [lora]\n---\n"
    block = "\n".join([NOVEL_START, *(f"> {line}" for line in lines), MARK_END])
    return f"{matter}{block}\n\n{description}\n" if description else f"{matter}{block}\n"
