"""Archives: honest ones give the adapters that went in, hostile ones give an error and leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save

from lorareg.cli.ingest import task_name
from lorareg.registry import archives
from lorareg.registry.archives import unpacked
from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.ingest import IngestOutcome, IngestRequest
from lorareg.registry.peft_format import find_adapters
from lorareg.registry.sources import find_sources
from lorareg.registry.store import Registry

WEIGHTS = "task/adapter_model.safetensors"


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tar_of(*names: str) -> bytes:
    return tar_bytes(*((member(name), b"x") for name in names))


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", packed) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return data.getvalue()


def zip_link() -> bytes:
    info = zipfile.ZipInfo(WEIGHTS)
    info.external_attr = 0o120777 << 16
    return zip_bytes((info, b"/etc/passwd"))


def encrypted_zip() -> bytes:
    data = bytearray(zip_bytes((WEIGHTS, b"x")))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    return bytes(data)


def zip_with_sizes(claimed: int) -> bytes:
    """A zip whose central directory lies about the size of its member."""
    data = bytearray(zip_bytes((WEIGHTS, b"x" * 100)))
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 8] = struct.pack("<II", claimed, claimed)
    return bytes(data)


def tar_with_size(claimed: bytes) -> bytes:
    """A tar whose member's size field holds these 12 bytes, its checksum mended."""
    data = bytearray(tar_of(WEIGHTS))
    data[124:136] = claimed
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def long_header() -> bytes:
    """A pax header of a gigabyte, which tarfile would read whole."""
    info = member("pax", tarfile.XHDTYPE)
    info.size = 1 << 30
    return info.tobuf() + bytes(1 << 20)


def sparse_tar() -> bytes:
    info = member(WEIGHTS, tarfile.GNUTYPE_SPARSE)
    info.size = 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    return bytes(header) + bytes(1024)


def zstd_lying() -> bytes:
    """A frame that declares 16 bytes; a decoder that believes it would stop there or overrun."""
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(b"x" * 255))
    frame[frame.index(0xFF, 4)] = 16
    return bytes(frame)


def zeros(size: int) -> bytes:
    return tar_bytes((member(WEIGHTS), bytes(size)))


def unwanted(size: int) -> bytes:
    return tar_bytes((member("task/optimizer.bin"), bytes(size)))


BOMB = 400 << 20
TASKS = ("man-de", "man-nl")

HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "parent": ("a.tar", lambda: tar_of("../adapter_model.safetensors"), "leads outside"),
    "parent within": ("a.tar", lambda: tar_of("task/../../adapter_model.safetensors"), "leads outside"),
    "absolute": ("a.tar", lambda: tar_of("/tmp/adapter_model.safetensors"), "leads outside"),
    "drive": ("a.zip", lambda: zip_bytes(("C:/adapter_model.safetensors", b"x")), "leads outside"),
    "backslash": ("a.zip", lambda: zip_bytes(("..\\adapter_model.safetensors", b"x")), "leads outside"),
    "zip parent": ("a.zip", lambda: zip_bytes(("../adapter_model.safetensors", b"x")), "leads outside"),
    "zip null": ("a.zip", lambda: zip_bytes((WEIGHTS, b"x")).replace(b"task", b"ta\0k"), "leads outside"),
    "control": ("a.tar", lambda: tar_of("ta\x1b[2Jsk/adapter_model.safetensors"), "leads outside"),
    "long name": ("a.tar", lambda: tar_of("x" * 2000 + "/adapter_model.safetensors"), "leads outside"),
    "symlink": ("a.tar", lambda: tar_bytes((member(WEIGHTS, tarfile.SYMTYPE, "/etc/passwd"), b"")), "a link"),
    "hard link": ("a.tar", lambda: tar_bytes((member(WEIGHTS, tarfile.LNKTYPE, "/etc/passwd"), b"")), "a link"),
    "zip link": ("a.zip", zip_link, "a link or a device"),
    "fifo": ("a.tar", lambda: tar_bytes((member(WEIGHTS, tarfile.FIFOTYPE), b"")), "a device or FIFO"),
    "device": ("a.tar", lambda: tar_bytes((member("task/tty", tarfile.CHRTYPE), b"")), "a device or FIFO"),
    "sparse": ("a.tar", sparse_tar, "a sparse file"),
    "twice": ("a.tar", lambda: tar_of(WEIGHTS, WEIGHTS), "another member has this name"),
    "zip twice": ("a.zip", lambda: zip_twice(), "another member has this name"),
    "case twins": ("a.tar", lambda: tar_of(WEIGHTS, WEIGHTS.replace("task", "TASK")), "the same elsewhere"),
    "unicode twins": ("a.tar", lambda: tar_of("\u00e9/README.md", "e\u0301/README.md"), "the same elsewhere"),
    "encrypted": ("a.zip", encrypted_zip, "it is encrypted"),
    "zip size": ("a.zip", lambda: zip_with_sizes(1 << 31), "damaged or cut short"),
    "zip small size": ("a.zip", lambda: zip_with_sizes(10), "damaged or cut short"),
    "not a zip": ("a.zip", lambda: b"PK\x03\x04 and no more", "damaged or cut short"),
    "not a tar": ("a.tar", lambda: b"x" * 5000, "damaged or cut short"),
    "empty": ("a.tar", lambda: b"", "damaged or cut short"),
    "cut tar": ("a.tar", lambda: zeros(5000)[:3000], "damaged or cut short|should have 5000 bytes"),
    "cut gzip": ("a.tar.gz", lambda: gzip.compress(zeros(5000))[:60], "damaged or cut short"),
    "cut xz": ("a.tar.xz", lambda: lzma.compress(zeros(5000))[:80], "damaged or cut short"),
    "cut zstd": ("a.tar.zst", lambda: zstandard.compress(zeros(5000))[:60], "damaged or cut short|should have"),
    "negative size": ("a.tar", lambda: tar_with_size(b"\xff" * 12), "damaged or cut short"),
    "huge size": (
        "a.tar",
        lambda: tar_with_size(b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7),
        "damaged or cut|should have",
    ),
    "long header": ("a.tar", long_header, "an extended header of 1073741824 bytes"),
    "zstd lying": ("m.safetensors.zst", zstd_lying, "damaged or cut short"),
    "gzip bomb that nobody wants": ("a.tar.gz", lambda: gzip.compress(unwanted(BOMB), 9), "more than 200 times"),
    "file and folder": ("a.tar", lambda: tar_of("x.safetensors", "x.safetensors/README.md"), "another's folder"),
    "long part": ("a.tar", lambda: tar_of("y" * 300 + "/README.md"), "leads outside"),
    "gzip bomb": ("a.tar.gz", lambda: gzip.compress(zeros(BOMB), 9), "more than 200 times"),
    "zstd bomb": ("m.safetensors.zst", lambda: zstandard.compress(bytes(BOMB)), "more than 200 times"),
    "undeclared zstd bomb": ("m.safetensors.zst", lambda: undeclared(bytes(BOMB)), "more than 200 times"),
    "zip bomb": (
        "a.zip",
        lambda: zip_bytes((WEIGHTS, bytes(BOMB)), packed=zipfile.ZIP_DEFLATED),
        "more than 200 times",
    ),
    "long text": (
        "a.tar",
        lambda: tar_bytes((member("task/README.md"), bytes(archives.MOST_TEXT_BYTES + 1))),
        "more than the 67108864 bytes that such a file may have",
    ),
}


def zip_twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zip_bytes((WEIGHTS, b"x"), (WEIGHTS, b"y"))


def undeclared(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_name, build, reason = HOSTILE[name]
    staging = tmp_path / "staging"
    staging.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(staging))
    archive = tmp_path / "given" / file_name
    archive.parent.mkdir()
    archive.write_bytes(build())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidAdapterError, match=reason) as caught, unpacked(archive):
        pytest.fail("it was taken in")
    assert str(archive) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """In a process of its own, so that its peak memory is its own; 2 s and 256 MiB beyond the file."""
    for name in (
        "gzip bomb",
        "gzip bomb that nobody wants",
        "zstd bomb",
        "undeclared zstd bomb",
        "zip bomb",
        "long header",
    ):
        file_name, build, _ = HOSTILE[name]
        archive = tmp_path / file_name
        archive.write_bytes(build())
        code = (
            "import resource, sys, time\n"
            "from pathlib import Path\n"
            "from lorareg.registry.archives import unpacked\n"
            "from lorareg.registry.errors import InvalidAdapterError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "started = time.process_time()\n"
            "try:\n"
            "    with unpacked(Path(sys.argv[1])):\n"
            "        sys.exit('taken in')\n"
            "except InvalidAdapterError:\n"
            "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - started)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(archive)], capture_output=True, text=True, check=True)
        memory_kib, elapsed_s = map(float, done.stdout.split())
        assert memory_kib * 1024 < archive.stat().st_size + (256 << 20), name
        assert elapsed_s < 2, name


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    (tmp_path / "a.tar").write_bytes(tar_of("a", "b", "c", "d"))
    with pytest.raises(InvalidAdapterError, match="more than 3 members"), unpacked(tmp_path / "a.tar"):
        pytest.fail("it was taken in")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "a.tar": lambda data: data,
    "a.tar.gz": gzip.compress,
    "a.tgz": gzip.compress,
    "a.tar.bz2": bz2.compress,
    "a.tar.xz": lzma.compress,
    "a.tar.zst": zstandard.compress,
}


