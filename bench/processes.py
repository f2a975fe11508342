"""Running `lorareg` as a user does: a new process, timed from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

LORAREG = str(Path(sys.executable).with_name("lorareg"))
"""The console script beside this interpreter, as installing lorareg put it there."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that came to its end."""

    exit_code: int  # negative: the signal that ended it
    stdout: str
    stderr: str
    wall_s: float
    peak_rss_bytes: int


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command and wait for it.

    On Linux the peak that the kernel reports starts from what the *parent* held when it forked, so
    whoever calls this for memory figures must itself stay small: `main_job` imports no numpy.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Finished(process.returncode, out.read(), err.read(), wall_s, usage.ru_maxrss * MAX_RSS_UNIT)


def run_checked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command that must succeed; ends the program with what it said where it does not."""
    finished = run(command, environment)
    if finished.exit_code:
        sys.exit(f"exit code {finished.exit_code} from: {' '.join(command)}\n{finished.stderr.strip()[-2000:]}")
    return finished
