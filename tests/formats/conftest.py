"""Variants are made with the real libraries, which all of them need; without one, nothing here can be tested."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

for package in ("torch", "peft", "transformers", "diffusers"):
    pytest.importorskip(package)


def load_variants() -> ModuleType:
    """`variants.py` beside this file; tests are no package."""
    if "format_variants" not in sys.modules:
        spec = importlib.util.spec_from_file_location("format_variants", Path(__file__).with_name("variants.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["format_variants"] = module
        spec.loader.exec_module(module)
    return sys.modules["format_variants"]


variants = load_variants()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes a `variant` runs for each."""
    if "variant" in metafunc.fixturenames:
        every = [variant for family in variants.VARIANTS.values() for variant in family]
        metafunc.parametrize("variant", every, ids=lambda variant: variant.name)
