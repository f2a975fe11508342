"""Between two adapters that share a generator: what it draws half-way, and half of what it left each to store.

    latents, conditions --> between, rounded to int8 --> generator --> P
    weights at w  =  (1-w) A + w B  +  [ P - (1-w) P_A - w P_B ]

P_A and P_B are what the generator draws for the two, so this is their own prediction at w plus their
residuals at w. The bracket is how far the generator bends between them: nothing for a linear one but the
rounding of its latents, so what is left is an average. At w = 0 and w = 1 it is the stored adapter, byte
for byte.

A sum of adapters has a higher rank than each. Where the generator's coordinates are `shared`, both are
written in the same gauge, and factors are added to factors: rank r, nothing cut off. In any other the
sum is taken in ΔW and its strongest r components are kept, exactly the nearest of that rank (Eckart and
Young, 1936), by an SVD of the factors side by side. No torch, but for the losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorareg.compress.codec.codecs import LoadedGenerator, decode, split_inputs
from lorareg.compress.codec.container import unpack_code
from lorareg.compress.codec.encode import Original
from lorareg.compress.factors.canonical import Coordinates
from lorareg.compress.factors.fidelity import measure
from lorareg.compress.factors.weights import Factors, read_weights, write_weights
from lorareg.compress.generators.generator import Int8
from lorareg.compress.materialize import expect_output, load_generator
from lorareg.compress.tasks.merge import merged
from lorareg.registry.card import mark_reconstructed
from lorareg.registry.errors import ContractError, InterpolationError
from lorareg.registry.lookup import Lookup
from lorareg.registry.types import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, Encoding, Layout
from lorareg.registry.types import Generator as GeneratorRecord

if TYPE_CHECKING:
    from lorareg.compress.contracts.judge import Judge

INTERPOLATION, DELTA_AVERAGE, FACTOR_AVERAGE = "interpolation", "average of delta W", "average of factors"
BASE = "base model alone"


@dataclass(frozen=True, slots=True)
class End:
    """One of the two adapters, as it is stored."""

    adapter: Adapter
    output: bytes  # its weights file
    factors: tuple[Factors, ...]
    latent: Int8  # (k,)
    condition: Int8  # (c,)
    drawn: tuple[Factors, ...]  # what the generator draws for it

    def original(self, layout: Layout) -> Original:
        """It, as what others are compared with."""
        return Original(self.adapter.ref, partial(bytes, self.output), layout)


@dataclass(frozen=True, slots=True)
class Between:
    """An adapter between two others, and the simpler ways to make one from them."""

    first: End
    second: End
    weight: float  # share of the second
    layout: Layout
    generator: GeneratorRecord
    coordinates: Coordinates
    factors: list[Factors]
    delta_average: list[Factors]
    factor_average: list[Factors]

    @property
    def output(self) -> bytes:
        """The weights file; at the ends it is the stored adapter's.

        Raises:
            InterpolationError: a weight does not fit its dtype.
        """
        if self.weight in (0, 1):
            return (self.first, self.second)[int(self.weight)].output
        try:
            return write_weights(self.layout, self.factors)
        except OverflowError as error:
            raise _refused(
                self.first.adapter, self.second.adapter, str(error), "Choose a weight nearer to 0 or 1."
            ) from error

    @property
    def distances(self) -> dict[str, float]:
        """How far it is in ΔW from the two and from their averages, relative to their own size."""
        others = {
            self.first.adapter.ref: self.first.factors,
            self.second.adapter.ref: self.second.factors,
            DELTA_AVERAGE: self.delta_average,
            FACTOR_AVERAGE: self.factor_average,
        }
        return {name: measure(self.layout, other, self.factors).relative_error for name, other in others.items()}

    @property
    def folder(self) -> Path:
        """Where it is written unless told: both names and the weight."""
        names = [end.adapter.name.rpartition("/")[2] for end in (self.first, self.second)]
        return Path(f"{names[0]}-{names[1]}-{self.weight:g}")


def interpolate(lookup: Lookup, first: str, second: str, weight: float) -> Between:
    """The adapter between `first` and `second` ("task", "task@3", "task@label") at a share `weight` of the second.

    Raises:
        ContractError: the weight is outside 0 to 1.
        UnknownAdapterError: one of the two does not exist.
        InterpolationError: they have no latents or conditions of one generator.
        IntegrityError: stored bytes are damaged, or decode to other bytes than recorded.
    """
    if not 0 <= weight <= 1:
        raise ContractError(option=f"--weight {weight:g}", reason="it is the share of the second task, from 0 to 1")
    adapters = (lookup.adapter(first), lookup.adapter(second))
    encodings = _comparable(lookup, adapters)
    assert encodings[0].generator_id is not None
    record = lookup.generator(encodings[0].generator_id)
    if record.cohort_id != adapters[0].cohort_id:
        reason = f"they are coded against generator {_label(record)} of another cohort, which draws them in part"
        raise _refused(*adapters, reason, "Run `lorareg compress --arch linear --retrain` for their own cohort.")
    layout = Layout.from_json(lookup.cohort(adapters[0].cohort_id).layout)
    if layout.extras:
        reason = "they hold tensors that are no factors, of which nobody knows what lies between them"
        raise _refused(adapters[0], adapters[1], reason, "Choose two that are LoRA factors alone.")
    loaded = load_generator(lookup, record)
    generator = loaded.generator
    if not generator.latent_size + generator.condition_size:
        reason = f"generator {_label(record)} has neither latents nor conditions to go between"
        raise _refused(*adapters, reason, "Run `lorareg compress --arch linear --retrain`, or --arch slots.")
    ends = [_end(lookup, a, e, loaded, layout) for a, e in zip(adapters, encodings, strict=True)]
    both, shares = [end.factors for end in ends], (1 - weight, weight)
    ranks = [slot.shape[0] for slot in layout.slots[0::2]]
    if weight in (0, 1):
        factors = list(both[int(weight)])
    else:
        drawn = loaded.draw(layout, *_inputs_between(ends[0], ends[1], weight)).factors
        sums = added if generator.coordinates == "shared" else partial(merged, ranks=ranks)
        factors = sums([*both, drawn, *(end.drawn for end in ends)], (*shares, 1.0, -shares[0], -shares[1]))
    return Between(
        first=ends[0],
        second=ends[1],
        weight=weight,
        layout=layout,
        generator=record,
        coordinates=generator.coordinates,
        factors=factors,
        delta_average=merged(both, shares, ranks),
        factor_average=added(both, shares),
    )


def _inputs_between(first: End, second: End, weight: float) -> tuple[Int8, Int8]:
    """The latent (k,) and the condition (c,) between two, rounded to what a code could hold."""
    latent, condition = (
        np.rint((1 - weight) * x.astype(np.float64) + weight * y).astype(np.int8)
        for x, y in ((first.latent, second.latent), (first.condition, second.condition))
    )
    return latent, condition


def added(adapters: Sequence[Sequence[Factors]], weights: Sequence[float]) -> list[Factors]:
    """Weighted sums of the factors themselves, module by module: for adapters in one gauge."""
    return [
        Factors(
            b=sum((w * f.b for w, f in zip(weights, alike, strict=True)), np.zeros_like(alike[0].b)),
            a=sum((w * f.a for w, f in zip(weights, alike, strict=True)), np.zeros_like(alike[0].a)),
        )
        for alike in zip(*adapters, strict=True)
    ]


def files_of(lookup: Lookup, between: Between) -> dict[str, bytes]:
    """The PEFT folder: the first adapter's config, the weights, and its card with a mark that says what they are."""
    adapter, other = between.first.adapter, between.second.adapter
    known = {file.path for file in lookup.files(adapter)}
    card = lookup.read_file(adapter, CARD_FILE).decode("utf-8", "surrogateescape") if CARD_FILE in known else ""
    lines = [
        f"**Interpolated by lorareg: nobody trained these weights, and their quality is unproven.** "
        f"`{adapter.ref}` and `{other.ref}` at a weight of {between.weight:g} (0 is the first, 1 the second), "
        f"in the latent space of generator {_label(between.generator)}.",
        f"What follows is the card of `{adapter.ref}`.",
    ]
    return {
        CONFIG_FILE: lookup.read_file(adapter, CONFIG_FILE),
        WEIGHTS_FILE: between.output,
        CARD_FILE: mark_reconstructed(card, adapter.base_model, lines).encode("utf-8", "surrogateescape"),
    }


