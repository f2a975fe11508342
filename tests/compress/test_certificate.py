"""Projections that any language can redo, and what they say once an original is gone."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from lorareg.compress.contracts.contract import CompressOptions
from lorareg.compress.factors.fidelity import energy, measure, measure_modules, summarise
from lorareg.compress.factors.weights import Factors
from lorareg.compress.pipeline import compress
from lorareg.compress.progress import Silent
from lorareg.compress.proofs.certificate import COUNT, error_shares, estimate, project
from lorareg.compress.proofs.verify import certified_statement
from lorareg.registry.certificate import Subject, compose, digest_of, is_stale
from lorareg.registry.errors import NoCertificateError
from lorareg.registry.store import Registry
from lorareg.registry.types import Encoding, Layout

SEED = bytes(range(32))
TRIALS = 60


def sign_at(seed: bytes, module: int, side: str, position: int) -> int:
    """One sign, by the words of the format alone."""
    prefix = seed + struct.pack(">I", module) + side.encode()
    block = hashlib.sha256(prefix + struct.pack(">Q", position // 256)).digest()
    bit = position % 256
    return -1 if block[bit // 8] >> (7 - bit % 8) & 1 else 1


def test_projections_by_the_words_of_the_format(make: ModuleType) -> None:
    layout = make.layout(((5, 2, 300), (3, 1, 4)), scale=0.5)
    adapter = make.factors(layout, seed=1)
    (found,) = project(layout, [adapter], SEED)
    for j in (0, 1, COUNT - 1):
        wanted = 0.0
        for index, (scale, factors) in enumerate(zip(layout.scales, adapter, strict=True)):
            d_out, d_in = factors.b.shape[0], factors.a.shape[1]
            u = [sign_at(SEED, index, "u", j * d_out + i) for i in range(d_out)]
            v = [sign_at(SEED, index, "v", j * d_in + i) for i in range(d_in)]
            wanted += scale * float(np.array(u) @ factors.delta @ np.array(v))
        assert found[j] == pytest.approx(wanted, rel=1e-5, abs=1e-4)


def norm(layout: Layout, adapter: list[Factors]) -> float:
    return math.sqrt(math.fsum(s**2 * energy(f) for s, f in zip(layout.scales, adapter, strict=True)))


@pytest.mark.parametrize("shapes", [((24, 4, 32), (16, 4, 32)) * 4, ((24, 1, 32),)], ids=["many", "one of rank 1"])
def test_an_estimate_lies_within_its_bounds(make: ModuleType, shapes: tuple[tuple[int, int, int], ...]) -> None:
    layout = make.layout(shapes)
    for trial in range(TRIALS):
        random = np.random.default_rng(trial)
        original = make.factors(layout, seed=trial)
        size = 10 ** random.uniform(-3, 0)
        restored = [
            Factors(b=f.b + size * random.normal(size=f.b.shape), a=f.a + size * random.normal(size=f.a.shape))
            for f in original
        ]
        first, second = project(layout, [original, restored], hashlib.sha256(bytes([trial])).digest())
        scale = float(np.abs(first).max()) / 32767
        errors = [module.relative_error for module in measure_modules(layout, original, restored)]
        shares = error_shares(layout, restored, errors)
        found = estimate(np.rint(first / scale).astype(np.int16), scale, norm(layout, original), second, shares)
        true = measure(layout, original, restored).relative_error
        assert found.low <= true <= found.high
        assert found.high < 1.35 * found.low + 1e-3 or len(shapes) == 1


def test_modules_one_by_one(make: ModuleType) -> None:
    layout = make.layout(scale=2.0)
    original = make.factors(layout, seed=1)
    restored = [Factors(b=f.b.copy(), a=f.a.copy()) for f in original]
    restored[1].b[0] *= 3
    restored[2].a[0, 0] = np.nan
    restored[2].b[0, 0] = np.inf
    modules = measure_modules(layout, original, restored)
    assert (modules[0].relative_error, modules[0].cosine, modules[0].max_error) == (0.0, 1.0, 0.0)
    moved = 2.0 * (restored[1].delta - original[1].delta)
    assert modules[1].max_error == pytest.approx(np.abs(moved).max())
    assert modules[1].relative_error == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(2 * original[1].delta))
    assert (modules[2].not_a_number, modules[2].infinite, modules[2].relative_error) == (1, 1, math.inf)
    found = summarise(modules)
    assert found["worst_module"] == layout.modules[2]
    assert (found["not_a_number"], found["infinite"]) == (1, 1)


# -- in a registry -------------------------------------------------------------------------------


@pytest.fixture
def encoded(registry: Registry, add_group: Callable[..., None]) -> Registry:
    add_group(registry, "alpha", "beta", "gamma")
    compress(registry, (), CompressOptions(arch="mean"), Silent())
    return registry


def current(registry: Registry, ref: str) -> Encoding:
    encoding = registry.encoding(registry.adapter(ref).id)
    assert encoding is not None
    return encoding


def test_every_encoding_is_certified(encoded: Registry) -> None:
    adapter, encoding = encoded.adapter("alpha"), current(encoded, "alpha")
    certificate = encoded.certificate(encoding.id)
    assert certificate is not None
    subject = Subject.of(encoded, adapter, encoding)
    assert not is_stale(subject, certificate)
    statement = compose(subject, certificate)
    assert digest_of(statement) == certificate.digest
    assert statement["output"]["sha256"] == encoding.output_digest
    assert statement["stored"]["generator"]["sha256"] == encoded.generator(encoding.generator_id or 0).sha256
    assert statement["fidelity"]["relative_error"] == json.loads(encoding.fidelity)["relative_error"]
    worst = max(statement["modules"], key=statement["modules"].__getitem__)
    assert worst == statement["fidelity"]["worst_module"]
    assert statement["projections"]["seed"] == subject.seed.hex()


def test_the_export_can_be_checked_without_us(encoded: Registry) -> None:
    exported = certified_statement(encoded, encoded.adapter("alpha"))
    assert exported["stale"] is False
    text = json.dumps(exported["statement"], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == exported["digest"]
    kept, decoded = exported["statement"]["projections"], np.array(exported["decoded_projections"])
    error = math.sqrt(np.mean((np.array(kept["original"]) * kept["scale"] - decoded) ** 2)) / kept["norm"]
    assert error == pytest.approx(exported["statement"]["fidelity"]["relative_error"], rel=0.2)


def test_what_is_exact_needs_no_projections(registry: Registry, add_group: Callable[..., None]) -> None:
    add_group(registry, "alpha")
    from lorareg.compress.contracts.contract import Contract

    compress(registry, (), CompressOptions(Contract(tolerance=0.0)), Silent())
    exported = certified_statement(registry, registry.adapter("alpha"))
    assert exported["statement"]["projections"] is None
    assert exported["statement"]["output"]["sha256"] == exported["statement"]["original"]["weights_sha256"]


def test_without_a_code_there_is_no_certificate(registry: Registry, add_group: Callable[..., None]) -> None:
    add_group(registry, "alpha")
    with pytest.raises(NoCertificateError, match="alpha@1 has no certificate: it is stored as it came"):
        certified_statement(registry, registry.adapter("alpha"))
