from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NAMES = [
    "NF4, blocks of 64",
    "LoRAQuant, 2 bits for 80% of the energy",
    "LoRAQuant, 3 bits for 90% of the energy",
    "RTVQ, 3 + 2 bits",
    "RTVQ, 3 + 4 bits",
    "JD-Full, rank 8",
    "JD-Full, rank 2",
    "ComPEFT, k = 5%",
    "ComPEFT, k = 50%",
    "ComPEFT a factor, k = 20%",
]
WORST = {"NF4": 0.2, "LoRAQuant": 0.5, "RTVQ": 0.4}


def made(name: str) -> Any:
    from peers import JdFull, peer_methods

    return next(method for method in [*peer_methods(), JdFull(2)] if method.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_from_the_bytes_is_what_was_measured(name: str, study: Any) -> None:
    """A second instance has nothing but the bytes."""
    from methods import compare
    from study import Stored

    from lorareg.compress.factors.weights import write_weights
    from lorareg.registry.types import sha256_hex

    stored = Stored(made(name), study)
    row = stored.measure()
    for index, original in enumerate(study.stored.originals):
        code = bytes(stored.code(original.what))
        output = write_weights(original.layout, made(name).decode(code, bytes(stored.shared), original.layout))
        assert sha256_hex(output) == row["digests"][index]
        assert compare(original, output).relative_error == row["errors"][index]
        assert row["code_bytes"][index] == len(code) < 0.2 * len(original.data)
    assert row["shared_bytes"] == len(stored.shared)
    assert max(row["errors"]) < WORST.get(name.partition(",")[0], 1.0)


def test_sizes_are_those_of_the_formats(study: Any) -> None:
    from study import Stored

    count = study.cohort.layout.weight_count
    modules, (first, *_) = len(study.cohort.layout.modules), study.stored.names
    assert len(Stored(made("NF4, blocks of 64"), study).code(first)) == count // 2 + 2 * -(-count // 64)
    assert len(Stored(made("JD-Full, rank 2"), study).code(first)) == modules * (4 + 2 * 2 * 2)
    sparse = len(Stored(made("ComPEFT, k = 5%"), study).code(first))
    assert sparse < count * (0.286 * 1.06 + 0.05) / 8 + 20  # entropy of the positions, and signs


def test_a_joint_basis_of_full_rank_gives_its_own_adapters_back(whole: Any) -> None:
    from peers import JdFull
    from study import Stored

    assert max(Stored(JdFull(64), whole).measure()["errors"]) < 2e-3


def test_a_joint_basis_beats_that_of_the_sum(study: Any) -> None:
    """Alternating never loses energy: the cores hold at least what V from the plain sum lets them."""
    from peers import JD_ROUNDS, JdFull, _joint_bases, _unit
    from study import Stored

    adapters = [_unit(original.factors[1]) for original in study.cohort.originals[:5]]
    u, v = _joint_bases(adapters, 4)
    assert JD_ROUNDS > 1
    assert np.allclose(u @ u.T, np.eye(4), atol=1e-9)
    assert np.allclose(v @ v.T, np.eye(4), atol=1e-9)
    deltas = np.concatenate([f.delta for f in adapters])
    plain_v = np.linalg.svd(deltas, full_matrices=False)[2][:4]
    plain_u = np.linalg.svd(np.concatenate([f.delta for f in adapters], axis=1), full_matrices=False)[0][:, :4].T
    held, plain = (sum(np.sum((a @ f.delta @ b.T) ** 2) for f in adapters) for a, b in ((u, v), (plain_u, plain_v)))
    assert held >= plain
    errors = [np.mean(Stored(JdFull(rank), study).measure()["errors"]) for rank in (2, 8)]
    assert errors == sorted(errors, reverse=True)


def test_zero_adapters_pass_through_every_method(make_zero: Any, study: Any) -> None:
    for method in [made(name) for name in NAMES]:
        shared = method.share(study.training)
        restored = method.decode(method.encode(make_zero, shared), shared, make_zero.layout)
        assert all(np.isfinite(f.a).all() and np.isfinite(f.b).all() for f in restored), method.name


@pytest.fixture
def make_zero(study: Any) -> Any:
    from lorareg.compress.codec.encode import Original
    from lorareg.compress.factors.weights import Factors, write_weights

    first = study.stored.originals[0]
    zeros = [Factors(b=np.zeros_like(f.b), a=np.zeros_like(f.a)) for f in first.factors]
    return Original("zero", lambda: write_weights(first.layout, zeros), first.layout)