@dataclass(frozen=True, slots=True)
class Losses:
    """What the base model loses, in nats a token, on the two tasks' own text."""

    measured_on: tuple[str, str]
    by_name: Mapping[str, tuple[float, float]]  # on the first's text, on the second's


def losses_of(between: Between, judge: Judge) -> Losses:
    """Losses of the base model alone, of both adapters as stored, of what lies between them and of plain averages.

    Raises:
        LayoutMismatchError: the adapters do not fit the base model.
        InvalidAdapterError: evaluation tokens are none of the base model's.
    """
    candidates: dict[str, Sequence[Factors]] = {
        between.first.adapter.ref: between.first.factors,
        between.second.adapter.ref: between.second.factors,
        INTERPOLATION: between.factors,
        DELTA_AVERAGE: between.delta_average,
        FACTOR_AVERAGE: between.factor_average,
    }
    columns, texts = [], []
    for end in (between.first, between.second):
        case = judge.case(end.adapter, end.original(between.layout))
        column = {BASE: case.loss_base, end.adapter.ref: case.loss_original}
        for name, factors in candidates.items():
            if name not in column:
                column[name] = float(judge.gain(case, factors)["loss_restored"])
        columns.append(column)
        texts.append(case.text)
    by_name = {name: (columns[0][name], columns[1][name]) for name in (BASE, *candidates)}
    return Losses((texts[0], texts[1]), by_name)


