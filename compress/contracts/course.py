"""The course of a cohort's searches: what each adapter is asked, from what those before it came to.

Adapters are encoded in waves. Within a wave each is encoded for itself, by whichever process comes to it; what
is learned goes to the next wave. So the codes are the same bytes whatever the number of processes. A contract
about weights teaches nothing but a step: after the first adapter, if that, all the others are one wave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorareg.compress.contracts.contract import Contract
from lorareg.compress.contracts.gate import Ask
from lorareg.compress.contracts.rate import Budget

NEWS = 0.3
"""How far the error at which a search begins moves to where the last one ended, in logarithms.

Adapters differ: to begin right where the last one ended takes a tenth more measurements (`bench/searches.py`).
"""

LARGEST_WAVE = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an adapter's encoding taught."""

    size_bytes: int
    step: float | None  # of its residual
    found: float | None  # the error that was asked of it at last; see `gate.Kept`


@dataclass(slots=True)
class Course:
    """Where the searches of the next wave begin."""

    contract: Contract
    relative_error: float  # asked of each adapter; where the contract is about behaviour, the first to try
    step: float | None = None
    budget: Budget | None = None

    def waves(self, count: int) -> Iterator[range]:
        """Adapters 0 to count - 1, in order.

        Where waves learn from each other they grow while little is known, and shrink towards the end of a budget,
        so that what the last ones get makes up for what all others took.
        """
        done = 0
        while done < count:
            if self.contract.behaves or self.budget is not None:
                size = min(done + 1, (count - done + 1) // 2, LARGEST_WAVE)
            else:
                size = 1 if self.step is None and not done else count - done
            yield range(done, done + size)
            done += size

    def ask(self) -> Ask:
        """What every adapter of the next wave is asked."""
        return Ask(self.relative_error if self.budget is None else self.budget.next_tolerance(), self.step)

    def learn(self, ask: Ask, outcomes: Sequence[Outcome]) -> None:
        """What a wave that was asked this came to."""
        if self.budget is not None:
            self.budget.spend([outcome.size_bytes for outcome in outcomes], ask.relative_error)
        for outcome in outcomes:
            self.step = outcome.step or self.step
            if self.contract.behaves and outcome.found is not None:
                self.relative_error *= (outcome.found / self.relative_error) ** NEWS
