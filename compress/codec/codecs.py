"""Every codec, by the number in its code files: the production path from stored bytes to a weights file.

A codec's number and name never change their meaning. Decoding imports neither torch nor a database.

    number  name         tier       payload
    1       lossless-1   lossless   see `lossless_1`; no longer written
    2       residual-1   residual   see `residual_1`, without a prediction; no longer written
    3       predicted-1  residual   latent (k bytes), condition (c bytes), then as 2 against the prediction; likewise
    4       generated-1  generated  latent (k bytes), condition (c bytes)
    5       residual-2   residual   see `residual`, without a prediction
    6       predicted-2  residual   latent (k bytes), condition (c bytes), then as 5 against the prediction
    7       lossless-2   lossless   see `lossless`

Codecs 2 to 6 stand for the factors; what else a weights file holds is attached to them (see `extras`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lorareg.compress.codec import lossless_1, residual, residual_1
from lorareg.compress.codec.container import NO_GENERATOR, expect_bindings, unpack_code
from lorareg.compress.codec.extras import Extras, attach_extras
from lorareg.compress.codec.lossless import decode_lossless
from lorareg.compress.codec.residual_payload import unpack_residual
from lorareg.compress.factors.weights import write_weights
from lorareg.compress.generators.generator import Generator, Int8, predict, unpack_generator
from lorareg.compress.generators.overlap import Overlap, overlap_of
from lorareg.compress.generators.prediction import Prediction
from lorareg.registry.errors import InvalidContainerError, NewerFormatError
from lorareg.registry.types import Layout, Tier


@dataclass(frozen=True, slots=True)
class LoadedGenerator:
    """A generator with the SHA-256 of the file it came from, and the layout it was made for."""

    digest: str
    generator: Generator
    layout: Layout
    _drawn: dict[bytes, tuple[Layout, Prediction]] = field(default_factory=dict, repr=False, compare=False)  # the last

    def draw(self, layout: Layout, latent: Int8, condition: Int8) -> Prediction:
        """What it has for an adapter of a layout, its own or another.

        A table alone draws the same for every adapter, so the last prediction is kept.
        """
        key = join_inputs(latent, condition)
        kept_for, found = self._drawn.get(key, (None, None))
        if found is None or kept_for != layout:
            found = predict(self.generator, self.layout, latent, condition)
            overlap = self.overlap(layout)
            found = found if overlap is None else overlap.prediction(found)
            self._drawn.clear()
            self._drawn[key] = layout, found
        return found

    def overlap(self, layout: Layout) -> Overlap | None:
        """What it has for adapters of another layout; None where the layout is its own."""
        return None if layout == self.layout else overlap_of(self.layout, layout)

    @staticmethod
    def from_bytes(data: bytes, digest: str, layout: Layout) -> LoadedGenerator:
        """`layout` is the one it was made for. Raises what `unpack_generator` raises."""
        return LoadedGenerator(digest, unpack_generator(data, layout, f"Generator {digest[:12]}"), layout)


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to store an adapter."""

    name: str
    tier: Tier
    decode: Callable[[bytes, Layout, LoadedGenerator | None, str], bytes]


def decode(
    data: bytes, layout: Layout, generator: LoadedGenerator | None, what: str, extras: Extras | None = None
) -> bytes:
    """The weights file that a code file stands for, the same bytes on every machine.

    Args:
        data: the code file.
        layout: of the adapter's cohort.
        generator: the one the code was made against, or None where it needs none.
        what: how errors name the code, such as "Adapter 'man-nl@1'".
        extras: what the adapter has beside factors; a lossless code needs none.

    Raises:
        InvalidContainerError: the bytes are damaged or do not fit the layout.
        LayoutMismatchError: layout or generator are not the code's own.
        NewerFormatError: a later lorareg wrote it.
    """
    code = unpack_code(data, what)
    if code.codec not in CODECS:
        raise NewerFormatError(what=what, found=f"codec {code.codec}", expected=f"codec {max(CODECS)}")
    expect_bindings(code, layout.digest, generator.digest if generator else NO_GENERATOR, what)
    codec = CODECS[code.codec]
    try:
        output = codec.decode(code.payload, layout, generator, what)
    except OverflowError as error:
        raise InvalidContainerError(what=what, reason=str(error)) from error
    if codec.tier == "lossless" or extras is None:
        return output
    return attach_extras(output, layout, extras)


def _decode_lossless_1(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    return lossless_1.decode_lossless(payload, layout, what)


def _decode_lossless(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    return decode_lossless(payload, layout, what)


def _decode_residual_1(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    modules = residual_1.unpack_residual(payload, layout, rotated=False, what=what)
    return write_weights(layout, residual_1.restore(modules, None))


def _decode_predicted_1(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    prediction, rest = _predicted(payload, layout, generator, what)
    modules = residual_1.unpack_residual(rest, layout, rotated=True, what=what)
    return write_weights(layout, residual_1.restore(modules, prediction))


def _decode_residual(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    modules = unpack_residual(payload, layout, predicted=False, what=what)
    return write_weights(layout, residual.restore(modules, None, layout))


def _decode_predicted(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    prediction, rest = _predicted(payload, layout, generator, what)
    modules = unpack_residual(rest, layout, predicted=True, what=what)
    return write_weights(layout, residual.restore(modules, prediction, layout))


def _decode_generated(payload: bytes, layout: Layout, generator: LoadedGenerator | None, what: str) -> bytes:
    prediction, rest = _predicted(payload, layout, generator, what)
    if rest:
        raise InvalidContainerError(what=what, reason=f"{len(rest)} bytes follow its latent and condition")
    return write_weights(layout, prediction.factors)


def _predicted(payload: bytes, layout: Layout, loaded: LoadedGenerator | None, what: str) -> tuple[Prediction, bytes]:
    if loaded is None:
        raise InvalidContainerError(what=what, reason="it was made against a generator and names none")
    generator = loaded.generator
    latent, condition, rest = split_inputs(payload, generator)
    if len(latent) + len(condition) < generator.latent_size + generator.condition_size:
        raise InvalidContainerError(what=what, reason="it ends within its latent and condition")
    return loaded.draw(layout, latent, condition), rest


def join_inputs(latent: Int8, condition: Int8) -> bytes:
    """The start of a payload made against a generator."""
    return latent.tobytes() + condition.tobytes()


def split_inputs(payload: bytes, generator: Generator) -> tuple[Int8, Int8, bytes]:
    """Latent, condition and the rest of a payload made against a generator."""
    inputs = np.frombuffer(payload[: generator.latent_size + generator.condition_size], np.int8)
    latent, condition = inputs[: generator.latent_size], inputs[generator.latent_size :]
    return latent, condition, payload[len(inputs) :]


LOSSLESS, GENERATED, RESIDUAL, PREDICTED = 7, 4, 5, 6
"""The codecs that are written today."""

CODECS: dict[int, Codec] = {
    1: Codec("lossless-1", "lossless", _decode_lossless_1),
    2: Codec("residual-1", "residual", _decode_residual_1),
    3: Codec("predicted-1", "residual", _decode_predicted_1),
    GENERATED: Codec("generated-1", "generated", _decode_generated),
    RESIDUAL: Codec("residual-2", "residual", _decode_residual),
    PREDICTED: Codec("predicted-2", "residual", _decode_predicted),
    LOSSLESS: Codec("lossless-2", "lossless", _decode_lossless),
}
