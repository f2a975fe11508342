"""Choosing the generator of a group of adapters: what is tried, at which tolerance, and how it is trained.

Without being told, the choice falls on whatever makes generator and codes together smallest, no
generator included. A network is only trained where there are enough adapters to share its bytes, and a larger
one only where the last made the total smaller. With `--generator-budget` no generator is considered
whose file would be larger than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.contracts.rate import size_slope, tolerance_for
from lorareg.compress.generators import conv1d_decoder, linear_decoder, mean_decoder, slots_decoder
from lorareg.compress.generators.generator import DECODERS, MAX_WEIGHTS
from lorareg.compress.generators.group import Group
from lorareg.compress.planning.plan import Members, Plan, Planner
from lorareg.compress.planning.team import Alone, Team, Trained, train_module
from lorareg.compress.progress import Reporter
from lorareg.registry.errors import ContractError
from lorareg.registry.report import ALONE_BYTES
from lorareg.registry.types import canonical_json, sha256_hex

NONE = "none"
TYPICAL_TRIALS, BUDGET_TRIALS = 30, 60
"""Of the search for the tables' number and precision, once, and with the search for a budget's tolerance."""

NETWORK_WORTH_TRYING = 100
"""Fewest adapters for which `auto` trains a network: with 34, its file cost five times what it saved."""

WIDEST = 256
"""Of the networks that are tried. Each is twice as wide as the last, in `hidden` and `inner`."""

ROUGH_ROUNDS, MOST_REPLANS = 2, 3
CLOSE_PLAN = 0.17
"""A budget is planned for anew where a plan misses it by a larger share of its bytes than this."""


def trains_network(arch: str, count: int) -> bool:
    """Whether a network is trained for `count` adapters: on request, or where they are enough to share its bytes."""
    if arch == "auto":
        return count >= NETWORK_WORTH_TRYING
    return arch in (slots_decoder.NAME, conv1d_decoder.NAME)


class GeneratorChoice:
    """The choice for one group of adapters that share what they can."""

    def __init__(
        self,
        members: Members,
        digests: Sequence[str],
        options: CompressOptions,
        checkpoints: Path,
        reporter: Reporter,
        team: Team | None = None,
    ) -> None:
        """`digests` are the members' own; a training run that was stopped goes on from a file in `checkpoints`.

        `team` encodes and trains, without one this process.
        """
        self.members, self.digests, self.options = members, digests, options
        self.team = team or Alone(members.layout, members.originals, reporter)
        self.checkpoints, self.reporter = checkpoints, reporter
        self.most_bytes = math.inf if options.generator_budget is None else options.generator_budget
        self.made: set[Path] = set()  # checkpoints of the runs this choice has made
        self.tolerance = members.tolerance  # what the plan is made for; where there is a budget, what it came to
        self.message = ""

    def best(self) -> Plan:
        """The cheapest way to store the group, or the cheapest of the architecture that was asked for.

        Raises:
            ContractError: no generator of that architecture is as small as was asked for.
        """
        arch, count = self.options.arch, len(self.members.originals)
        trials = TYPICAL_TRIALS if self.options.contract.budget is None else BUDGET_TRIALS
        self.reporter.start("measuring what a generator would save", trials)
        planner = self._near_budget(Planner(self.members, self.reporter, self.most_bytes, self.team))
        plans, last = self._tables(planner), None
        for _ in range(MOST_REPLANS):
            found = (self.tolerance, min(plan.estimated_bytes for plan in plans.values()))
            aim = self._aim(found[1], size_slope(last, found))
            if aim == self.tolerance:
                break
            last, self.tolerance, planner = found, aim, planner.at(aim)
            plans = self._tables(planner)
        self.reporter.finish()
        if trains_network(arch, count) and (arch != "auto" or _pays(plans)):
            plans |= self._networks(planner, plans)
        of_arch = [name for name, plan in plans.items() if arch in ("auto", _arch(plan))]
        if not of_arch:
            raise self._out_of_reach(planner)
        best = min(of_arch, key=lambda name: plans[name].estimated_bytes)
        self.message = self._comparison(plans, best)
        alone = plans[NONE].estimated_bytes / count
        return replace(plans[best], metrics={**plans[best].metrics, ALONE_BYTES: round(alone)})

    def forget_checkpoints(self) -> None:
        """What training gave is recorded: its checkpoints are of no more use."""
        for path in self.made:
            path.unlink(missing_ok=True)
        self.made.clear()

    def _near_budget(self, planner: Planner) -> Planner:
        """The planner at a tolerance near what a budget needs, found with two trials a round."""
        if self.options.contract.budget is not None:
            last = None
            for _ in range(ROUGH_ROUNDS):
                found = (self.tolerance, planner.rough().estimated_bytes)
                aim = self._aim(found[1], size_slope(last, found))
                if aim == self.tolerance:
                    break
                last, self.tolerance, planner = found, aim, planner.at(aim)
        return planner

    def _aim(self, estimated_bytes: float, slope: float) -> float:
        """The tolerance that should bring a plan to the budget; the present one where it is near, or there is none."""
        share = self.options.contract.budget
        if share is None:
            return self.tolerance
        wanted = share * sum(len(original.data) for original in self.members.originals)
        if abs(estimated_bytes / wanted - 1) <= CLOSE_PLAN:
            return self.tolerance
        return tolerance_for(self.tolerance, estimated_bytes, wanted, slope)

    def _tables(self, planner: Planner) -> dict[str, Plan]:
        """What can be compared without training: always the simplest, then more tables where one pays already."""
        arch, count = self.options.arch, len(self.members.originals)
        plans = {NONE: planner.without_generator()}
        mean = planner.mean(plans[NONE])
        if mean is None:
            return plans
        plans[mean_decoder.NAME] = mean
        if arch == linear_decoder.NAME or (arch == "auto" and _pays(plans) and count > 2):
            linear = planner.linear(mean)
            if linear is not None:
                plans[linear_decoder.NAME] = linear
        return plans

    def _networks(self, planner: Planner, tables: Mapping[str, Plan]) -> dict[str, Plan]:
        """Networks, each wider than the last, while they make the total smaller and their files are small enough.

        The mean table beside a network is made coarser where the two together would be too large.
        """
        auto = self.options.arch == "auto"
        arch = slots_decoder.NAME if auto else self.options.arch
        before = min(plan.estimated_bytes for plan in tables.values()) if auto else math.inf
        plans: dict[str, Plan] = {}
        for sizes in self._sizes(arch):
            mean = tables.get(mean_decoder.NAME)
            room = self.most_bytes - self._network_bytes(arch, sizes)
            if mean is not None and len(mean.file) > room:
                self.reporter.start("making the mean table coarser, beside a network", TYPICAL_TRIALS)
                mean = planner.within(room).mean(tables[NONE])
                self.reporter.finish()
            if mean is None:
                break
            plan = planner.trained(arch, mean, partial(self._train, sizes))
            if len(plan.file) > self.most_bytes:
                break
            plans[f"{arch} ({sizes['hidden']} wide)" if plans else arch] = plan
            if plan.estimated_bytes >= before:
                break
            before = plan.estimated_bytes
        return plans

    def _sizes(self, arch: str) -> Iterator[Mapping[str, int]]:
        """The sizes to train a network at: the preset's, then wider ones where nobody asked for the preset's alone."""
        sizes: Mapping[str, int] = train_module().PRESETS[arch].sizes
        yield sizes
        grows = self.options.arch == "auto" or self.options.generator_budget is not None
        while sizes and grows and max(sizes.values()) < WIDEST:
            sizes = {name: 2 * size for name, size in sizes.items()}
            yield sizes

    def _network_bytes(self, arch: str, sizes: Mapping[str, int]) -> int:
        """What a network's tensors take before entropy coding, which makes them smaller."""
        train = train_module()
        config = self._config(arch, sizes)
        condition_size = self.members.conditions[0].size
        shapes = DECODERS[arch].tensor_shapes(self.members.layout, config.latent_size, condition_size, config.stored)
        bits: int = sum(math.prod(shape) * train.bits_of(name, config) for name, shape in shapes.items())
        return bits // 8

    def _out_of_reach(self, planner: Planner) -> ContractError:
        """That no generator is as small as was asked for, and how small one can be."""
        arch = self.options.arch
        if self.options.generator_budget is None:
            return ContractError(
                option=f"--arch {arch}",
                reason=f"a table of {self.members.layout.weight_count} weights is more than the {MAX_WEIGHTS} that a "
                "generator may have beside its mean; try --arch mean or auto",
            )
        smallest = planner.smallest_bytes(int(arch == linear_decoder.NAME))
        if arch in (slots_decoder.NAME, conv1d_decoder.NAME):
            smallest += self._network_bytes(arch, train_module().PRESETS[arch].sizes)
        return ContractError(
            option=f"--generator-budget {self.options.generator_budget}",
            reason=f"the smallest {arch} generator of these {len(self.members.originals)} adapters takes {smallest} "
            "bytes, nothing but zeros in its tables; give that or more, or --arch auto, which does without a generator "
            "where none is small enough",
        )

    def _config(self, arch: str, sizes: Mapping[str, int]) -> Any:
        """How a network of these sizes is trained, a `train.TrainConfig`."""
        asked = {"seed": self.options.seed, "mask_share": self.options.mask_latents, "sizes": sizes}
        if self.options.steps is not None:
            asked["steps"] = self.options.steps
        return replace(train_module().PRESETS[arch], **asked)

    def _train(self, sizes: Mapping[str, int], arch: str, group: Group) -> Trained:
        config = self._config(arch, sizes)
        # Named by everything that decides the result, so that a run that differs in anything starts anew.
        key = [list(self.digests), group.encoder, group.tolerance, asdict(config)]
        name = sha256_hex(canonical_json(key).encode())[:32]
        path = self.checkpoints / f"{name}.safetensors"
        self.made.add(path)
        return self.team.train(group, config, path)

    def _comparison(self, plans: Mapping[str, Plan], best: str) -> str:
        """What was compared, in the user's words; with a limit, how large each generator's file is."""
        names = {"none": "no generator", "mean": "the mean table alone", "linear": "a linear generator"}
        capped = self.options.generator_budget is not None
        figures = ", ".join(
            f"{names.get(name, name)} {plan.estimated_bytes / 1e3:.0f} kB"
            + (f" (its file {len(plan.file) / 1e3:.1f} kB)" if capped and plan.file else "")
            for name, plan in plans.items()
        )
        limit = f", with a generator of at most {self.most_bytes / 1e3:g} kB" if capped else ""
        return (
            f"estimated for {len(self.members.originals)} adapters in all{limit}: {figures}; stored with "
            f"{names.get(best, best)}" + (", as no generator is small enough" if len(plans) == 1 else "")
        )


def _arch(plan: Plan) -> str:
    return plan.loaded.generator.arch if plan.loaded is not None else NONE


def _pays(plans: Mapping[str, Plan]) -> bool:
    """Whether the mean table alone makes the total smaller."""
    mean = plans.get(mean_decoder.NAME)
    return mean is not None and mean.estimated_bytes < plans[NONE].estimated_bytes
