"""`compress` from end to end: cohorts in, measured encodings out.

    cohort --> adapters without an encoding that meets the tolerance
      | an existing generator covers it -----------------> fit its latent --+
      | the others, grouped by shared initialisation --> plan --> train ----+--> encode
      |    another cohort's generator makes less of them -> fit its latent -+
                                                                                  |
    rows <-- blobs <-- decoded again from the store, digest compared <-----------+

Each adapter is recorded on its own as soon as it has been verified, so stopping loses those in work alone. Encoding
and training are a crew's (see `crew`): this process, or several of which this one records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from lorareg.compress.codec.codecs import LoadedGenerator
from lorareg.compress.contracts.contract import DEFAULT_TOLERANCE, CompressOptions, Contract
from lorareg.compress.contracts.gate import Ask
from lorareg.compress.contracts.judge import Judge, Judges
from lorareg.compress.contracts.source import Source
from lorareg.compress.crew.jobs import Workplace
from lorareg.compress.crew.solo import CodingTeam, Crew, Solo
from lorareg.compress.factors.canonical import group_by_init
from lorareg.compress.generators.generator import Int8
from lorareg.compress.generators.group import Group
from lorareg.compress.lending import Lender, by_lender, find_lenders
from lorareg.compress.materialize import load_generator
from lorareg.compress.planning.choose import NONE, GeneratorChoice, trains_network
from lorareg.compress.planning.coordinates import EMPTY, Turned, covers, latent_of
from lorareg.compress.planning.plan import Members, Plan, sample_places
from lorareg.compress.planning.team import Trial, train_module
from lorareg.compress.progress import Reporter
from lorareg.compress.recording import Drawn, Recorder
from lorareg.compress.selection import Selection
from lorareg.compress.tasks.describe import TaskVectors
from lorareg.registry.damage import Damage
from lorareg.registry.errors import BaseModelError, IntegrityError, MissingExtraError, NothingToDoError
from lorareg.registry.store import Registry
from lorareg.registry.types import (
    Adapter,
    Cohort,
    Layout,
    NewGenerator,
    Tier,
)
from lorareg.registry.types import Generator as GeneratorRecord

FIT_STEPS = 120
ALONE = Plan(loaded=None, file=b"", latents=[], estimated_bytes=0.0, steps={})


@dataclass(frozen=True, slots=True)
class CohortSummary:
    """What `compress` did to one cohort."""

    cohort: str
    adapters: int
    encoded: int
    unchanged: int
    generator: str | None
    generator_bytes: int
    stored_bytes: int
    original_bytes: int
    by_tier: dict[str, int]
    worst_relative_error: float
    mean_gain: float | None  # retained, over the adapters it was measured for
    worst_gain: float | None
    worst_kl: float | None  # nats a token, likewise
    message: str


def compress(
    registry: Registry,
    cohorts: Sequence[str],
    options: CompressOptions,
    reporter: Reporter,
    crew: Crew | None = None,
    damage: Damage | None = None,
) -> list[CohortSummary]:
    """Encode every adapter of the cohorts (all of them by default) within the tolerance.

    `crew` encodes and trains, without one this process. Adapters and cohorts whose rows are damaged are passed over;
    `damage` takes them down, without one they are an error when all else is done.

    Raises:
        UnknownCohortError: one of `cohorts` does not exist.
        NothingToDoError: the registry holds no adapters.
        ContractError: the contract is about what a base model does, and none is known; or no generator of the
            architecture asked for is as small as was asked for.
        BaseModelError: the base model does not load, or a generator needs one and none was given.
        MissingExtraError: training is needed and torch is not installed.
        IntegrityError: stored bytes are damaged.
        DamagedRowsError: rows are, and no `damage` was given.
        LostRankError: a process of the crew ended before its time.
        BusyError: another process compresses or deletes: two would do the same work twice, and what is stored here
            and not yet recorded is nobody's to them.
    """
    with registry.backend.working():
        return _compress(registry, cohorts, options, reporter, crew or Solo(reporter), damage)


def _compress(
    registry: Registry,
    cohorts: Sequence[str],
    options: CompressOptions,
    reporter: Reporter,
    crew: Crew,
    damage: Damage | None,
) -> list[CohortSummary]:
    found = damage or Damage()
    chosen = _chosen(registry, cohorts, found)
    if not any(registry.has_adapters(cohort.id) for cohort in chosen):
        found.tell(registry.home)
        raise NothingToDoError(message=f"There are no adapters in {registry.home}. Run `lorareg ingest PATH` first.")
    judges = Judges(registry, options.base_model, options.seed, reporter)
    summaries: dict[int, CohortSummary] = {}
    counts = registry.cohort_counts()
    # The largest come first: they have generators to lend to the others.
    for cohort in sorted(chosen, key=lambda cohort: -counts.get(cohort.id, (0, 0))[0]):
        with found.passed_over():
            asks_model = options.needs_model and Layout.from_json(cohort.layout).is_linear
            judge = judges.of(cohort.base_model, options.model_option) if asks_model else None
            run = _CohortRun(registry, cohort, options, judge, reporter, crew, found)
            summaries[cohort.id] = run.run()
    if damage is None:
        found.tell(registry.home)
    return [summaries[cohort.id] for cohort in chosen if cohort.id in summaries]


def _chosen(registry: Registry, names: Sequence[str], damage: Damage) -> list[Cohort]:
    chosen = []
    for name in names:
        with damage.passed_over():
            chosen.append(registry.cohort(name))
    return chosen if names else registry.cohorts(damage)


class _CohortRun:
    """One cohort's way through `compress`."""

    def __init__(
        self,
        registry: Registry,
        cohort: Cohort,
        options: CompressOptions,
        judge: Judge | None,
        reporter: Reporter,
        crew: Crew,
        damage: Damage,
    ) -> None:
        self.registry, self.cohort, self.options, self.crew = registry, cohort, options, crew
        self.damage = damage
        self.contract, self.judge, self.reporter = options.contract, judge, reporter
        self.layout = Layout.from_json(cohort.layout)
        if not self.layout.slots:
            self.contract, self.options = Contract(tolerance=0.0), replace(options, arch=NONE)
        self.tolerance = self.contract.planned_error
        self.vectors = TaskVectors(registry, options.base_model, reporter)
        self.messages: list[str] = []
        self.recorder = Recorder(registry, cohort, self.contract, reporter, self.messages)
        self.selection = Selection(registry, cohort, self.options, self.contract, damage, self.messages)

    def run(self) -> CohortSummary:
        """Encode what needs it and sum up."""
        listed = list(self.selection.listed())
        adapters = [one.adapter for one in listed if one.adapter.removed_at is None]
        current = {one.adapter.id: one.encoding for one in listed if one.encoding is not None}
        if self.options.needs_model and self.judge is None and self.layout.slots:
            self.messages.append(
                "left as it is: what the model does with it depends on more than the factors of linear layers, so only "
                "their error can be promised; --tolerance weight=0.2 codes it"
            )
            return self._summary(adapters, 0)
        if not self.layout.slots and adapters:
            self.messages.append("nothing in it is a factor of LoRA, so it is kept exactly")
        too_large = any(self.selection.exceeds_cap(encoding) for encoding in current.values())
        if not self.contract.asked and (self.options.retrain or too_large):
            # Nobody asked for a coarser contract than the tightest one given before.
            held = [json.loads(encoding.tolerance) for encoding in current.values()]
            given = [float(one["relative_error"]) for one in held if one.keys() == {"relative_error"}]
            self.tolerance = min(given, default=DEFAULT_TOLERANCE)
        tasks = self.selection.due(adapters, current, self.tolerance)
        left = self._encode_with_existing(tasks) if not self.options.retrain else tasks
        lenders = self._lenders() if left else []
        for group in _groups(left):
            for lender, part in by_lender(lenders, self.layout, group):
                self._encode_group(part, lender)
        if adapters and not tasks:
            self.messages.append("every adapter is encoded already; another contract or --retrain starts over")
        return self._summary(adapters, len(tasks))

    # -- with a generator that exists -----------------------------------------------------------

    def _encode_with_existing(self, tasks: Sequence[Source]) -> list[Source]:
        """Encode what the cohort's generators cover, newest first; gives back what is left."""
        left = list(tasks)
        if self.options.arch == NONE or self.tolerance == 0:
            return left
        for record in reversed(self.selection.own_generators):
            if not left:
                break
            if self.options.arch not in ("auto", record.arch):
                continue
            if self.selection.is_too_large(record):
                self.messages.append(
                    f"generator {_label(record)} is not used: its file takes {record.size_bytes} bytes"
                )
                continue
            try:
                data = self.registry.blobs.get(record.sha256)
            except IntegrityError as error:
                self.messages.append(f"generator {_label(record)} is damaged and is not used: {error}")
                continue
            loaded = load_generator(self.registry, record)
            known = {task.adapter.id for task in left if covers(loaded.generator, task.original.factors)}
            covered = [task for task in left if task.adapter.id in known]
            left = [task for task in left if task.adapter.id not in known]
            if covered:
                conditions, latents = self._fit(loaded, covered)
                drawn, owed = Drawn(record, loaded, data, latents, conditions), self._owed(record, known)
                users = self.recorder.record_all(covered, self._team(covered), drawn, Ask(self.tolerance), owed)
                self.messages.append(f"{users} of {len(covered)} encoded against generator {_label(record)}")
        return left

    def _owed(self, record: GeneratorRecord, adapter_ids: Collection[int]) -> float:
        """A generator's bytes, by how many of its users are encoded anew: to adapters that come later it is free."""
        encodings = (one.encoding for one in self.selection.listed() if one.encoding is not None)
        users = [encoding.adapter_id for encoding in encodings if encoding.generator_id == record.id]
        again = sum(user in adapter_ids for user in users)
        return record.size_bytes * again / len(users) if users else 0.0

    def _fit(self, loaded: LoadedGenerator, tasks: Sequence[Source]) -> tuple[Sequence[Int8], Sequence[Int8]]:
        """Conditions and latents of adapters against a frozen generator."""
        generator, overlap = loaded.generator, loaded.overlap(self.layout)
        if not generator.condition_size:
            return [EMPTY] * len(tasks), [latent_of(generator, task.original.factors, overlap) for task in tasks]
        conditions = [self.vectors.by(generator.encoder, task.adapter) for task in tasks]
        group = Group(
            layout=loaded.layout,
            coordinates=generator.coordinates,
            encoder=generator.encoder,
            adapters=Turned([task.original for task in tasks], generator, overlap),
            conditions=conditions,
            means=generator.means,
            slot_exponents=generator.slot_exponents,
            tolerance=self.tolerance,
            scratch=self.registry.blobs.tmp,
        )
        return conditions, list(train_module().fit_latents(generator, group, FIT_STEPS, self.reporter))

    # -- with a generator of another cohort -----------------------------------------------------

    def _lenders(self) -> list[Lender]:
        """The generators of other cohorts that may be used."""
        if self.options.arch == NONE or self.tolerance == 0 or self.options.retrain or not self.layout.slots:
            return []

        def may_use(record: GeneratorRecord) -> bool:
            return self.options.arch in ("auto", record.arch) and not self.selection.is_too_large(record)

        return find_lenders(self.registry, self.cohort, may_use, self.damage)

    def _encode_with_lent(self, tasks: Sequence[Source], team: CodingTeam, lender: Lender, plan: Plan) -> bool:
        """Encode against another cohort's generator if the group takes less with it than as planned."""
        places = sample_places(len(tasks))

        def total(file: bytes, latents: Sequence[Int8], conditions: Sequence[Int8], drawn: Layout | None) -> float:
            inputs = zip(places, latents, conditions, strict=True)
            trials = [Trial(i, self.tolerance, plan.steps.get(i), *own) for i, *own in inputs]
            codes = [size.code_bytes for size in team.sizes(file, trials, drawn)]
            return sum(codes) / len(codes) * len(tasks)

        try:
            conditions, latents = self._fit(lender.loaded, [tasks[i] for i in places])
        except (BaseModelError, MissingExtraError):
            return False  # a loan asks for nothing that is not at hand
        lent = total(lender.file, latents, conditions, lender.loaded.layout)
        nothing = [EMPTY] * len(places)
        own = plan.estimated_bytes if plan is not ALONE else total(b"", nothing, nothing, None)
        if lent >= own:
            return False
        conditions, latents = self._fit(lender.loaded, tasks)
        drawn = Drawn(lender.record, lender.loaded, lender.file, latents, conditions)
        users = self.recorder.record_all(tasks, team, drawn, Ask(self.tolerance, plan.step))
        self.messages.append(
            f"{users} of {len(tasks)} encoded against generator {_label(lender.record)} of cohort "
            f"{lender.cohort.name}, which draws {lender.covered_share(self.layout):.0%} of their weights: about "
            f"{lent / 1e3:.0f} kB, else {own / 1e3:.0f} kB"
        )
        return True

    # -- with a new generator, or none ----------------------------------------------------------

    def _encode_group(self, tasks: Sequence[Source], lender: Lender | None) -> None:
        """Choose a generator, store it if there is a new one, encode."""
        alone = self.options.arch == NONE or self.tolerance == 0 or len(tasks) < 2
        conditions, plan, choice, team = [EMPTY] * len(tasks), ALONE, None, self._team(tasks)
        if not alone:
            if trains_network(self.options.arch, len(tasks)) or self.options.base_model is None:
                conditions = self.vectors.make([task.adapter for task in tasks])
            choice = self._choice(tasks, conditions, team)
            plan, self.tolerance = choice.best(), choice.tolerance
            self.messages.append(choice.message)
        if lender is None or not self._encode_with_lent(tasks, team, lender, plan):
            if plan.loaded is not None:
                self._encode_with_new(tasks, team, plan, conditions)
            else:
                self._encode_alone(tasks, team, plan)
        if choice is not None:
            choice.forget_checkpoints()

    def _encode_alone(self, tasks: Sequence[Source], team: CodingTeam, plan: Plan) -> None:
        """Encode without a generator."""
        if len(tasks) < 2 and self.layout.slots:
            self.messages.append(f"{tasks[0].adapter.ref} is coded alone: there is nothing to share with one adapter")
        self.recorder.record_all(tasks, team, None, Ask(self.tolerance, plan.step))

    def _team(self, tasks: Sequence[Source]) -> CodingTeam:
        return self.crew.team(self.layout, tasks, Workplace(self.registry, self.contract, self.judge))

    def _choice(self, tasks: Sequence[Source], conditions: Sequence[Int8], team: CodingTeam) -> GeneratorChoice:
        encoder = self.vectors.encoder.name if conditions[0].size else ""
        originals = [task.original for task in tasks]
        scratch = self.registry.blobs.tmp
        members = Members(self.layout, originals, conditions, encoder, self.tolerance, scratch)
        digests = [task.adapter.digest for task in tasks]
        return GeneratorChoice(members, digests, self.options, self.registry.home / "checkpoints", self.reporter, team)

    def _encode_with_new(
        self, tasks: Sequence[Source], team: CodingTeam, plan: Plan, conditions: Sequence[Int8]
    ) -> None:
        """Record the generator of a plan, read it back, and encode against that."""
        assert plan.loaded is not None
        generator = plan.loaded.generator
        record = self.registry.record_generator(
            NewGenerator(
                cohort_id=self.cohort.id,
                sha256=self.registry.blobs.put_bytes(plan.file),
                size_bytes=len(plan.file),
                arch=generator.arch,
                encoder=generator.encoder,
                config={**generator.config, "latent": generator.latent_size, "seed": self.options.seed},
                metrics={k: v for k, v in plan.metrics.items() if isinstance(v, int | float)},
            )
        )
        file = self.registry.blobs.get(record.sha256)
        drawn = Drawn(record, load_generator(self.registry, record), file, plan.latents, conditions)
        users = self.recorder.record_all(tasks, team, drawn, Ask(self.tolerance, plan.step), len(plan.file))
        if not users:
            self.messages.append(f"every code is smaller without {_label(record)}, so none uses it")

    def _summary(self, adapters: Sequence[Adapter], encoded: int) -> CohortSummary:
        encodings = [one.encoding for one in self.selection.listed() if one.encoding is not None]
        used = {encoding.generator_id for encoding in encodings}
        records = [record for record in self.registry.generators(damage=self.damage) if record.id in used]
        own = [record for record in records if record.cohort_id == self.cohort.id]
        lent = [f"{_label(record)} (lent)" for record in records if record.cohort_id != self.cohort.id]
        generator_bytes = sum(record.size_bytes for record in own)
        tiers = Counter(encoding.tier for encoding in encodings)
        fidelities = [json.loads(encoding.fidelity) for encoding in encodings]
        gains = [float(f["gain_retained"]) for f in fidelities if "gain_retained" in f]
        return CohortSummary(
            cohort=self.cohort.name,
            adapters=len(adapters),
            encoded=encoded,
            unchanged=len(adapters) - encoded,
            generator=", ".join([*map(_label, own), *lent]) or None,
            generator_bytes=generator_bytes,
            stored_bytes=generator_bytes + sum(encoding.size_bytes for encoding in encodings),
            original_bytes=sum(adapter.original_bytes for adapter in adapters),
            by_tier={tier: tiers[tier] for tier in get_args(Tier) if tiers[tier]},
            worst_relative_error=max((float(f["relative_error"]) for f in fidelities), default=0.0),
            mean_gain=sum(gains) / len(gains) if gains else None,
            worst_gain=min(gains, default=None),
            worst_kl=max((float(f["kl_divergence"]) for f in fidelities if "kl_divergence" in f), default=None),
            message="; ".join(self.messages),
        )


def _groups(tasks: Sequence[Source]) -> list[list[Source]]:
    """Tasks that share their initialisation together, and all that share it with no other in one more group."""
    if not tasks or not tasks[0].original.layout.slots:
        return [list(tasks)] if tasks else []
    groups = [[tasks[index] for index in group] for group in group_by_init(t.original.factors for t in tasks)]
    alone = [group[0] for group in groups if len(group) == 1]
    return [group for group in groups if len(group) > 1] + ([alone] if alone else [])


def _label(record: GeneratorRecord) -> str:
    return f"{record.arch} v{record.version}"
