"""Every command through the program's own entrance: what it prints, as JSON too, and how it exits."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lorareg.cli.ingest import task_name
from lorareg.cli.main import COMMANDS
from lorareg.registry import ingest, intake

Run = Callable[..., Any]

INGEST = (
    '{"adapters":[{"name":"str","note":"str","original_bytes":"int","outcome":"str","path":"str","reason":"NoneType",'
    '"version":"int"}],"counts":{"new":"int"}}'
)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_says_what_and_not_how(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Usage: lorareg {command}" in result.out
    assert "Raises" not in result.out


def test_top_help_shows_each_summary_whole(run: Run) -> None:
    lines = run("--help").out.splitlines()[1:]
    assert {line.split()[0] for line in lines if line.startswith("  ") and line.strip()} >= set(COMMANDS)
    assert not [line for line in lines if line.endswith("...")]


def test_version_is_the_installed_one(run: Run) -> None:
    assert run("--version").out == f"lorareg {version('lorareg')}\n"


def test_ingest_tells_new_from_known(
    run: Run, folders: Path, tmp_path: Path, fingerprint: Callable[[Any], str]
) -> None:
    first = run("ingest", folders, "--home", tmp_path / "r", "--json")
    assert fingerprint(first.data) == INGEST
    assert first.data["counts"] == {"new": 3}
    again = run("ingest", folders, "--home", tmp_path / "r")
    assert again.exit_code == 0
    assert "3 known" in again.out


def test_ingest_goes_on_past_a_refused_adapter(run: Run, folders: Path, tmp_path: Path) -> None:
    (folders / "man-de" / "adapter_config.json").write_text("{")
    result = run("ingest", folders, "--home", tmp_path / "r", "--json")
    assert result.exit_code == 12
    assert "1 of 3 adapters were refused" in result.err
    assert result.data["counts"] == {"refused": 1, "new": 2}
    (refused,) = [line for line in result.data["adapters"] if line["outcome"] == "refused"]
    assert refused["name"] == "man-de"
    assert "adapter_config.json" in refused["reason"]


def test_ingest_of_nothing_makes_no_registry(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("ingest", tmp_path / "empty", "--home", tmp_path / "r")
    assert result.exit_code == 10
    assert "no adapter here or below" in result.err
    assert not (tmp_path / "r").exists()


def test_ingest_of_one_refused_adapter_exits_with_its_reason(run: Run, folders: Path, tmp_path: Path) -> None:
    (folders / "man-de" / "adapter_model.safetensors").write_bytes(b"short")
    result = run("ingest", folders / "man-de", "--home", tmp_path / "r")
    assert result.exit_code == 10
    assert "adapter_model.safetensors" in result.err


def test_a_full_disk_still_tells_what_was_taken_in(
    run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(staging: Any, folder: Any) -> Any:
        if folder.path.name == max(path.name for path in folders.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return ingest.stage_files(staging, folder)

    monkeypatch.setattr(intake, "stage_files", full)
    result = run("ingest", folders, "--home", tmp_path / "r")
    assert result.exit_code == 74
    assert "No space left on device. Free some space" in result.err
    assert "2 new, 1 refused" in result.out


def test_ingest_takes_a_name_and_a_description_for_one(run: Run, folders: Path, tmp_path: Path) -> None:
    home = tmp_path / "r"
    many = run("ingest", folders, "--name", "x", "--home", home)
    assert (many.exit_code, "3 adapters found" in many.err) == (2, True)
    run("ingest", folders / "man-de", "--name", "de/manual", "--description", "German manuals", "--home", home)
    assert run("show", "de/manual", "--home", home, "--json").data["description"] == "German manuals"


@pytest.mark.parametrize(
    ("folder", "expected"), [("", "root"), ("a", "a"), ("a/b", "a/b"), ("a/b/c", "a.b/c"), ("a/b/c/d", "a.b.c/d")]
)
def test_names_come_from_where_an_adapter_is(folder: str, expected: str) -> None:
    root = Path("/some/root")
    assert task_name(root, root / folder) == expected


def test_list_shows_the_latest_and_all(run: Run, encoded_home: Path) -> None:
    run("rm", "man-nl", "--home", encoded_home)
    entries = run("list", "--home", encoded_home, "--json").data["adapters"]
    assert [entry["name"] for entry in entries] == ["man-de", "src-rust"]
    assert (entries[0]["tier"], entries[0]["stored_bytes"], entries[0]["relative_error"]) == ("residual", 4000, 0.11)
    everything = run("list", "--all", "--home", encoded_home)
    assert "removed 2" in everything.out
    assert run("list", "-q", "--home", encoded_home).out == "man-de@1\nsrc-rust@1\n"


def test_list_of_one_cohort(run: Run, encoded_home: Path) -> None:
    name = run("cohorts", "-q", "--home", encoded_home).out.strip()
    assert len(run("list", "--cohort", name, "--home", encoded_home, "--json").data["adapters"]) == 3
    missing = run("list", "--cohort", "nowhere", "--home", encoded_home)
    assert (missing.exit_code, "'nowhere'" in missing.err) == (4, True)


def test_show_tells_how_an_adapter_is_stored(run: Run, encoded_home: Path) -> None:
    data = run("show", "man-de", "--home", encoded_home, "--json").data
    assert data["encoding"]["generator"] == "slots v1"
    assert data["encoding"]["fidelity"]["relative_error"] == 0.11
    assert {file["path"] for file in data["files"]} >= {"README.md", "adapter_config.json"}
    assert "tier residual" in run("show", "man-de@1", "--home", encoded_home).out


def test_show_suggests_near_names(run: Run, home: Path) -> None:
    result = run("show", "man-n", "--home", home)
    assert result.exit_code == 4
    assert "Did you mean 'man-nl'" in result.err


def test_cohorts_counts_what_is_encoded(run: Run, encoded_home: Path) -> None:
    (cohort,) = run("cohorts", "--home", encoded_home, "--json").data["cohorts"]
    assert (cohort["adapters"], cohort["encoded"], cohort["generators"]) == (3, 3, ["slots v1"])
    assert "slots v1" in run("cohorts", "--home", encoded_home).out


def test_tags_resolve_move_and_go(run: Run, home: Path) -> None:
    assert "man-de@stable means man-de@1" in run("tag", "man-de", "stable", "--home", home).out
    assert run("show", "man-de@stable", "--home", home, "--json").data["tags"] == ["stable"]
    assert run("tag", "man-de", "stable", "--delete", "--home", home).exit_code == 0
    gone = run("tag", "man-de", "stable", "--delete", "--home", home)
    assert (gone.exit_code, "no label 'stable'" in gone.err) == (6, True)
    number = run("tag", "man-de", "3", "--home", home)
    assert (number.exit_code, "'3'" in number.err) == (3, True)


def test_removed_adapters_come_back(run: Run, home: Path) -> None:
    assert run("rm", "man-de", "man-nl@1", "--home", home, "--json").data == {"removed": ["man-de@1", "man-nl@1"]}
    assert "`lorareg restore man-de`" in run("show", "man-de", "--home", home).err
    restored = {"restored": "man-de@1", "was_removed": True, "files": 0, "size_bytes": 0}
    assert run("restore", "man-de", "--home", home, "--json").data == restored
    assert run("show", "man-de", "--home", home).exit_code == 0


def test_check_finds_nothing_then_a_missing_blob(run: Run, home: Path) -> None:
    fine = run("check", "--home", home, "--json")
    assert (fine.exit_code, fine.data["problems"]) == (0, 0)
    blob = max((home / "blobs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    blob.unlink()
    broken = run("check", "--home", home)
    assert broken.exit_code == 26
    assert "1 problems found" in broken.err
    assert "missing from the blob store" in " ".join(broken.out.split())


def test_check_mentions_orphans_without_failing(run: Run, encoded_home: Path) -> None:
    result = run("check", "--home", encoded_home, "--json")
    assert result.exit_code == 0
    assert [finding["severity"] for finding in result.data["findings"]] == ["information"]


def test_check_reads_data_through_the_decoder(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorareg.registry.types import Finding

    verify = ModuleType("lorareg.compress.proofs.verify")
    finding = Finding("code of man-de@1", "decodes to other bytes", "Compress it again.")
    verify.check_encodings = lambda registry: iter([finding])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lorareg.compress.proofs.verify", verify)
    result = run("check", "--read-data", "--home", home, "--json")
    assert result.exit_code == 26
    assert result.data["findings"][0]["what"] == "code of man-de@1"


def test_migrate_says_when_there_is_nothing_to_do(run: Run, home: Path) -> None:
    assert "nothing to do" in run("migrate", "--home", home).out
    assert set(run("migrate", "--home", home, "--json").data) == {"found", "current", "backup"}


def test_report_prints_tables_json_and_a_page(run: Run, encoded_home: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("report", "--home", encoded_home, "--html", page)
    assert result.exit_code == 0
    assert "break-even" in result.out
    assert page.read_text().startswith("<!doctype html>")
    data = run("report", "--home", encoded_home, "--json").data
    assert set(data) == {"home", "created_at", "totals", "cohorts", "adapters", "meaning"}
    assert run("report", "-q", "--home", encoded_home).out.count("\n") == 1


def test_shared_options_work_before_and_after_the_command(run: Run, home: Path, tmp_path: Path) -> None:
    before = run("--home", home, "--json", "list")
    assert before.data == run("list", "--home", home, "--json").data
    assert run("--home", tmp_path / "none", "list", "--home", home).exit_code == 0


def test_home_option_wins_over_the_environment(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAREG_HOME", str(tmp_path / "elsewhere"))
    assert run("list").exit_code == 20
    assert run("--home", home, "list").exit_code == 0
    monkeypatch.setenv("LORAREG_HOME", str(home))
    assert run("list").exit_code == 0


def test_ctrl_c_says_how_to_go_on(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    pipeline.error = KeyboardInterrupt()
    result = run("compress", "--home", home)
    assert result.exit_code == 130
    assert "training goes on from its last checkpoint if it had come to one" in result.err


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (OSError(28, "No space left on device", "/r/blobs"), 74, "No space left on device (/r/blobs). Free some space"),
        (PermissionError(13, "Permission denied", "/r"), 74, "Check the permissions"),
        (sqlite3.OperationalError("database or disk is full"), 74, "database or disk is full"),
        (MemoryError(), 74, "Not enough memory"),
        (ValueError("odd"), 70, "Unforeseen ValueError: odd"),
    ],
)
def test_no_error_shows_a_traceback(
    run: Run, home: Path, pipeline: SimpleNamespace, error: Exception, exit_code: int, words: str
) -> None:
    pipeline.error = error
    result = run("compress", "--home", home)
    assert result.exit_code == exit_code
    assert words in result.err
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback(
    run: Run, home: Path, pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAREG_DEBUG", "1")
    pipeline.error = ValueError("odd")
    assert "Traceback" in run("compress", "--home", home).err


def test_any_command_stops_cleanly(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorareg.registry.reader.Reader.cohorts", interrupt)
    result = run("list", "--home", home)
    assert (result.exit_code, "Stopped." in result.err) == (130, True)


def test_ctrl_c_before_a_command_runs_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorareg.cli.main.app", interrupt)
    result = run("list")
    assert (result.exit_code, "Stopped." in result.err) == (130, True)


@pytest.fixture
def fake_materialize(home: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A materialize that copies the folder an adapter was ingested from."""
    from lorareg.registry.reader import Reader

    seen = SimpleNamespace(ref=None, force=None)

    def materialize(
        home: Path, ref: str, out: Path | None, *, force: bool = False, profile: str = "peft"
    ) -> SimpleNamespace:
        seen.ref, seen.force = ref, force
        with Reader(home) as reader:
            adapter = reader.adapter(ref)
        path = out or Path(adapter.name)
        shutil.copytree(adapter.source, path)
        fidelity = {"relative_error": 0.125}
        return SimpleNamespace(
            adapter=adapter,
            path=path,
            tier="residual",
            fidelity=fidelity,
            output_digest="d" * 64,
            elapsed_s=0.25,
            profile=profile,
            adapted=None,
        )

    module = ModuleType("lorareg.compress.materialize")
    module.materialize = materialize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lorareg.compress.materialize", module)
    return seen


