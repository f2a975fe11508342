"""What may be on a disk after the power went: a trace of `faults.c`, replayed with what was not flushed taken away.

The disk promises what POSIX does and no more. A file's bytes last once the file was flushed; a name lasts once the
folder it is in was. Bytes that a flush failed to make last are lost, unless they are written again, whatever a later
one says. Of what was not flushed any part may be there: no write, some, half of one, in any order; a name without its
file's bytes, and a file without its name.
"""

from __future__ import annotations

import os
import random
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR_BYTES = 512
_HEADER = struct.Struct("<cQQQHH")
_NOT_OF_THE_DISK = "-shm"  # SQLite's shared memory: whoever opens a database first makes it anew


@dataclass(frozen=True)
class Event:
    """One line of a trace; see `trace` in faults.c for the kinds."""

    kind: str
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def read_trace(path: Path) -> list[Event]:
    """The events of a trace, in order."""
    raw, at, events = path.read_bytes(), 0, []
    while at < len(raw):
        kind, inode, offset, size, first, second = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        name, other = raw[at : at + first].decode(), raw[at + first : at + first + second].decode()
        at += first + second
        events.append(Event(kind.decode(), inode, offset, name, other, raw[at : at + size]))
        at += size
    return events


@dataclass
class File:
    """A file, whatever it is called: what was in it before, and what was done to it, with the event that did it."""

    base: bytes = b""
    changes: list[tuple[int, Event]] = field(default_factory=list)
    flushes: list[tuple[int, bool]] = field(default_factory=list)  # and whether it came about


@dataclass(frozen=True)
class Naming:
    """A change of names: `path` comes to be, goes, or takes another's place."""

    event: int
    kind: str
    path: str
    other: str
    file: File | None


class Trace:
    """What a command did to an area."""

    def __init__(self, area: Path, before: Path, events: Sequence[Event]) -> None:
        """Of a run in `area`, which was a copy of `before`."""
        self.events = [e for e in events if not e.path.endswith((_NOT_OF_THE_DISK, " (deleted)"))]
        self.area, self.names = str(area), dict[str, File | None]()  # None for a folder
        self.namings: list[Naming] = []
        self.folders_flushed: dict[str, list[int]] = defaultdict(list)
        for path in sorted(before.rglob("*")):
            there = f"{area}/{path.relative_to(before)}"
            if not there.endswith(_NOT_OF_THE_DISK):
                self.names[there] = None if path.is_dir() else File(path.read_bytes())
        now = dict(self.names)
        for index, event in enumerate(self.events):
            self._follow(index, event, now)

    def _follow(self, index: int, event: Event, now: dict[str, File | None]) -> None:
        kind, path = event.kind, event.path
        if kind in "wt":
            file = now[path]
            assert file is not None
            file.changes.append((index, event))
        elif kind in "sS":
            file = now[path]
            assert file is not None
            file.flushes.append((index, kind == "s"))
        elif kind == "d":
            self.folders_flushed[path].append(index)
        elif kind == "D":
            pass  # a journal keeps names for the next flush, or takes no more of anything
        elif kind in "cm":
            now[path] = File() if kind == "c" else None
            self.namings.append(Naming(index, kind, path, "", now[path]))
        elif kind in "ux":
            self.namings.append(Naming(index, kind, path, "", now.pop(path, None)))
        elif kind in "rl":
            file = now.pop(path) if kind == "r" else now[path]
            now[event.other] = file
            self.namings.append(Naming(index, kind, path, event.other, file))
        else:
            raise AssertionError(f"a trace with {kind!r} cannot be replayed")

    def _lasts(self, naming: Naming, until: int) -> bool:
        """Whether the folder was flushed after the change; of a rename either folder brings both halves along."""
        folders = {os.path.dirname(path) for path in (naming.path, naming.other) if path}
        return any(naming.event < at < until for folder in folders for at in self.folders_flushed[folder])

    def disk(self, until: int, keeps: Keeps) -> dict[str, bytes | None]:
        """What is there if the power goes before event `until`: content by path, None for a folder."""
        names = dict(self.names)
        for naming in self.namings:
            if naming.event >= until or not (self._lasts(naming, until) or keeps.name()):
                continue
            if naming.kind in "cm":
                names[naming.path] = naming.file
            elif naming.kind in "rl":
                if naming.kind == "r":
                    names.pop(naming.path, None)
                names[naming.other] = naming.file
            else:
                names.pop(naming.path, None)
        reachable: dict[str, bytes | None] = {}
        contents: dict[int, bytes] = {}
        for path, file in sorted(names.items()):
            if os.path.dirname(path) != self.area and os.path.dirname(path) not in reachable:
                continue  # its folder's own name was lost
            if file is not None and id(file) not in contents:
                contents[id(file)] = self._content(file, until, keeps)
            reachable[path] = None if file is None else contents[id(file)]
        return reachable

    def _content(self, file: File, until: int, keeps: Keeps) -> bytes:
        content = bytearray(file.base)
        flushes = [(at, lasts) for at, lasts in file.flushes if at < until]
        for index, event in file.changes:
            if index >= until:
                break
            lasts = next((lasts for at, lasts in flushes if at > index), False)
            for offset, data in [(event.offset, event.data)] if lasts else keeps.parts(event):
                if event.kind == "t":
                    del content[offset:]
                    content.extend(bytes(offset - len(content)))
                else:
                    content.extend(bytes(max(0, offset - len(content))))
                    content[offset : offset + len(data)] = data
        return bytes(content)


class Keeps:
    """What is there of what was not flushed."""

    def __init__(self, random_: random.Random) -> None:
        self._random, self.share = random_, random_.choice([0.0, 0.0, 0.2, 0.5, 0.8, 1.0])

    def name(self) -> bool:
        """Whether a change of names is."""
        return self._random.random() < self.share

    def parts(self, event: Event) -> Iterator[tuple[int, bytes]]:
        """Those of a write that are: all of it, nothing, or some of its sectors."""
        if event.kind == "t" or self._random.random() < 0.7:
            if self._random.random() < self.share:
                yield event.offset, event.data
            return
        for start in range(0, len(event.data), SECTOR_BYTES):
            if self._random.random() < self.share:
                yield event.offset + start, event.data[start : start + SECTOR_BYTES]


def write_disk(disk: dict[str, bytes | None], area: str, target: Path) -> None:
    """Lay a state of the disk out in a folder, in the place of `area`."""
    target.mkdir(parents=True)
    folders = {os.path.dirname(path) for path, content in disk.items() if content is not None}
    for path, content in disk.items():
        there = target / os.path.relpath(path, area)
        if content is not None:
            there.write_bytes(content)
        elif "/blobs/" not in path or path in folders:
            there.mkdir(parents=True)  # of the 256 folders of a blob store those that have something in them
