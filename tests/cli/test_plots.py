"""Plots of a task's modules, as the pages show them."""

from __future__ import annotations

from lorareg.cli.plots import MAX_MODULES, module_errors


def test_module_errors_are_columns() -> None:
    plot = module_errors([(f"layers.{index // 2}.{'qv'[index % 2]}", 0.1 + index / 100) for index in range(8)])
    assert plot.count("<rect") == 8
    assert "<title>layers.3.v: 0.1700</title>" in plot
    assert ">layer</text>" in plot
    assert ">modules, in their order</text>" in module_errors([("lone", 0.5)])


def test_many_modules_share_columns_and_the_worst_is_shown() -> None:
    errors = [(f"m{index}", 0.9 if index == 777 else 0.1) for index in range(3 * MAX_MODULES)]
    plot = module_errors(errors)
    assert plot.count("<rect") <= MAX_MODULES
    assert "m777: 0.9" not in plot  # there is no such module
    errors[500] = ("m500", 0.9)
    assert "m500: 0.9000" in module_errors(errors)


def test_errors_that_are_no_numbers_stand_out() -> None:
    plot = module_errors([("a", float("nan")), ("b", float("inf")), ("c", 0.5)])
    assert plot.count('class="tier-lossless"') == 2
    assert module_errors([("a", float("inf"))]).count("<rect") == 1
    assert module_errors([("a", 0.0)]) == module_errors([]) == ""
