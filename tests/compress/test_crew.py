"""Work shared among processes: the same codes whoever makes them, training within rounding, nobody lost unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.course import Outcome
from lorareg.compress.contracts.gate import Ask
from lorareg.compress.crew import ranks
from lorareg.compress.crew.jobs import Job, Made
from lorareg.compress.crew.messages import Setting, error_from, error_to, job_arrays, jobs_of, trial_arrays, trials_of
from lorareg.compress.planning.team import Trial
from lorareg.registry.certificate import Proof
from lorareg.registry.errors import IntegrityError, LostRankError
from lorareg.registry.store import Registry
from lorareg.registry.types import NewEncoding

AddGroup = Callable[..., None]
NAMES = ("a", "b", "c", "d", "e", "f", "g")
ALONE = ("-m", "lorareg.cli")


def compressed(home: Path, *options: str, launcher: Sequence[str] = ALONE, **environment: str) -> Any:
    """Run `lorareg compress` on a registry, and give what the process said."""
    command = [sys.executable, *launcher, "compress", *options]
    environment = {**os.environ, "LORAREG_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def started(home: Path, *options: str) -> subprocess.Popen[str]:
    """Start `lorareg compress` on a registry, and leave it running."""
    return subprocess.Popen(
        [sys.executable, *ALONE, "compress", *options],
        env={**os.environ, "LORAREG_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def contents(home: Path) -> tuple[list[Any], list[Any]]:
    """All that is decided by encoding: of every code, and of every generator."""
    with Registry.open(home, create=False) as registry:
        assert list(registry.check(read_data=True)) == []
        encodings = [e for cohort in registry.cohorts() for e in registry.encodings(cohort.id)]
        codes = [(e.adapter_id, e.generator_id, e.sha256, e.output_digest, e.tolerance, e.fidelity) for e in encodings]
        return codes, [(g.id, g.sha256, g.arch) for g in registry.generators()]


@pytest.fixture
def filled(registry: Registry, add_group: AddGroup, tmp_path: Path) -> Callable[[str], Path]:
    """`filled("name")`: a copy of a registry of seven adapters that resemble each other and one that does not."""
    add_group(registry, *NAMES, width=96)
    add_group(registry, "alone", init=9, width=96)
    home = registry.home
    registry.close()

    def copy(name: str) -> Path:
        return Path(shutil.copytree(home, tmp_path / name))

    return copy


CONTRACTS = {
    "default": (),
    "linear": ("--arch", "linear", "--tolerance", "0.1"),
    "none": ("--arch", "none"),
    "budget": ("--budget", "8%"),
    "lossless": ("--tolerance", "0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("contract", CONTRACTS)
def test_codes_are_the_same_bytes_whatever_the_number_of_processes(
    contract: str, filled: Callable[[str], Path]
) -> None:
    found = []
    for nproc in (1, 2, 3):
        home = filled(f"{contract}-{nproc}")
        done = compressed(home, *CONTRACTS[contract], "--nproc", str(nproc))
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        found.append(contents(home))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == len(NAMES) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *ALONE),
        ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", *ALONE),
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_give_the_same(launcher: Sequence[str], filled: Callable[[str], Path]) -> None:
    alone, launched = filled("alone-home"), filled("launched-home")
    assert compressed(alone).returncode == 0
    done = compressed(launched, "--json", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cohorts"][0]["encoded"] == len(NAMES) + 1  # one process alone prints
    assert contents(launched) == contents(alone)


@pytest.mark.slow
def test_adapters_that_come_later_are_shared_out_too(filled: Callable[[str], Path], add_group: AddGroup) -> None:
    homes = [filled("later-1"), filled("later-2")]
    for nproc, home in enumerate(homes, 1):
        assert compressed(home, "--arch", "mean").returncode == 0
        with Registry.open(home, create=False) as registry:
            add_group(registry, "late", "later", "latest", width=96)
        done = compressed(home, "--nproc", str(nproc))
        assert done.returncode == 0, done.stderr
    assert contents(homes[0]) == contents(homes[1])


@pytest.mark.slow
def test_what_a_model_does_is_judged_in_every_process(
    registry: Registry, add_tiny: Callable[..., Any], tiny_path: Path, tmp_path: Path
) -> None:
    for name in NAMES[:4]:
        add_tiny(registry, name)
    home = registry.home
    registry.close()
    found = []
    for nproc in (1, 2):
        copy = Path(shutil.copytree(home, tmp_path / f"judged-{nproc}"))
        options = ("--tolerance", "kl=0.001", "--base-model", str(tiny_path), "--arch", "none", "--nproc", str(nproc))
        done = compressed(copy, *options)
        assert done.returncode == 0, done.stderr
        found.append(contents(copy))
    assert found[0] == found[1]
    assert all("kl_divergence" in code[5] for code in found[0][0])


# -- training ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does_within_rounding(filled: Callable[[str], Path]) -> None:
    """Gradients are summed in another order: the loss after 40 steps differs by less than one part in a thousand."""
    losses, worst = [], []
    for nproc in (1, 2):
        home = filled(f"trained-{nproc}")
        done = compressed(home, "--arch", "slots", "--steps", "40", "--nproc", str(nproc))
        assert done.returncode == 0, done.stderr
        with Registry.open(home, create=False) as registry:
            (record,) = registry.generators()
            losses.append(json.loads(record.metrics)["refined_loss"])
            cohort = registry.cohorts()[0].id
            worst.append(max(json.loads(e.fidelity)["relative_error"] for e in registry.encodings(cohort)))
            assert list(registry.check(read_data=True)) == []
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert max(worst) <= 0.2


@pytest.mark.slow
def test_batch_norm_is_not_split(filled: Callable[[str], Path]) -> None:
    found = []
    for nproc in (1, 2):
        home = filled(f"conv-{nproc}")
        done = compressed(home, "--arch", "conv1d", "--steps", "2", "--nproc", str(nproc))
        assert done.returncode == 0, done.stderr
        found.append(contents(home))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_killed_rank_is_told_and_training_goes_on_from_its_checkpoint(filled: Callable[[str], Path]) -> None:
    home = filled("killed")
    options = ("--arch", "slots", "--steps", "100000", "--nproc", "2")
    process = started(home, *options)
    wait_for(lambda: any((home / "checkpoints").glob("*.safetensors")), process)
    (worker,) = children_of(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == LostRankError.exit_code, said
    assert "Process 1 of this run is lost: it ended with exit code -9" in " ".join(said.split())
    assert "Traceback" not in said
    assert contents(home) == ([], [])  # nothing half-made was recorded

    go_on = started(home, *options)
    assert go_on.stderr is not None
    for line in go_on.stderr:
        if "Going on from step" in line:
            break
    else:
        pytest.fail("it began anew")
    workers = children_of(go_on.pid)
    go_on.kill()
    go_on.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))  # who is led by nobody goes


def test_an_error_in_a_worker_is_the_error_of_the_run(filled: Callable[[str], Path]) -> None:
    home = filled("damaged")
    with Registry.open(home, create=False) as registry:
        adapter = registry.adapter("c")
        digest = next(f.sha256 for f in registry.files(adapter) if f.path == "adapter_model.safetensors")
        path = registry.blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xee")
    done = compressed(home, "--arch", "none", "--nproc", "2")
    assert done.returncode == IntegrityError.exit_code
    assert digest in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(filled: Callable[[str], Path]) -> None:
    home = filled("stopped")
    process = started(home, "--arch", "slots", "--steps", "100000", "--nproc", "2")
    wait_for(lambda: any((home / "checkpoints").glob("*.safetensors")), process)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("Stopped"), "Traceback" in said) == (130, 1, False), said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_process_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LostRankError, match="Process 1 of this run is lost: it ended with exit code 1"):
        ranks.launch(2, tmp_path)


@pytest.mark.parametrize(
    ("said", "about_others"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:31001", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("CUDA out of memory. Tried to allocate 20.00 GiB", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_what_fails_in_this_process_is_not_laid_on_others(said: str, about_others: bool) -> None:
    assert ranks._is_of_the_group(RuntimeError(said)) == about_others


# -- messages ------------------------------------------------------------------------------------


def test_trials_and_jobs_survive_the_way() -> None:
    vector = np.arange(-3, 3, dtype=np.int8)
    trials = [Trial(3, 0.1 + 0.2, 1 / 3, vector, vector[:0]), Trial(0, 0.2, None, -vector, vector[:0])]
    for before, after in zip(trials, trials_of(trial_arrays(trials)), strict=True):
        assert (after.index, after.tolerance, after.step) == (before.index, before.tolerance, before.step)
        np.testing.assert_array_equal(after.latent, before.latent)
        assert after.condition.dtype == np.int8
    jobs = [Job(1, Ask(0.3, 0.01)), Job(2, Ask(0.3))]
    assert [job.ask for job in jobs_of(job_arrays(jobs))] == [job.ask for job in jobs]


def test_what_was_made_survives_the_way() -> None:
    new = NewEncoding(1, None, "residual-2", "residual", "ab" * 32, 10, "cd" * 32, 20, {"relative_error": 1 / 3}, {})
    proof = Proof({"norm": 0.1}, b"\x00\xff", b"")
    made = Made(Outcome(10, 0.1 + 0.2, None), new, proof, True)
    for one in (made, Made(Outcome(5, None, 0.2))):
        assert Made.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_settings_survive_the_way() -> None:
    setting = Setting(1, ["a@1"], Contract(gain=0.99, distill=True), Path("/models/base"), 7)
    assert Setting.from_dict(json.loads(json.dumps({**setting.to_dict(), "generator_id": 3}))) == setting


def test_errors_survive_the_way() -> None:
    error = IntegrityError(what="Blob x", expected="a", found="b", remedy="Do.")
    again = error_from(json.loads(json.dumps(error_to(error))))
    assert (type(again), str(again)) == (IntegrityError, str(error))


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str] | None = None, most_s: float = 60) -> None:
    """Wait until something has happened, while a process that should bring it about lives."""
    until = time.monotonic() + most_s
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
