"""`lorareg compress`: what it passes on, what it prints, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorareg.cli.options import parse_share, parse_size
from lorareg.compress.contracts.contract import CompressOptions, Contract
from lorareg.registry.errors import ContractError

Run = Callable[..., Any]


def test_compress_passes_options_and_prints_a_summary(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    result = run("compress", "c", "--tolerance", "0.1", "--arch", "none", "--seed", "7", "--home", home)
    assert pipeline.options == CompressOptions(Contract(tolerance=0.1), "none", seed=7)
    assert pipeline.cohorts == ["c"]
    assert "1.40%" in result.out
    assert "c: It pays." in result.out
    assert "train: 2/2  loss 0.25  adapters/s 3" in result.err
    assert "[red]not markup" in result.err


@pytest.mark.parametrize(
    ("arguments", "contract"),
    [
        (("--budget", "1%"), Contract(budget=0.01)),
        (("--budget", "0.02", "--distill"), Contract(budget=0.02, distill=True)),
        (("--gain", "0.99"), Contract(gain=0.99)),
        (("--gain", "0.9", "--distill"), Contract(gain=0.9, distill=True)),
        (("--tolerance", "kl=0.01", "--distill"), Contract(kl=0.01, distill=True)),
        (("--tolerance", "weight=0.3, kl=0.01,gain=0.9"), Contract(0.3, kl=0.01, gain=0.9)),
        (("--tolerance", "0.3", "--tolerance", "kl=1e-2", "--gain", "0.9"), Contract(0.3, kl=0.01, gain=0.9)),
    ],
)
def test_compress_takes_other_contracts(
    run: Run, home: Path, pipeline: SimpleNamespace, arguments: tuple[str, ...], contract: Contract
) -> None:
    run("compress", *arguments, "--base-model", home, "--arch", "linear", "--home", home)
    assert pipeline.options == CompressOptions(contract, "linear", home)


def test_compress_takes_a_share_of_masked_latents(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    run("compress", "--arch", "slots", "--mask-latents", "30%", "--home", home)
    assert pipeline.options == CompressOptions(arch="slots", mask_latents=0.3)


def test_compress_shows_the_gain_where_it_was_measured(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    pipeline.gains = (0.9925, 0.981, 0.0123)
    out = run("compress", "--home", home).out
    assert "99.2% (98.1%)" in out
    assert "c: the model's predictions diverge by 0.0123 nats a token at most" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "a lot"), "--budget a lot is not valid: a share is written as 1% or 0.01"),
        (("--budget", "120%"), "--budget 1.2 is not valid: a budget is a share"),
        (("--budget", "nan"), "--budget nan is not valid"),
        (("--tolerance", "1"), "--tolerance 1 is not valid: a relative error"),
        (("--gain", "1"), "--gain 1 is not valid: gain retained lies between 0 and 1"),
        (("--distill",), "--distill is not valid"),
        (("--tolerance", "cosine=1"), "--tolerance cosine=1 is not valid: the levels are weight, kl, gain"),
        (("--tolerance", "kl=small"), "--tolerance kl=small is not valid: a level is a number"),
        (("--tolerance", "kl=1,kl=2"), "--tolerance kl=2 is not valid: kl is given twice"),
        (("--tolerance", ""), "a level is a number"),
        (("--tolerance", "gain=0.9", "--gain", "0.8"), "--tolerance gain=0.9 is not valid: gain is given twice"),
        (("--arch", "slots", "--mask-latents", "some"), "--mask-latents some is not valid: a share is written as"),
        (("--arch", "slots", "--mask-latents", "100%"), "--mask-latents 1 is not valid: it is a share"),
        (("--mask-latents", "30%"), "--mask-latents 0.3 with --arch auto is not valid: only slots"),
        (("--tolerance", "0.1", "--budget", "1%"), "--tolerance with --budget is not valid: bytes"),
    ],
)
def test_compress_refuses_contracts_that_make_no_sense(
    run: Run, home: Path, pipeline: SimpleNamespace, arguments: tuple[str, ...], words: str
) -> None:
    result = run("compress", *arguments, "--home", home)
    assert (result.exit_code, words in result.err) == (30, True), result.err
    assert pipeline.options is None


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), (" 0.5 % ", 0.005), ("0.01", 0.01), ("1e-3", 0.001)])
def test_shares_are_percents_or_fractions(text: str, share: float) -> None:
    assert parse_share("--budget", text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "1%%", "1 of 100", "1,5%"])
def test_what_is_no_share_is_named(text: str) -> None:
    with pytest.raises(ContractError, match=re.escape(f"--budget {text}")):
        parse_share("--budget", text)


def test_compress_in_json_is_silent_beside(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    result = run("compress", "--home", home, "--json")
    assert result.data["cohorts"][0]["by_tier"] == {"residual": 3}
    assert result.err == ""


def test_compress_needs_a_base_model_for_what_one_does(run: Run, home: Path) -> None:
    result = run("compress", "--tolerance", "kl=0.01", "--home", home)
    assert result.exit_code == 30
    assert "--tolerance kl is not valid: what a model does is measured on it; give --base-model too" in result.err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("283MB", 283_000_000),
        ("500kB", 500_000),
        ("500 KB", 500_000),
        ("1GiB", 1 << 30),
        ("1.5MB", 1_500_000),
        ("0.1kb", 100),
        ("2TB", 2 * 10**12),
        (" 4096 ", 4096),
        ("12B", 12),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size("--generator-budget", text) == size


@pytest.mark.parametrize("text", ["", "MB", "a lot", "1,5MB", "1e6", "nan", "inf", "3 parsecs", "1%", "5MBs", "0x10"])
def test_what_is_no_size_is_named(text: str) -> None:
    named = f"--generator-budget {text}".strip()
    message = f"{named} is not valid: a size is written as 283MB, 500kB, 1GiB or plain bytes"
    with pytest.raises(ContractError, match=re.escape(message)):
        parse_size("--generator-budget", text)


def test_compress_passes_a_generator_budget(run: Run, home: Path, pipeline: SimpleNamespace) -> None:
    run("compress", "--generator-budget", "283MB", "--home", home)
    assert pipeline.options == CompressOptions(generator_budget=283_000_000)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("0", "--generator-budget 0 is not valid: a generator takes at least one byte"),
        ("-5kB", "--generator-budget -5000 is not valid: a generator takes at least one byte"),
        ("0.3", "--generator-budget 0 is not valid"),
        ("huge", "--generator-budget huge is not valid: a size is written as 283MB"),
    ],
)
def test_compress_refuses_a_generator_budget_of_nothing(
    run: Run, home: Path, pipeline: SimpleNamespace, size: str, words: str
) -> None:
    result = run("compress", "--generator-budget", size, "--home", home)
    assert (result.exit_code, words in result.err) == (30, True), result.err
    assert pipeline.options is None
