"""Gives the tests the seeded tensors and figures of quant_golden.py."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden():
    """The module quant_golden.py; tests are not on the import path."""
    path = Path(__file__).parent / "quant_golden.py"
    spec = importlib.util.spec_from_file_location("quant_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
