"""Texts to fine-tune on: one plain-text file a domain, made from Debian packages.

    python bench/texts.py OUT [--tasks man-it src-go ...]

Packages are downloaded with `apt-get download` and unpacked with `dpkg-deb`; nothing is installed. A
file holds whole documents in a shuffled but fixed order, so that its end, which is held out, is of
other documents than its beginning.
"""

from __future__ import annotations

import argparse
import gzip
import html
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 600_000
FEWEST_BYTES = 100_000
LONGEST_DOCUMENT = 20_000


@dataclass(frozen=True, slots=True)
class Domain:
    """Where the text of a task comes from."""

    package: str
    pattern: str  # of files in the unpacked package
    plain: Callable[[str], str]
    description: str


def _as_is(text: str) -> str:
    return text


def _from_roff(text: str) -> str:
    """A manual page without its macros and font changes."""
    lines = []
    for line in text.splitlines():
        if line.startswith(('.\\"', "'\\\"", ".de", ".if", ".ie", ".el", ".nr", ".ds")):
            continue
        line = re.sub(r"^[.']\s*(SH|SS|TH|TP|PP|P|IP|B|I|BR|RB|IR|RI|BI|IB|Sh|Fl|Ar|Nm|It|Pp|sp|br)\b ?", "", line)
        if line.startswith((".", "'")):
            continue
        line = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)|\\[&%/,|^c]|\\s[+-]?\d", "", line)
        line = re.sub(r"\\\(bu|\\\[bu\]", "*", line).replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
        lines.append(line.replace('"', "").rstrip())
    return "\n".join(line for line in lines if line)


def _from_html(text: str) -> str:
    """A page without its tags, scripts and blank lines."""
    text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", text)
    text = html.unescape(re.sub(r"(?s)<[^>]*>", "", text))
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


DOMAINS: dict[str, Domain] = {
    "doc-r": Domain("r-doc-html", "usr/share/**/*.html", _from_html, "The manuals of the R language"),
    "doc-sqlite": Domain("sqlite3-doc", "usr/share/doc/sqlite3/[a-z]*.html", _from_html, "The documentation of SQLite"),
    "fortunes": Domain("fortunes", "usr/share/games/fortunes/*", _as_is, "Quotations, jokes and verse"),
    "man-hu": Domain("manpages-hu", "usr/share/man/hu/**/*.gz", _from_roff, "Hungarian manual pages"),
    "man-it": Domain("manpages-it", "usr/share/man/it/**/*.gz", _from_roff, "Italian manual pages"),
    "man-sv": Domain("manpages-sv", "usr/share/man/sv/**/*.gz", _from_roff, "Swedish manual pages"),
    "src-go": Domain("golang-1.19-src", "usr/share/go-1.19/src/net/**/*.go", _as_is, "Go source code"),
    "src-tcl": Domain("libtcl8.6", "usr/share/tcltk/**/*.t[cm]*", _as_is, "Tcl source code"),
}


def write_texts(out: Path, tasks: list[str]) -> None:
    """Write the file of every task that is missing in `out`; ends the program where a package cannot be had."""
    out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        target = out / f"{task}.txt"
        if target.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = _text_of(DOMAINS[task], Path(folder))
        if len(text.encode()) < FEWEST_BYTES:
            sys.exit(f"{task}: {DOMAINS[task].package} holds {len(text.encode())} bytes of text, {FEWEST_BYTES} needed")
        target.write_text(text)
        print(f"{target}: {len(text.encode()) / 1e3:.0f} kB")


def _text_of(domain: Domain, folder: Path) -> str:
    for command in (
        ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", domain.package],
        ["sh", "-c", "dpkg-deb -x *.deb unpacked"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip()[-300:]
            sys.exit(f"{domain.package}: {' '.join(command)} failed ({why}). Try apt-get update.")
    documents = []
    for path in sorted((folder / "unpacked").glob(domain.pattern)):
        if path.is_file() and not path.is_symlink():
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            try:
                documents.append(domain.plain(raw.decode())[:LONGEST_DOCUMENT])
            except UnicodeDecodeError:
                continue  # a binary, or a page in an older encoding
    random.Random(0).shuffle(documents)
    text = "\n\n".join(document for document in documents if document.strip())
    return text.encode()[:MOST_BYTES].decode(errors="ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=DOMAINS, default=list(DOMAINS), metavar="TASK")
    arguments = parser.parse_args()
    write_texts(arguments.out, arguments.tasks)


if __name__ == "__main__":
    main()
