"""Searching page by page: what is found, and in what order, is that of a search of everything at once."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lorareg.compress.tasks.search import SHARED_START, cosines, search_by_text, search_by_vector, words_of
from lorareg.compress.tasks.task_vectors import TEXT_SIZE, TextEncoder
from lorareg.registry.listings import TaskText

WORDS = (
    "continue", "text", "Manual", "pages", "code", "dutch", "Straße", "ﬁne", "日本語", "rust", "rusty", "de", "den",
    "_x_", "a", "b1", "😀", "İstanbul", "x.y",
)  # fmt: skip


def made_up(seed: int, count: int) -> list[TaskText]:
    chosen = random.Random(seed)
    return [
        TaskText(number, f"team/{number % 7}-{number}", " ".join(chosen.choices(WORDS, k=chosen.randint(0, 12))))
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_many_texts_have_the_vectors_of_each(seed: int) -> None:
    texts = [task.description for task in made_up(seed, 60)] + ["", "a", "ab", "abc", "ab" * 300]
    encoder = TextEncoder()
    np.testing.assert_array_equal(encoder.encode_all(texts), [encoder.encode(text, ()) for text in texts])
    alphabet = ["".join(map(chr, range(0x4E00, 0x9000))), *texts]
    np.testing.assert_array_equal(encoder.encode_all(alphabet * 9), [encoder.encode(t, ()) for t in alphabet] * 9)


def test_no_texts_and_empty_texts() -> None:
    assert TextEncoder().encode_all([]).shape == (0, TEXT_SIZE)
    np.testing.assert_array_equal(TextEncoder().encode_all(["", ""]), np.zeros((2, TEXT_SIZE)))


@pytest.mark.parametrize(
    "query", ["dutch manual pages", "de", "rust", "RUSTic denial", "zzz", "x y", "fine 日本語 straße"]
)
@pytest.mark.parametrize("size", [1, 7, 200])
def test_pages_of_any_size_find_the_same_as_the_definition_says(query: str, size: int) -> None:
    tasks = made_up(3, 100)
    words, starts = sorted(words_of(query)), {}
    for task in tasks:
        starts[task.id] = {word[:SHARED_START] for word in words_of(f"{task.name} {task.description}")}
    weights = {}
    for word in words:
        count = sum(word[:SHARED_START] in found for found in starts.values())
        if count:
            weights[word] = float(np.log1p(len(tasks) / count))
    encoder, expected = TextEncoder(), []
    for task in tasks:
        vector = encoder.encode(f"{task.name} {task.description}", ())
        near = cosines(encoder.encode(query, ()), vector[None])[0]
        share = sum(weight for word, weight in weights.items() if word[:SHARED_START] in starts[task.id])
        expected.append((-(near + (share / sum(weights.values()) if weights else 0)) / 2, task.name, task.id))
    found = search_by_text(query, [tasks[start : start + size] for start in range(0, 100, size)], 20)
    assert [key for key, _ in found] == [key for *_, key in sorted(expected)[:20]]
    np.testing.assert_allclose([score for _, score in found], [-score for score, *_ in sorted(expected)[:20]])


def test_vectors_by_pages() -> None:
    tasks = made_up(4, 30)
    vectors = np.random.default_rng(0).integers(-127, 127, (30, 16)).astype(np.int8)
    vectors[7] = 0
    pages = [dict(zip(tasks[start : start + 8], vectors[start : start + 8], strict=True)) for start in (0, 8, 16, 24)]
    found = search_by_vector(vectors[5], [*pages, {}], 3)
    near = cosines(vectors[5], vectors)
    assert found[0] == (5, pytest.approx(1))
    assert [key for key, _ in found] == np.argsort(-near, kind="stable")[:3].tolist()
    assert near[7] == 0


def test_text_that_is_damaged_is_looked_through_as_well() -> None:
    tasks = [TaskText(1, "a", b"dutch \xff manual".decode(errors="surrogateescape")), TaskText(2, "b", "rust")]
    assert [key for key, _ in search_by_text("dutch", [tasks], 2)] == [1, 2]
