"""Examples pass their own suites from wheels, beside wheels of everything else, in a fresh venv.

Shipped plugins' suites run in place with all other tests; `python -m downstream.run` runs them so.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from downstream.fresh import ROOT, FreshVenv, distributions
from downstream.run import Recipe, main, names, run

pytestmark = [pytest.mark.needs_plugins, pytest.mark.takes_minutes]

EXAMPLES = [name for name in names() if "examples" in Recipe.read(name).path.parts]


@pytest.fixture(scope="module")
def venv(tmp_path_factory, wheels):
    """One for all: kernels that are compiled at first use are compiled once."""
    return FreshVenv(tmp_path_factory.mktemp("downstream"), wheels=wheels)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_its_own_suite(name, venv):
    passed, output = run(Recipe.read(name), venv, quick=True)
    assert passed, output


def test_every_distribution_has_a_recipe():
    assert set(names()) == set(distributions()) - {"apr-core"}


def test_a_suite_that_fails_is_reported(capsys, monkeypatch, tmp_path, venv):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    recipe = Recipe("apr-demo", tmp_path, (), (), "test_*.py")
    monkeypatch.setattr(Recipe, "read", classmethod(lambda cls, name: recipe))
    monkeypatch.setattr("downstream.run.FreshVenv", lambda folder, link: venv)
    assert main(["apr-demo", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED apr-demo" in printed and "assert 1 == 2" in printed


def test_a_recipe_that_runs_nothing_fails(tmp_path, venv):
    (tmp_path / "plugin" / "tests").mkdir(parents=True)
    recipe = Recipe("apr-demo", tmp_path / "plugin", (), (), "test_*.py")
    passed, output = run(recipe, venv, quick=True)
    assert not passed and "no test" in output


def test_the_core_passes_its_suite_with_no_plugin_installed(tmp_path, wheels):
    """Each test that is not marked as needing plugins, once, in a venv that has the core alone."""
    venv = FreshVenv(tmp_path, wheels=wheels)
    venv.install("apr-core")
    done = subprocess.run(
        [venv.python, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.first_of_each",
         "-m", "not needs_plugins", "--ignore=tests/repository", "tests"],
        cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
