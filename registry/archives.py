"""Archives of adapters: unpacked into a folder of their own, as far as adapters can be in them.

A tar (plain, or under gzip, bzip2, xz or zstd), a zip, or one safetensors file under zstd. Only files that an
adapter may have are unpacked, all others are skipped unread, and an archive within an archive is one of those.
What no honest archive holds refuses it whole: names that lead outside, links, devices, sparse or encrypted
members, two members of one name. Nothing that it says of its own sizes is believed: bytes are counted on the way.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

import zstandard

from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.files import open_regular
from lorareg.registry.types import (
    CARD_FILE,
    CONFIG_FILE,
    EVAL_FILE,
    EVAL_SUMMARY_FILE,
    LONE_SUFFIX,
    PICKLE_FILES,
    SAMPLES_FILE,
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ZIP_SUFFIX = ".zip"
LONE_ZSTD_SUFFIX = f"{LONE_SUFFIX}.zst"
SUFFIXES = (*TAR_SUFFIXES, ZIP_SUFFIX, LONE_ZSTD_SUFFIX)

MOST_MEMBERS = 100_000
MOST_RATIO = 200
"""Unpacked bytes for each byte of the archive, beyond the first `ALWAYS_ALLOWED_BYTES`: weights shrink by a tenth."""
ALWAYS_ALLOWED_BYTES = 64 << 20
MOST_TEXT_BYTES = 64 << 20  # of one file that holds no weights
MOST_NAME_CHARS, MOST_PART_BYTES = 1024, 255
_MOST_HEADER_BYTES = 1 << 20  # of one extended header of a tar, which is read into memory
_MOST_WINDOW_BYTES = 128 << 20  # that a packed stream may ask for
_CHUNK_BYTES = 1 << 20
_TEXT_FILES = {CONFIG_FILE, CARD_FILE, SAMPLES_FILE, EVAL_FILE, EVAL_SUMMARY_FILE}
_REMEDY = "Pack it again from the adapter's folder, or unpack it where you trust it and ingest the folder."
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError, OSError)
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ\x00": lambda file: io.BufferedReader(_Xz(file)),
    b"\x28\xb5\x2f\xfd": lambda file: _unzstd(file),
}


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive."""
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The adapters of an archive in a temporary folder that is named after it, and is gone when the block ends.

    Raises:
        InvalidAdapterError: the archive is damaged, or holds what no honest archive does; names archive and member.
    """
    with tempfile.TemporaryDirectory(prefix="lorareg-") as staging:
        folder = Path(staging) / _stem(path)
        folder.mkdir()
        with open_regular(path) as file:
            unpacking = _Unpacking(path, folder, path.stat().st_size)
            try:
                if path.name.lower().endswith(ZIP_SUFFIX):
                    unpacking.unzip(file)
                elif path.name.lower().endswith(LONE_ZSTD_SUFFIX):
                    unpacking.add(f"{_stem(path)}{LONE_SUFFIX}", _unzstd(file))
                else:
                    unpacking.untar(file)
            except NotImplementedError as error:
                unpacking.refuse("", f"it is packed in a way that is not read here ({error})")
            except _DAMAGED as error:
                if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
                    unpacking.refuse("", f"one member is a file and another's folder ({Path(error.filename).name!r})")
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the machine's refusal, such as a full disk
                unpacking.refuse("", f"it is damaged or cut short ({error})")
        yield folder


@dataclass
class _Unpacking:
    """One archive on its way into a folder."""

    archive: Path
    folder: Path
    archive_bytes: int
    members: int = 0
    written_bytes: int = 0
    seen: dict[str, str] = field(default_factory=dict)

    def untar(self, file: IO[bytes]) -> None:
        most_bytes = ALWAYS_ALLOWED_BYTES + MOST_RATIO * self.archive_bytes
        with _stream(file) as stream, _open_tar(_Counted(stream, most_bytes)) as tar:
            for member in tar:
                name = self._checked(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or member.size < 0:
                    self.refuse(name, f"it is {_kind(member)}, where only files and folders belong")
                content = tar.extractfile(member) if self._is_wanted(name) else None
                if content is not None:
                    self._expect_bytes(name, self.add(name, content), member.size)

    def unzip(self, file: IO[bytes]) -> None:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = self._checked(member.orig_filename)
                mode = member.external_attr >> 16
                if member.is_dir():
                    continue
                if member.flag_bits & 1:
                    self.refuse(name, "it is encrypted")
                if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    self.refuse(name, "it is a link or a device, where only files and folders belong")
                if self._is_wanted(name):
                    with archive.open(member) as content:
                        self._expect_bytes(name, self.add(name, content), member.file_size)

    def add(self, name: str, content: IO[bytes]) -> int | None:
        """Write a member and count its bytes; None for a pickle, which is refused by its name, unread."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        most = MOST_TEXT_BYTES if target.name in _TEXT_FILES else None
        size_bytes = 0
        with target.open("xb") as file:
            if target.name in PICKLE_FILES:
                return None
            while chunk := content.read(_CHUNK_BYTES):
                size_bytes += len(chunk)
                self.written_bytes += len(chunk)
                if most is not None and size_bytes > most:
                    self.refuse(name, f"it has more than the {most} bytes that such a file may have")
                if self.written_bytes > ALWAYS_ALLOWED_BYTES + MOST_RATIO * self.archive_bytes:
                    reason = f"unpacked it is more than {MOST_RATIO} times the archive's {self.archive_bytes} bytes"
                    self.refuse(name, reason)
                file.write(chunk)
        return size_bytes

    def _checked(self, name: str) -> str:
        """A member's path, if it leads into the folder and no other member's leads to the same place."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            self.refuse("", f"it has more than {MOST_MEMBERS} members")
        path = name.removeprefix("./").rstrip("/")
        parts = PurePosixPath(path).parts
        outside = path.startswith("/") or ".." in parts or "\\" in name or ":" in name
        long = len(name) > MOST_NAME_CHARS or any(len(part.encode()) > MOST_PART_BYTES for part in parts)
        if outside or long or not name.isprintable():
            self.refuse(name, "its name leads outside the archive, or is none that every system has")
        folded = unicodedata.normalize("NFC", path).casefold()
        if self.seen.setdefault(folded, name) != name or (self._is_wanted(path) and (self.folder / path).exists()):
            self.refuse(name, f"another member has this name, or one that is the same elsewhere: {self.seen[folded]!r}")
        return path or "."

    def _is_wanted(self, name: str) -> bool:
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        return not hidden and (path.name in _TEXT_FILES or path.name in PICKLE_FILES or path.suffix == LONE_SUFFIX)

    def _expect_bytes(self, name: str, found: int | None, expected: int) -> None:
        if found not in (None, expected):
            self.refuse(name, f"it should have {expected} bytes and has {found}")

    def refuse(self, member: str, reason: str) -> NoReturn:
        shown = "".join(char if char.isprintable() else "\ufffd" for char in member[:80])
        path = f"{self.archive}!{shown}" if member else str(self.archive)
        raise InvalidAdapterError(path=path, reason=reason, remedy=_REMEDY)


class _CappedHeader(tarfile.TarInfo):
    """A tar's member; extended headers, which tarfile reads whole, are refused where they are large."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.type in (*extended, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= self.size <= _MOST_HEADER_BYTES:
                raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        elif self.size < 0:
            raise tarfile.ReadError(f"a member of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]


class _Counted:
    """A stream that ends in an error after so many bytes, whether or not anybody wanted what is in them."""

    def __init__(self, stream: IO[bytes], most_bytes: int) -> None:
        self._stream, self._left = stream, most_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"unpacked it is more than {MOST_RATIO} times as large")
        return data


def _open_tar(stream: _Counted) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=_CappedHeader)  # type: ignore[call-overload, no-any-return]


@contextmanager
def _stream(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The tar in a file, whatever it is packed with; told by its first bytes, not by its name."""
    start = file.read(6)
    file.seek(0)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        yield file
        return
    with opener(file) as stream:
        yield stream


class _Xz(io.RawIOBase):
    """What a file holds under xz, read with a limit on memory: a header may ask for a dictionary of 4 GiB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._xz = file, lzma.LZMADecompressor(memlimit=_MOST_WINDOW_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._xz.eof:
            packed = self._file.read(_CHUNK_BYTES) if self._xz.needs_input else b""
            if self._xz.needs_input and not packed:
                raise EOFError("it ends within its xz stream")
            found = self._xz.decompress(packed, max_length=len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)
        return 0


def _unzstd(file: IO[bytes]) -> IO[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
    return io.BufferedReader(decompressor.stream_reader(file, read_across_frames=True, closefd=False))


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if member.issparse():
        return "a sparse file"
    return "a device or FIFO" if member.isdev() else "something else"


def _stem(path: Path) -> str:
    """The archive's name without its suffix."""
    suffix = max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)] or "archive"
