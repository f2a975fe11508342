"""Processes that are forked from a test's own."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

PATIENCE_S = 60


def fork(act: Callable[[], object]) -> int:
    """A process that is this one up to here, then acts and ends; its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def expect_done(process: int) -> None:
    """It ended, and what it did was done."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            assert status == 0, "the forked process failed; what it printed is below"
            return
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("the forked process hangs")


def in_a_fork(act: Callable[[], object]) -> None:
    """Act in a forked process, and wait for it."""
    expect_done(fork(act))
