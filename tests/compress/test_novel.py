"""Mixtures for new tasks, against brute force; novelty, on the descriptions of real tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorareg.compress.tasks.novel import (
    Condition,
    cosines,
    judge_novelty,
    predict_mixture,
    similarity_average,
)
from lorareg.compress.tasks.task_vectors import TextEncoder
from lorareg.registry.card import card_description


def vectors(count: int, size: int = 16, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(-90, 91, (count, size)).astype(np.int8))


def smooth_gram(known: list[np.ndarray], noise: float = 0.0) -> np.ndarray:
    """Inner products of updates that are a linear function of the task vector, and some noise of their own."""
    x = np.stack(known).astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T + 0.5 + noise * np.eye(len(known))


def test_leave_one_out_errors_are_those_of_leaving_one_out() -> None:
    known, wanted = vectors(7), vectors(1, seed=9)[0]
    gram = smooth_gram(known, 0.2)
    found = predict_mixture([Condition("e", known, wanted)], gram)
    distances = 1 - cosines(np.stack(known), np.stack(known))
    median = np.median(distances[~np.eye(7, dtype=bool)])
    kernel = np.exp(-distances / (found.width * median))
    errors, of_mean = [], []
    for i in range(7):
        rest = [j for j in range(7) if j != i]
        system = np.ones((7, 7))
        system[:6, :6] = kernel[np.ix_(rest, rest)] + found.ridge * np.eye(6)
        system[6, 6] = 0
        solved = np.linalg.solve(system, np.append(kernel[rest, i], 1))[:6]
        for weights, into in ((solved, errors), (np.full(6, 1 / 6), of_mean)):
            inner = gram[np.ix_(rest, rest)]
            into.append((gram[i, i] - 2 * weights @ gram[rest, i] + weights @ inner @ weights) / gram[i, i])
    assert found.error == pytest.approx(np.mean(errors))
    assert found.error_of_mean == pytest.approx(np.mean(of_mean))
    assert found.error <= found.error_of_mean + 1e-6
    assert found.weights.sum() == pytest.approx(1)


def test_what_vectors_tell_is_used_and_what_they_do_not_tell_is_not() -> None:
    known = vectors(24, size=4)
    wanted = known[3]
    gram = smooth_gram(known)
    blind = Condition("blind", vectors(24, size=4, seed=5), vectors(1, size=4, seed=6)[0])
    found = predict_mixture([blind, Condition("sees", known, wanted)], gram)
    assert found.encoder == "sees"
    assert found.error < 0.2 * found.error_of_mean
    assert found.weights.argmax() == 3
    unrelated = predict_mixture([blind], np.eye(24))  # tasks with nothing in common
    assert unrelated.weights == pytest.approx(np.full(24, 1 / 24), abs=0.01)


def test_two_tasks_and_tasks_that_are_alike_do_not_break_it() -> None:
    known = [np.array([3, -3], np.int8)] * 2
    found = predict_mixture([Condition("e", known, np.zeros(2, np.int8))], np.diag([1.0, 0.0]))
    assert found.weights == pytest.approx([0.5, 0.5])
    assert found.error_of_mean == pytest.approx(1)
    assert np.isfinite(found.error)


def test_a_similarity_average_prefers_the_similar() -> None:
    weights = similarity_average(np.array([0.9, 0.5, -0.2]))
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0.95
    np.testing.assert_allclose(similarity_average(np.zeros(4)), 0.25)


def test_cosines_of_nothing_are_zero() -> None:
    assert cosines(np.zeros((1, 3)), np.ones((2, 3))).tolist() == [[0.0, 0.0]]
    np.testing.assert_allclose(cosines(np.ones((1, 3)), np.ones((2, 3))), 1)


# -- novelty -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(sample_adapters: Path) -> list[str]:
    return [card_description(path.read_text()) for path in sorted(sample_adapters.glob("*/README.md"))]


def kinship(description: str, known: list[str]) -> str:
    return judge_novelty(description, known, lambda text: TextEncoder().encode(text, ()), TextEncoder.name).kinship


@pytest.mark.parametrize("text", ["xqzv jjkw pplm", "asdf lkjh qwer zxcv poiu", "7f3a 99bc 001d", "aaaaaaaaa", "?!"])
def test_random_descriptions_are_told_apart(text: str, known: list[str]) -> None:
    assert kinship(text, known) == "unrelated"


@pytest.mark.parametrize("text", ["Swedish manual pages", "Continue Go source code.", "Manuals translated to Italian"])
def test_real_new_descriptions_are_not_refused(text: str, known: list[str]) -> None:
    assert kinship(text, known) in ("near", "far")


def test_a_known_description_is_known(known: list[str]) -> None:
    assert kinship(known[4], known) == "known"


def test_the_rule_follows_the_registry(known: list[str]) -> None:
    """In a registry of gibberish, gibberish of the same words is at home and English is not."""
    words = ["xqzv", "jjkw", "pplm", "wkkq", "zzvt", "qqpx"]
    gibberish = [f"{a} {b} {c}" for a, b, c in zip(words, words[1:] + words[:1], words[3:] + words[:3], strict=True)]
    assert kinship("pplm xqzv wkkq", gibberish) in ("near", "far")
    assert kinship(known[0], gibberish) == "unrelated"


def test_known_tasks_are_compared_with_their_nearest_other() -> None:
    novelty = judge_novelty(
        "one two", ["one two", "one two", "six seven"], lambda t: TextEncoder().encode(t, ()), TextEncoder.name
    )
    assert novelty.median_known == pytest.approx(1)
    assert novelty.least_known < 0.5
    assert novelty.similarities.shape == (3,)
    assert novelty.nearest == pytest.approx(1)
