"""A folder and all that is in it, as values: to tell whether two are the same, and to bring one back."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

Entry = tuple[int, bytes | None]
"""A file's mode and its bytes; a folder has none."""

Tree = dict[str, Entry]


def read_tree(folder: Path) -> Tree:
    """What is below a folder, by its path from there, folders before what is in them."""
    found: Tree = {}

    def walk(place: str, prefix: str) -> None:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.is_dir(follow_symlinks=False):
                found[prefix + entry.name] = (mode, None)
                walk(entry.path, f"{prefix}{entry.name}/")
            else:
                assert entry.is_file(follow_symlinks=False), entry.path
                with open(entry.path, "rb") as file:
                    found[prefix + entry.name] = (mode, file.read())

    walk(str(folder), "")
    return found


def digest_of(tree: Tree) -> bytes:
    """The same for trees that no program can tell apart: SQLite makes its shared memory anew, and what is on its way
    in has a name of its process's.
    """
    digest, on_their_way = hashlib.sha256(), []
    for path, (mode, content) in tree.items():
        if path.endswith("-shm"):
            continue
        told = hashlib.sha256(b"" if content is None else content).digest()
        if "/tmp/" in path:
            on_their_way.append(f"{os.path.dirname(path)}\0{mode}\0".encode() + told)
        else:
            digest.update(f"{path}\0{mode}\0".encode() + told)
    digest.update(b"".join(sorted(on_their_way)))
    return digest.digest()


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder this tree, whatever is in it."""
    folder.mkdir(exist_ok=True)
    there = read_tree(folder)
    for path in there.keys() - tree.keys():
        gone = folder / path
        if there[path][1] is None:
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)  # it may have gone with its folder
    for path, entry in tree.items():
        if there.get(path) == entry:
            continue
        mode, content = entry
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).unlink(missing_ok=True)
            (folder / path).write_bytes(content)
        os.chmod(folder / path, mode & 0o7777)
