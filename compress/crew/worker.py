"""A process that works for rank 0: it reads the registry, adds codes to its blobs, and writes no rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorareg.compress.base_model import BaseModel
from lorareg.compress.contracts.judge import Judge
from lorareg.compress.contracts.source import Source, source_of
from lorareg.compress.crew.jobs import Workplace, one_thread
from lorareg.compress.crew.messages import CODES, SIZES, TRAIN, Setting, error_to, jobs_of, trials_of
from lorareg.compress.crew.ranks import Order, Ranks
from lorareg.compress.generators.generator import unpack_generator
from lorareg.compress.generators.group import Group
from lorareg.compress.generators.train import TrainConfig, train_generator
from lorareg.compress.materialize import load_generator
from lorareg.compress.planning.coordinates import Turned
from lorareg.compress.planning.team import load_file, size_of
from lorareg.compress.progress import Silent
from lorareg.registry.errors import LoraregError
from lorareg.registry.reader import Reader
from lorareg.registry.types import Layout

Job = Callable[[int], Mapping[str, Any]]
"""Does the job at a place of an order, and says as JSON values what it came to."""


def work(ranks: Ranks, home: Path | None = None) -> None:
    """Do what rank 0 orders until it is done, or gone."""
    models: dict[Path, BaseModel] = {}
    for order in ranks.orders():
        try:
            with Reader(home) as reader:
                _Worker(ranks, reader, order, models).run()
        except RuntimeError:
            if ranks.is_led():
                raise
            return


class _Worker:
    """One order, with the registry as it is now."""

    def __init__(self, ranks: Ranks, reader: Reader, order: Order, models: dict[Path, BaseModel]) -> None:
        self.ranks, self.reader, self.order, self.models = ranks, reader, order, models
        self.setting = Setting.from_dict(order.settings)
        self.layout = Layout.from_json(reader.cohort(self.setting.cohort_id).layout)

    def run(self) -> None:
        """Take part in it until nothing is left to take."""
        if self.order.kind == TRAIN:
            self._train()
            return
        prepare = {SIZES: self._sizing, CODES: self._coding}[self.order.kind]
        do: Job | None = None
        while (place := self.ranks.take(self.order)) < len(self.setting.refs):
            try:
                do = do or prepare()
                result = do(place)
            except LoraregError as error:
                result = {"error": error_to(error)}
            self.ranks.put(self.order, place, result)

    def _sizing(self) -> Job:
        drawn = self.order.settings["drawn"]
        layout = self.layout if drawn is None else Layout.from_json(drawn)
        loaded, trials = load_file(self.order.arrays["file"].tobytes(), layout), trials_of(self.order.arrays)

        def do(place: int) -> Mapping[str, Any]:
            with one_thread():
                return asdict(size_of(self._source(place).original, loaded, trials[place]))

        return do

    def _coding(self) -> Job:
        jobs, generator_id = jobs_of(self.order.arrays), self.order.settings["generator_id"]
        loaded = None
        if generator_id is not None:
            loaded = load_generator(self.reader, self.reader.generator(generator_id))
        workplace = Workplace(self.reader, self.setting.contract, self._judge())
        return lambda place: workplace.make(self._source(place), jobs[place], loaded, generator_id).to_dict()

    def _judge(self) -> Judge | None:
        path = self.setting.base_model
        if path is None:
            return None
        if path not in self.models:
            self.models[path] = BaseModel(path)
        return Judge(self.models[path], self.reader, self.setting.seed)

    def _train(self) -> None:
        if self.ranks.trainers is None:
            return
        settings, arrays = self.order.settings, self.order.arrays
        table = unpack_generator(arrays["file"].tobytes(), self.layout)
        originals = [self._source(place).original for place in range(len(self.setting.refs))]
        scratch = self.reader.blobs.tmp
        scratch.mkdir(parents=True, exist_ok=True)
        group = Group(
            layout=self.layout,
            coordinates=table.coordinates,
            encoder=settings["encoder"],
            adapters=Turned(originals, table),
            conditions=list(arrays["conditions"]),
            means=table.means,
            slot_exponents=table.slot_exponents,
            tolerance=settings["tolerance"],
            scratch=scratch,
        )
        train_generator(group, TrainConfig(**settings["config"]), None, Silent(), self.ranks.trainers)

    def _source(self, place: int) -> Source:
        adapter = self.reader.adapter(self.setting.refs[place])
        return source_of(self.reader, adapter, self.layout, self.reader.encoding(adapter.id))
