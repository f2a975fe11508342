"""Judging by what adapters do: a tiny model with adapters on it, the text they are judged on, and gain retained."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from lorareg.compress.base_model import BaseModel, gain_retained
from lorareg.compress.codec.encode import Original
from lorareg.compress.contracts.judge import MOST_ROWS, ROW_LENGTH, WRITTEN_ROWS, Judge, Judges, base_model_path
from lorareg.compress.factors.weights import Factors
from lorareg.compress.probe import PROBE_TEXTS
from lorareg.compress.progress import Silent
from lorareg.registry.errors import BaseModelError, ContractError, InvalidAdapterError, LayoutMismatchError
from lorareg.registry.store import Registry
from lorareg.registry.types import EVAL_FILE, SAMPLES_FILE, Adapter, Layout

TOKENS = np.random.default_rng(0).integers(0, 64, (5, 20))
WORDS = [f"w{i}" for i in np.random.default_rng(1).integers(1, 64, 300)]
ADAPTER: Any = SimpleNamespace(ref="task@1")


@dataclass
class Files:
    """The files of the only adapter."""

    stored: dict[str, bytes] = field(default_factory=dict)

    def files(self, adapter: Adapter) -> list[Any]:
        return [SimpleNamespace(path=path) for path in self.stored]

    def read_file(self, adapter: Adapter, path: str) -> bytes:
        return self.stored[path]


def judge_of(model: BaseModel, *, tokens: Any = None, samples: Any = None, **others: Any) -> Judge:
    tensors = others if tokens is None else {"input_ids": tokens, **others}
    stored = {EVAL_FILE: save(tensors)} if tensors else {}
    if samples is not None:
        stored[SAMPLES_FILE] = json.dumps(samples).encode()
    return Judge(model, Files(stored), seed=0)


@pytest.fixture
def original(make: ModuleType, tiny_layout: Layout) -> Original:
    made: Original = make.original(tiny_layout, seed=3, size=0.1)
    return made


def scaled(original: Original, by: float) -> list[Factors]:
    return [Factors(b=by * f.b, a=f.a) for f in original.factors]


# -- the base model ------------------------------------------------------------------------------


def test_an_adapter_is_added_as_peft_defines_it(tiny_path: Any, tiny_model: BaseModel, original: Original) -> None:
    torch = pytest.importorskip("torch")
    with_adapter = tiny_model.loss(TOKENS, tiny_model.weights_of(original.layout, original.factors))
    merged = BaseModel(tiny_path)
    modules = dict(merged.model.named_modules())
    for name, factors, scale in zip(original.layout.modules, original.factors, original.layout.scales, strict=True):
        modules[name].weight += torch.tensor(scale * factors.delta, dtype=torch.float32)
    assert with_adapter == pytest.approx(merged.loss(TOKENS), rel=1e-4)
    assert with_adapter != pytest.approx(tiny_model.loss(TOKENS), rel=1e-3)


def test_an_adapter_is_taken_off_again(tiny_model: BaseModel, original: Original) -> None:
    before = tiny_model.loss(TOKENS)
    weights = tiny_model.weights_of(original.layout, original.factors)
    with pytest.raises(IndexError), tiny_model.adapted(weights):
        tiny_model.loss(TOKENS + 64)
    assert tiny_model.loss(TOKENS) == before
    with tiny_model.adapted(weights):
        assert tiny_model.loss(TOKENS) == before  # without weights is without an adapter, whatever is on


def test_a_loss_does_not_depend_on_batches(tiny_model: BaseModel) -> None:
    rows = np.concatenate([TOKENS] * 4)
    assert tiny_model.loss(rows) == pytest.approx(tiny_model.loss(TOKENS), rel=1e-5)
    assert tiny_model.vocabulary_size == 64
    assert tiny_model.tokens("w5 w63\nw1") == [5, 63, 1]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((32, 4, 33),), "q_proj' has layout 32 x 33, but 32 x 32 in the base model is needed"),
        (((32, 4, 32), (32, 4, 32)), "v_proj' has layout 32 x 32, but 16 x 32 in the base model is needed"),
        (((32, 4, 32), (16, 4, 32)) * 3, r"layers\.2\.self_attn\.q_proj' has layout 32 x 32, but no such module"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    shapes: Any, message: str, tiny_model: BaseModel, make: ModuleType
) -> None:
    with pytest.raises(LayoutMismatchError, match=message):
        judge_of(tiny_model).case(ADAPTER, make.original(make.layout(shapes)))


def test_gain_retained_is_the_share_of_what_was_learned() -> None:
    assert gain_retained(4.0, 3.0, 3.25) == 0.75
    assert gain_retained(4.0, 3.0, 2.5) == 1.5
    assert gain_retained(4.0, 3.0, 5.0) == -1.0
    assert math.isnan(gain_retained(3.0, 3.0, 3.0))
    assert math.isnan(gain_retained(3.0, 4.0, 3.0))


# -- gain ----------------------------------------------------------------------------------------


def test_the_original_keeps_all_and_nothing_keeps_none(tiny_model: BaseModel, original: Original) -> None:
    judge = judge_of(tiny_model)
    case = judge.case(ADAPTER, original)
    assert case.loss_original < case.loss_base
    whole, none, most = (judge.gain(case, scaled(original, by)) for by in (1.0, 0.0, 0.9))
    assert whole["gain_retained"] == 1.0
    assert none["gain_retained"] == pytest.approx(0.0, abs=1e-6)
    assert 0.5 < float(most["gain_retained"]) < 1
    assert whole == {
        "gain_retained": 1.0,
        "loss_base": case.loss_base,
        "loss_original": case.loss_original,
        "loss_restored": case.loss_original,
        "measured_on": "self-written text",
        "base_model_sha256": tiny_model.digest,
    }


def test_recorded_losses_stand_in_for_the_original(tiny_model: BaseModel, original: Original) -> None:
    judge = judge_of(tiny_model, tokens=TOKENS)
    case = replace(judge.case(ADAPTER, original), loss_base=9.0, loss_original=1.0)
    restored = scaled(original, 0.9)
    found = judge.gain_from_losses(ADAPTER, original.layout, restored, 9.0, 1.0)
    assert found is not None
    assert found["gain_retained"] == judge.gain(case, restored)["gain_retained"]
    assert judge_of(tiny_model).gain_from_losses(ADAPTER, original.layout, restored, 2.0, 1.0) is None


class Stages:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, stage: str, total: int) -> None:
        self.told.append(f"{stage} of {total}")

    def advance(self, n: int = 1, **figures: float) -> None:
        self.told.append(str(n))

    def finish(self) -> None:
        self.told.append("end")

    def note(self, message: str) -> None: ...


def test_measuring_tells_of_each_batch(tiny_model: BaseModel, original: Original) -> None:
    stages = Stages()
    judge = Judge(tiny_model, Files({EVAL_FILE: save({"input_ids": np.concatenate([TOKENS] * 2)})}), 0, stages)
    judge.case(ADAPTER, original)
    one = ["8", "2", "end"]
    assert stages.told == ["loss of task@1 without its adapter of 10", *one, "loss of task@1 as it was of 10", *one]


# -- where the model is --------------------------------------------------------------------------


def test_a_base_model_is_remembered_by_its_name(registry: Registry, tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"--gain is not valid: .*give --base-model too .*'tiny/one'"):
        base_model_path(registry, "tiny/one", None, "--gain")
    Judges(registry, tiny_path, 0, Silent()).of("tiny/one", "--gain")
    assert registry.setting("base_model:tiny/one") == str(tiny_path)
    judges = Judges(registry, None, 0, Silent())
    assert judges.of("tiny/one", "--gain") is judges.of("tiny/one", "--gain")
    with pytest.raises(ContractError, match="give --base-model too"):
        judges.of("tiny/two", "--gain")
    registry.remember("base_model:tiny/two", str(tmp_path / "gone"))
    with pytest.raises(BaseModelError, match=r"gone: it is not there any more. Give --base-model once more"):
        judges.of("tiny/two", "--gain")


def test_a_base_model_is_never_read_from_a_pickle(tiny_path: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pickled: it does not load .*safetensors"):
        BaseModel(folder)


# -- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "text"), [([" ".join(WORDS)], "samples"), ([], "built-in text"), (None, "built-in text")]
)
def test_divergence_grows_with_the_difference(
    samples: Any, text: str, tiny_model: BaseModel, original: Original
) -> None:
    judge = judge_of(tiny_model, samples=samples, tokens=TOKENS)
    same, near, far = (judge.divergence(ADAPTER, original, scaled(original, by)) for by in (1.0, 0.9, 0.5))
    assert same == {
        "kl_divergence": pytest.approx(0.0, abs=1e-6),
        "kl_measured_on": text,
        "base_model_sha256": tiny_model.digest,
    }
    assert 1e-6 < float(near["kl_divergence"]) < float(far["kl_divergence"])


def test_divergence_is_the_mean_over_tokens_of_p_times_log_p_over_q(tiny_model: BaseModel, original: Original) -> None:
    torch = pytest.importorskip("torch")
    first, second = (tiny_model.weights_of(original.layout, scaled(original, by)) for by in (1.0, 0.5))
    logs = []
    for weights in (first, second):
        with torch.no_grad(), tiny_model.adapted(weights):
            logs.append(tiny_model.logits(torch.as_tensor(TOKENS)).double().log_softmax(-1).numpy())
    expected = float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean())
    assert tiny_model.divergence(TOKENS, first, second) == pytest.approx(expected, rel=1e-4)


def test_the_built_in_text_is_of_many_kinds() -> None:
    assert len(set(PROBE_TEXTS)) == len(PROBE_TEXTS) >= 20
    scripts = ("\u0400", "\u04ff"), ("\u3040", "\u30ff"), ("\u4e00", "\u9fff")
    for low, high in scripts:
        assert any(low <= letter <= high for text in PROBE_TEXTS for letter in text)


# -- the text ------------------------------------------------------------------------------------


def test_evaluation_tokens_come_before_samples_and_samples_before_what_is_written(
    tiny_model: BaseModel, original: Original
) -> None:
    samples = [" ".join(WORDS[:150]), " ".join(WORDS[150:])]
    held_out = judge_of(tiny_model, tokens=TOKENS, samples=samples).case(ADAPTER, original)
    assert (held_out.text, held_out.tokens.dtype) == ("evaluation tokens", np.int64)
    np.testing.assert_array_equal(held_out.tokens, TOKENS)
    sampled = judge_of(tiny_model, samples=samples).case(ADAPTER, original)
    assert sampled.text == "samples"
    assert sampled.tokens.ravel().tolist() == [int(word[1:]) for word in WORDS[: 2 * ROW_LENGTH]]
    written = judge_of(tiny_model).case(ADAPTER, original)
    assert (written.text, written.tokens.shape) == ("self-written text", (WRITTEN_ROWS, ROW_LENGTH))


def test_distilling_never_sees_what_an_adapter_is_judged_on(tiny_model: BaseModel, original: Original) -> None:
    weights = tiny_model.weights_of(original.layout, original.factors)
    for samples, text in (([" ".join(WORDS)], "samples"), (None, "self-written text")):
        judge = judge_of(tiny_model, tokens=TOKENS, samples=samples)
        tokens, source = judge.training_text(ADAPTER, weights)
        assert source == text
        np.testing.assert_array_equal(judge.distiller(ADAPTER, original).tokens.numpy(), tokens)


@pytest.mark.parametrize("samples", [[], [""], [" ".join(WORDS[: ROW_LENGTH - 1])]])
def test_samples_too_short_for_a_row_are_no_text(samples: list[str], tiny_model: BaseModel, original: Original) -> None:
    assert judge_of(tiny_model, samples=samples).case(ADAPTER, original).text == "self-written text"


def test_long_samples_are_cut(tiny_model: BaseModel, original: Original) -> None:
    weights = tiny_model.weights_of(original.layout, original.factors)
    tokens, _ = judge_of(tiny_model, samples=[" ".join(WORDS)] * 20).training_text(ADAPTER, weights)
    assert tokens.shape == (MOST_ROWS, ROW_LENGTH)


def test_what_a_model_writes_follows_from_seed_and_adapter(tiny_model: BaseModel, original: Original) -> None:
    from lorareg.compress.contracts.distill import self_written

    weights = tiny_model.weights_of(original.layout, original.factors)
    written = [(weights, 3, 9, 0), (weights, 3, 9, 0), (weights, 3, 9, 1), ({}, 3, 9, 0)]
    one, same, other, plain = (self_written(tiny_model, *how) for how in written)
    assert (one.shape, one.dtype, one[:, 0].tolist()) == ((3, 9), np.int64, [0, 0, 0])
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain)


def test_keeping_keys_and_values_changes_nothing_that_is_written(tiny_model: BaseModel, original: Original) -> None:
    torch = pytest.importorskip("torch")
    from lorareg.compress.contracts.distill import self_written

    weights = tiny_model.weights_of(original.layout, original.factors)
    random, tokens = torch.Generator().manual_seed(4), torch.zeros((2, 1), dtype=torch.long)
    with torch.no_grad(), tiny_model.adapted(weights):
        while tokens.shape[1] < 7:
            chances = tiny_model.logits(tokens)[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=random)], dim=1)
    np.testing.assert_array_equal(self_written(tiny_model, weights, 2, 7, 4), tokens.numpy())


def test_other_tensors_are_no_evaluation_tokens(tiny_model: BaseModel, original: Original) -> None:
    assert judge_of(tiny_model, labels=TOKENS).case(ADAPTER, original).text == "self-written text"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_token_ids_may_be_of_any_integer_type(dtype: Any, tiny_model: BaseModel, original: Original) -> None:
    case = judge_of(tiny_model, tokens=TOKENS.astype(dtype)).case(ADAPTER, original)
    np.testing.assert_array_equal(case.tokens, TOKENS)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS + 1, "reach from 1 to 64, and the base model knows 0 to 63"),
        (TOKENS - 1, "reach from -1 to 62, and the base model knows 0 to 63"),
        (np.full((1, 2), 1 << 40), "reach from 1099511627776 to 1099511627776"),
        (TOKENS[0], "are I64 of shape (20,), not integers in rows of two or more"),
        (TOKENS[:, :1], "are I64 of shape (5, 1), not"),
        (TOKENS[:0], "are I64 of shape (0, 20), not"),
        (TOKENS[None], "are I64 of shape (1, 5, 20), not"),
        (TOKENS.astype(np.float32), "are F32 of shape (5, 20), not"),
        (TOKENS > 30, "are BOOL of shape (5, 20), not"),
    ],
)
def test_tokens_that_are_none_of_the_model_are_refused(
    tokens: Any, message: str, tiny_model: BaseModel, original: Original
) -> None:
    words = re.escape(f"task@1/eval.safetensors: its input_ids {message}")
    with pytest.raises(InvalidAdapterError, match=words):
        judge_of(tiny_model, tokens=np.ascontiguousarray(tokens)).case(ADAPTER, original)


def test_a_registry_holds_the_text(
    tiny_model: BaseModel, original: Original, registry: Registry, add_tiny: Callable[..., Adapter]
) -> None:
    judge = Judge(tiny_model, registry, 0)
    named = {"a": {"tokens": TOKENS, "samples": [" ".join(WORDS)]}, "b": {"samples": [" ".join(WORDS)]}, "c": {}}
    texts = [judge.case(add_tiny(registry, name, **files), original).text for name, files in named.items()]
    assert texts == ["evaluation tokens", "samples", "self-written text"]


# -- a glance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [[" ".join(WORDS)], None])
def test_a_glance_is_the_divergence_on_the_first_and_the_last_row(
    samples: Any, tiny_model: BaseModel, original: Original
) -> None:
    judge = judge_of(tiny_model, samples=samples)
    text = " ".join(WORDS) if samples else "\n".join(PROBE_TEXTS)
    ids = tiny_model.tokens(text)
    rows = min(len(ids) // ROW_LENGTH, MOST_ROWS)
    few = np.array(ids[: rows * ROW_LENGTH], np.int64).reshape(rows, ROW_LENGTH)[[0, -1]]
    glance = judge.glance(ADAPTER, original)
    whole = tiny_model.weights_of(original.layout, original.factors)
    assert glance.base_kl == pytest.approx(tiny_model.divergence(few, whole, {}), rel=1e-4)
    for by in (1.0, 0.9, 0.5):
        first, second = (tiny_model.weights_of(original.layout, scaled(original, s)) for s in (1.0, by))
        expected = tiny_model.divergence(few, first, second)
        assert glance.divergence(scaled(original, by)) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_glance_at_another_models_adapter_is_refused(tiny_model: BaseModel, make: ModuleType) -> None:
    with pytest.raises(LayoutMismatchError, match="q_proj' has layout 32 x 33, but 32 x 32"):
        judge_of(tiny_model).glance(ADAPTER, make.original(make.layout(((32, 4, 33),))))
