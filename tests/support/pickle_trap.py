"""Whatever loads a pickle on lorareg's behalf fails, wherever in the tests it happens.

What torch, multiprocessing and others load among themselves is theirs: only a stack with a frame of lorareg's counts.
"""

from __future__ import annotations

import _pickle
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest


class PickleLoadedError(BaseException):
    """A pickle was to be loaded below a frame of lorareg's; no `except Exception` keeps it quiet."""


def frame_of_lorareg() -> str | None:
    """The innermost module of lorareg's that is being run, if there is one."""
    frame = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == "lorareg" or module.startswith("lorareg."):
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def pickle_trap() -> Iterator[list[str]]:
    """While it lasts, no pickle is loaded below lorareg; the stacks of those that were to be."""
    sprung: list[str] = []

    def expect_nobody() -> None:
        caller = frame_of_lorareg()
        if caller is not None:
            sprung.append("".join(traceback.format_stack(limit=20)))
            raise PickleLoadedError(f"a pickle was to be loaded from {caller}")

    def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(load)
        def call(*arguments: Any, **options: Any) -> Any:
            expect_nobody()
            return load(*arguments, **options)

        return call

    def guarded_class(unpickler: Any) -> Any:
        class Guarded(unpickler):  # type: ignore[misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                expect_nobody()
                super().__init__(*arguments, **options)

        return Guarded

    with pytest.MonkeyPatch.context() as patch:
        for module in (pickle, _pickle):
            for name in ("load", "loads", "_load", "_loads"):
                if hasattr(module, name):
                    patch.setattr(module, name, guarded(getattr(module, name)))
            for name in ("Unpickler", "_Unpickler"):
                if hasattr(module, name):
                    patch.setattr(module, name, guarded_class(getattr(module, name)))
        yield sprung
