"""The task description in a model card: its first paragraph of prose."""

from __future__ import annotations

import re

MAX_DESCRIPTION_CHARS = 2000

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = re.compile(r"^(```|~~~).*?(?:^\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_NOT_PROSE = re.compile(r"#|[-*+] |\d+[.)] |[|>!<]|\[!\[|=+$|-+$|\[More Information Needed\]")


def card_description(card: str) -> str:
    """The first paragraph that is neither front matter, heading, list, table, image nor placeholder; else ''."""
    text = card.removeprefix("\ufeff").replace("\r\n", "\n")
    text = _FENCE.sub("", _COMMENT.sub("", _FRONT_MATTER.sub("", text)))
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):  # a heading with its paragraph straight under it
            del lines[0]
        underlined = len(lines) == 2 and re.fullmatch(r"=+|-+", lines[1])
        if lines and not underlined and not _NOT_PROSE.match(lines[0]):
            return tidy_description(" ".join(lines))
    return ""


def tidy_description(text: str) -> str:
    """One line of printable text, at most `MAX_DESCRIPTION_CHARS` long."""
    words = "".join(char if char.isprintable() else " " for char in text).split()
    return " ".join(words)[:MAX_DESCRIPTION_CHARS].rstrip()
