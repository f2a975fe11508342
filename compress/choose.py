"""Choosing the generator of a group of adapters: what is tried, at which tolerance, and how it is trained.

Without being told, the choice falls on whatever makes generator and codes together smallest, no
generator included. A network is only trained where there are enough adapters to share its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorareg.compress import conv1d_decoder, linear_decoder, mean_decoder, slots_decoder
from lorareg.compress.contract import CompressOptions
from lorareg.compress.group import Group
from lorareg.compress.plan import Members, Plan, Planner, Trained
from lorareg.compress.progress import Reporter
from lorareg.compress.rate import tolerance_for
from lorareg.registry.errors import MissingExtraError
from lorareg.registry.report import ALONE_BYTES
from lorareg.registry.types import canonical_json, sha256_hex

NONE = "none"
TYPICAL_TRIALS, BUDGET_TRIALS = 15, 40
"""Of the search for the tables' number and precision, once, and with the search for a budget's tolerance."""

NETWORK_WORTH_TRYING = 100
"""Fewest adapters for which `auto` trains a network: with 34, its file cost five times what it saved."""

ROUGH_ROUNDS = 2
CLOSE_PLAN = 0.1
"""A budget is planned for anew where the tolerance it needs is farther off than this."""


def trains_network(arch: str, count: int) -> bool:
    """Whether a network is trained for `count` adapters: on request, or where they are enough to share its bytes."""
    if arch == "auto":
        return count >= NETWORK_WORTH_TRYING
    return arch in (slots_decoder.NAME, conv1d_decoder.NAME)


class GeneratorChoice:
    """The choice for one group of adapters that share what they can."""

    def __init__(
        self, members: Members, digests: Sequence[str], options: CompressOptions, checkpoints: Path, reporter: Reporter
    ) -> None:
        """`digests` are the members' own; a training run that was stopped goes on from a file in `checkpoints`."""
        self.members, self.digests, self.options = members, digests, options
        self.checkpoints, self.reporter = checkpoints, reporter
        self.checkpoint: Path | None = None  # of the run this choice has made
        self.tolerance = members.tolerance  # what the plan is made for; where there is a budget, what it came to
        self.message = ""

    def best(self) -> Plan:
        """The cheapest way to store the group, or the one that was asked for."""
        arch, count = self.options.arch, len(self.members.originals)
        trials = TYPICAL_TRIALS if self.options.contract.budget is None else BUDGET_TRIALS
        self.reporter.start("measuring what a generator would save", trials)
        planner = self._near_budget(Planner(self.members, self.reporter))
        plans = self._tables(planner)
        aim = self._aim(min(plan.estimated_bytes for plan in plans.values()))
        if aim != self.tolerance:
            self.tolerance, planner = aim, planner.at(aim)
            plans = self._tables(planner)
        self.reporter.finish()
        pays = plans[mean_decoder.NAME].estimated_bytes < plans[NONE].estimated_bytes
        if trains_network(arch, count) and (pays or arch != "auto"):
            name = slots_decoder.NAME if arch == "auto" else arch
            plans[name] = planner.trained(name, plans[mean_decoder.NAME], self._train)
        best = arch if arch != "auto" else min(plans, key=lambda name: plans[name].estimated_bytes)
        self.message = _comparison(plans, best, count)
        alone = plans[NONE].estimated_bytes / count
        return replace(plans[best], metrics={**plans[best].metrics, ALONE_BYTES: round(alone)})

    def forget_checkpoint(self) -> None:
        """What the training run gave is recorded: its checkpoint is of no more use."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
            self.checkpoint = None

    def _near_budget(self, planner: Planner) -> Planner:
        """The planner at a tolerance near what a budget needs, found with two trials a round."""
        if self.options.contract.budget is not None:
            for _ in range(ROUGH_ROUNDS):
                aim = self._aim(planner.rough().estimated_bytes)
                if aim == self.tolerance:
                    break
                self.tolerance, planner = aim, planner.at(aim)
        return planner

    def _aim(self, estimated_bytes: float) -> float:
        """The tolerance that should bring a plan to the budget; the present one where it is near, or there is none."""
        share = self.options.contract.budget
        if share is None:
            return self.tolerance
        wanted = share * sum(len(original.data) for original in self.members.originals)
        aim = tolerance_for(self.tolerance, estimated_bytes, wanted)
        return aim if abs(aim / self.tolerance - 1) > CLOSE_PLAN else self.tolerance

    def _tables(self, planner: Planner) -> dict[str, Plan]:
        """What can be compared without training: always the simplest, then more tables where one pays already."""
        arch, count = self.options.arch, len(self.members.originals)
        plans = {NONE: planner.without_generator()}
        plans[mean_decoder.NAME] = planner.mean(plans[NONE])
        pays = plans[mean_decoder.NAME].estimated_bytes < plans[NONE].estimated_bytes
        if arch == linear_decoder.NAME or (arch == "auto" and pays and count > 2):
            plans[linear_decoder.NAME] = planner.linear(plans[mean_decoder.NAME])
        return plans

    def _train(self, arch: str, group: Group) -> Trained:
        train = train_module()
        config = replace(train.PRESETS[arch], seed=self.options.seed, mask_share=self.options.mask_latents)
        if self.options.steps is not None:
            config = replace(config, steps=self.options.steps)
        # Named by everything that decides the result, so that a run that differs in anything starts anew.
        key = [list(self.digests), group.encoder, group.tolerance, asdict(config)]
        name = sha256_hex(canonical_json(key).encode())[:32]
        self.checkpoint = self.checkpoints / f"{name}.safetensors"
        trained: Trained = train.train_generator(group, config, train.Checkpoint(self.checkpoint), self.reporter)
        return trained


def train_module() -> Any:
    """The training room, which needs torch.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        from lorareg.compress import train
    except ImportError as error:
        raise MissingExtraError(feature="Training a generator", package=error.name or "torch", extra="train") from error
    return train


def _comparison(plans: Mapping[str, Plan], best: str, count: int) -> str:
    """What was compared, in the user's words."""
    names = {"none": "no generator", "mean": "the mean table alone", "linear": "a linear generator"}
    figures = ", ".join(f"{names.get(name, name)} {plan.estimated_bytes / 1e3:.0f} kB" for name, plan in plans.items())
    return f"estimated for {count} adapters in all: {figures}; stored with {names.get(best, best)}"
