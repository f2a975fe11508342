"""Variants are made with the real libraries, which all of them need; without one, nothing here can be tested."""

from __future__ import annotations

import pytest

for package in ("torch", "peft", "transformers", "diffusers"):
    pytest.importorskip(package)

import variants  # noqa: E402


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes a `variant` runs for each; what a module makes of one is made once."""
    if "variant" in metafunc.fixturenames:
        every = [variant for family in variants.VARIANTS.values() for variant in family]
        metafunc.parametrize("variant", every, ids=lambda variant: variant.name, scope="module")