def pack(folder: Path, archive: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
        return
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(folder, arcname=".")
    archive.write_bytes(PACKERS[archive.name](data.getvalue()))


@pytest.mark.parametrize("name", [*PACKERS, "a.zip"])
def test_an_archive_gives_the_adapters_of_its_folder(name: str, sample_adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for task in TASKS:
        (folder / "group" / task).mkdir(parents=True)
        for path in (sample_adapters / task).iterdir():
            shutil.copyfile(path, folder / "group" / task / path.name)
    (folder / "notes.txt").write_text("skipped unread")
    (folder / ".hidden.safetensors").write_text("so is this")
    pack(folder, tmp_path / name)
    with ExitStack() as stack:
        found = list(find_sources([tmp_path / name], stack))
        assert [source.shown for source in found] == [
            f"{tmp_path / name}!group/{task}" for task in ("man-de", "man-nl")
        ]
        unpacked_folder = found[0].root
        assert not (unpacked_folder / "notes.txt").exists()
        with Registry.open(tmp_path / "home", create=True) as registry:
            for source, path in zip(found, find_adapters(folder), strict=True):
                assert source.error is None
                requests = [IngestRequest(source.path, path.name, source=source.shown), IngestRequest(path, path.name)]
                taken, again = registry.ingest_each(requests)
                assert isinstance(taken, IngestOutcome)
                assert isinstance(again, IngestOutcome)
                assert taken.kind == "new"
                assert taken.adapter.source == source.shown
                assert again.kind == "known"
    assert not unpacked_folder.exists()


def test_an_archive_of_one_adapter_is_named_after_itself(sample_adapters: Path, tmp_path: Path) -> None:
    pack(sample_adapters / "man-nl", tmp_path / "dutch.zip")
    with ExitStack() as stack:
        (source,) = find_sources([tmp_path], stack)
        assert source.shown == str(tmp_path / "dutch.zip")
        assert task_name(source.root, source.path) == "dutch"


def test_a_lone_file_under_zstd_is_named_after_itself(tmp_path: Path) -> None:
    keys = ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight")
    data = save({keys[0]: np.ones((2, 5), np.float32), keys[1]: np.ones((5, 2), np.float32)}, {"ss_sd_model_name": "m"})
    (tmp_path / "style.safetensors.zst").write_bytes(zstandard.compress(data))
    with ExitStack() as stack:
        (source,) = find_sources([tmp_path / "style.safetensors.zst"], stack)
        assert source.path.read_bytes() == data
        assert task_name(source.root, source.path) == "style"


def test_a_broken_adapter_does_not_keep_the_others_out(sample_adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for task in TASKS:
        (folder / task).mkdir()
        for path in (sample_adapters / task).iterdir():
            (folder / task / path.name).write_bytes(path.read_bytes())
    (folder / "man-de" / "adapter_config.json").write_text("{")
    pack(folder, tmp_path / "a.zip")
    with ExitStack() as stack:
        found = list(find_sources([tmp_path / "a.zip"], stack))
        with Registry.open(tmp_path / "home", create=True) as registry:
            outcomes = list(registry.ingest_each(IngestRequest(s.path, s.path.name, source=s.shown) for s in found))
    assert isinstance(outcomes[0], InvalidAdapterError)
    assert f"{tmp_path / 'a.zip'}!man-de/adapter_config.json: it is not valid JSON" in str(found[0].named(outcomes[0]))
    assert isinstance(outcomes[1], IngestOutcome)


def test_an_archive_within_an_archive_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes((member("inner.tar"), tar_of(WEIGHTS))))
    with ExitStack() as stack:
        (source,) = find_sources([tmp_path / "a.tar"], stack)
    assert "no adapter is in it (archives within archives are not entered)" in str(source.error)


def test_a_pickle_in_an_archive_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of("task/adapter_model.bin", "task/adapter_config.json"))
    with unpacked(tmp_path / "a.tar") as folder:
        assert (folder / "task" / "adapter_model.bin").read_bytes() == b""


def test_the_document_lists_the_archives() -> None:
    document = (Path(__file__).parents[2] / "docs" / "hostile.md").read_text()
    listed = set(re.findall(r"^\| archive: ([^|]+) \| exit code 10: ", document, re.MULTILINE))
    assert set(HOSTILE) <= listed