def test_materialize_prints_tier_fidelity_and_time(
    run: Run, home: Path, tmp_path: Path, fake_materialize: SimpleNamespace
) -> None:
    result = run("materialize", "man-de", "--version", "1", "-o", tmp_path / "out", "--force", "--home", home)
    assert (fake_materialize.ref, fake_materialize.force) == ("man-de@1", True)
    for words in ("residual", "0.1250", "0.25 s", "d" * 64):
        assert words in result.out
    data = run("materialize", "man-de", "-o", tmp_path / "out2", "--home", home, "--json").data
    known = {"name", "version", "path", "tier", "fidelity", "output_digest", "size_bytes", "elapsed_s", "profile"}
    assert set(data) == known


def test_materialize_takes_one_version_only(run: Run, home: Path, fake_materialize: SimpleNamespace) -> None:
    result = run("materialize", "man-de@1", "--version", "1", "--home", home)
    assert (result.exit_code, "names a version already" in result.err) == (2, True)


def test_quickstart_shows_each_command_and_measures(
    run: Run, folders: Path, tmp_path: Path, pipeline: SimpleNamespace, fake_materialize: SimpleNamespace
) -> None:
    home = tmp_path / "tour"
    result = run("quickstart", folders, "--home", home)
    assert result.exit_code == 0
    for command in ("ingest", "compress", "materialize man-de@1", "report --html"):
        assert f"$ lorareg {command}" in result.out
    assert "relative error of delta W  exact" in result.out
    assert (home / "report.html").exists()


def test_quickstart_without_samples_says_where_they_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("quickstart")
    assert result.exit_code == 10
    assert "examples/adapters" in result.err
    assert "clone" in result.err


def test_control_characters_never_reach_the_terminal(run: Run, folders: Path, tmp_path: Path) -> None:
    home = tmp_path / "r"
    run("ingest", folders / "man-de", "--description", "evil \x1b[2J [bold]x[/bold]", "--home", home)
    for command in (("list",), ("show", "man-de")):
        out = run(*command, "--home", home).out
        assert "\x1b" not in out
        assert "[bold]x" in out
    assert json.loads(run("list", "--home", home, "--json").out)