def _comparable(lookup: Lookup, adapters: tuple[Adapter, Adapter]) -> list[Encoding]:
    """The encodings of two adapters, against the same generator."""
    first, second = adapters
    if first.id == second.id:
        raise _refused(first, second, "they are the same adapter", "Name two; versions of one task may be two.")
    if first.cohort_id != second.cohort_id:
        cohorts = [lookup.cohort(adapter.cohort_id).name for adapter in adapters]
        reason = f"one is of cohort {cohorts[0]}, the other of {cohorts[1]}"
        raise _refused(first, second, reason, "Choose two of one base model and layout; `lorareg cohorts` lists them.")
    encodings = []
    for adapter in adapters:
        encoding = lookup.encoding(adapter.id)
        if encoding is None or encoding.generator_id is None:
            found = "no code" if encoding is None else f"a code without a generator (tier {encoding.tier})"
            remedy = "Run `lorareg compress --arch linear --retrain`, or --arch slots."
            raise _refused(first, second, f"{adapter.ref} has {found}", remedy)
        encodings.append(encoding)
    labels = [_label(lookup.generator(e.generator_id)) for e in encodings if e.generator_id is not None]
    if encodings[0].generator_id != encodings[1].generator_id:
        reason = f"one is coded against generator {labels[0]}, the other against {labels[1]}"
        remedy = (
            "Run `lorareg compress --arch linear --retrain`; adapters that began from different random weights never "
            "share one."
        )
        raise _refused(first, second, reason, remedy)
    return encodings


def _end(lookup: Lookup, adapter: Adapter, encoding: Encoding, loaded: LoadedGenerator, layout: Layout) -> End:
    what, code = f"Adapter {adapter.ref!r}", lookup.blobs.get(encoding.sha256)
    output = decode(code, layout, loaded, what)
    expect_output(output, encoding, what)
    latent, condition, _ = split_inputs(unpack_code(code, what).payload, loaded.generator)
    drawn = loaded.draw(layout, latent, condition).factors
    return End(adapter, output, read_weights(output, layout), latent, condition, drawn)


def _label(record: GeneratorRecord) -> str:
    return f"{record.arch} v{record.version}"


def _refused(first: Adapter, second: Adapter, reason: str, remedy: str) -> InterpolationError:
    return InterpolationError(first=first.ref, second=second.ref, reason=reason, remedy=remedy)
