"""Tests for a package that is not installed are left out, as with the core alone."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

PACKAGES = {
    "apr_devkit": (
        "cli/test_plugins_commands.py", "devkit", "kits", "model/test_determinism.py",
        "model/test_generate.py", "model/test_recording.py", "repository/test_public_api.py",
    ),
    "apr_eval": ("eval",),
    "apr_hub": ("hub",),
    "apr_serve": ("engine", "page", "serve"),
}  # fmt: skip
collect_ignore = [
    name for package, names in PACKAGES.items() if find_spec(package) is None for name in names
]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder for the wheels of this repository, one for all processes that run these tests."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheels"
