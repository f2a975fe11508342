"""What all torture shares: how often it is done, and a record of what held.

The short form is part of every run of the tests. The long form is `make torture`: every test then asks for its long
number of runs, and what was found is written into the table of `docs/reliability.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest


@dataclass
class Outcome:
    """One row of the table in docs/reliability.md."""

    promise: str  # in words a user can hold us to
    test: str
    runs: int  # 0 where the test ended before it could say
    fixed: int  # faults that this test found before now, and that were mended
    held: bool


@dataclass
class Torture:
    """A test's part in it: `runs` before, `held` after."""

    test: str
    long: bool
    seed: int
    outcome: Outcome | None = None

    def runs(self, short: int, long: int) -> int:
        """How often to do it."""
        return long if self.long else short

    def promise(self, promise: str, *, fixed: int = 0) -> None:
        """What is tried here, said first: a test that fails is a row of the table as well."""
        self.outcome = Outcome(promise, self.test, 0, fixed, held=False)

    def held(self, runs: int) -> None:
        """It was tried `runs` times, and nothing was found."""
        assert self.outcome is not None, "say the promise first"
        assert runs > 0, "what was never tried has not held"
        self.outcome.runs, self.outcome.held = runs, True


@dataclass
class Results:
    """What became of every promise of this session."""

    outcomes: list[Outcome] = field(default_factory=list)


RESULTS = pytest.StashKey[Results]()


@pytest.fixture
def torture(request: pytest.FixtureRequest) -> Iterator[Torture]:
    """How often to do it, and where to say what held; a test that uses it has to say something."""
    own = Torture(
        test=request.node.nodeid.removeprefix("tests/torture/"),
        long=request.config.getoption("--torture") == "long",
        seed=request.config.getoption("--torture-seed"),
    )
    yield own
    assert own.outcome is not None, "a test of the torture suite names the promise it holds lorareg to"
    request.config.stash.setdefault(RESULTS, Results()).outcomes.append(own.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--torture-report`, write down what held."""
    path: Path | None = session.config.getoption("--torture-report")
    results = session.config.stash.get(RESULTS, Results())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(outcome) for outcome in results.outcomes], indent=1) + "\n")
