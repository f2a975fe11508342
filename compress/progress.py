"""How long-running work tells somebody where it stands, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Takes the stages of a job; the command line shows them as progress bars."""

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` units begins."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """`n` units are done; `figures` such as loss=0.42 describe the state."""

    def finish(self) -> None:
        """The stage is over, also when it stopped early."""

    def note(self, message: str) -> None:
        """Something the user should read."""


class Silent:
    """A reporter that says nothing."""

    def start(self, stage: str, total: int) -> None: ...

    def advance(self, n: int = 1, **figures: float) -> None: ...

    def finish(self) -> None: ...

    def note(self, message: str) -> None: ...
