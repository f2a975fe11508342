"""What all torture shares: how often it is done, and a record of what held.

The short form is part of every run of the tests. The long form is `make torture`: every test then asks for its long
number of runs, and what was found is written into the table of `docs/reliability.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from scenes import Stage, staged

PROPERTY = "torture"
"""Of a test's reports: its outcome, as JSON values."""


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


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Where commands meet kills, power losses and failing disks; a registry to begin from is made once."""
    with staged(tmp_path_factory.mktemp("stage")) as made:
        yield made


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
    request.node.user_properties.append((PROPERTY, asdict(own.outcome)))


class Results:
    """What became of every promise of this session, told by reports: tests may have run in other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: list[dict[str, object]] = []
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)
        if report.when == "teardown" and report.nodeid not in self.skipped:
            self.outcomes += [dict(value) for name, value in report.user_properties if name == PROPERTY]

    def pytest_sessionfinish(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.outcomes, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """With `--torture-report`, write down what held."""
    path: Path | None = config.getoption("--torture-report")
    if path is not None and not hasattr(config, "workerinput"):  # not in a process of pytest-xdist's
        config.pluginmanager.register(Results(path), "torture-results")
