"""Every hostile adapter ends in its typed error, through the command line, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hostile_corpus
import pytest

from lorareg.cli.main import main
from lorareg.registry.errors import InvalidAdapterError
from lorareg.registry.peft_format import read_folder, verify_copy

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sample", hostile_corpus.SAMPLES, ids=lambda sample: sample.name)
def test_a_hostile_adapter_has_its_error(sample: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, canary = tmp_path / "given" / "task", tmp_path / "canary"
    folder.mkdir(parents=True)
    sample.build(folder, canary)
    before = sorted(tmp_path.rglob("*"))
    started = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        main(["ingest", str(folder), "--home", str(tmp_path / "home")])
    assert time.process_time() - started < 2
    out, err = capsys.readouterr()
    assert int(stopped.value.code or 0) == sample.exit_code, err
    assert sample.words in (out if sample.exit_code == hostile_corpus.ACCEPTED else err)
    assert "Traceback" not in out + err
    assert not canary.exists()
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "home" not in (path, *path.parents)] == before
    if sample.exit_code != hostile_corpus.ACCEPTED:
        blobs = tmp_path / "home" / "blobs"
        assert not [path for path in blobs.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["300,000 empty tensors", "header nested 100,000 deep", "header length 2^63"])
def test_the_largest_take_no_memory(name: str, tmp_path: Path) -> None:
    """In a process of its own: at most 256 MiB beyond the file's size."""
    (sample,) = (sample for sample in hostile_corpus.SAMPLES if sample.name == name)
    sample.build(tmp_path, tmp_path / "canary")
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from lorareg.registry.errors import InvalidAdapterError\n"
        "from lorareg.registry.peft_format import read_adapter\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_adapter(Path(sys.argv[1]))\nexcept InvalidAdapterError:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    size_bytes = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert int(done.stdout) * 1024 < size_bytes + (256 << 20)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    hostile_corpus.folder_of()(tmp_path, tmp_path / "canary")
    folder = read_folder(tmp_path)
    other = hostile_corpus.weights({**hostile_corpus.good_header(), "__metadata__": {"other": "file"}})
    (tmp_path / "copy").write_bytes(other)
    with pytest.raises(InvalidAdapterError, match="it changed while it was read"):
        verify_copy(folder, folder.files[0], tmp_path / "copy", "0" * 64)


def test_the_document_lists_the_corpus() -> None:
    document = (ROOT / "docs" / "hostile.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", document, re.MULTILINE)
    listed = {name.strip(): what.strip() for name, what in rows}
    for sample in hostile_corpus.SAMPLES:
        outcome = "accepted" if sample.exit_code == hostile_corpus.ACCEPTED else f"exit code {sample.exit_code}"
        assert listed.get(sample.name, "").startswith(outcome), sample.name
