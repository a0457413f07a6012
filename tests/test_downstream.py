"""Every plugin's own suite, from wheels in a fresh venv: the quick ones; all by downstream.run."""

from __future__ import annotations

import pytest

from downstream.fresh import distributions
from downstream.run import FreshVenv, Recipe, main, names, run


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Wheels are built once; each recipe gets a venv of its own."""
    return tmp_path_factory.mktemp("wheels")


@pytest.mark.parametrize("name", names())
def test_a_plugin_passes_its_own_suite(name, wheels, tmp_path):
    venv = FreshVenv(tmp_path)
    venv.wheels = wheels
    passed, output = run(Recipe.read(name), venv, quick=True)
    assert passed, output


def test_every_distribution_has_a_recipe():
    assert set(names()) == set(distributions()) - {"apr-core"}


def test_a_suite_that_fails_is_reported(capsys, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    recipe = Recipe("apr-demo", tmp_path, (), (), "test_*.py")
    monkeypatch.setattr(Recipe, "read", classmethod(lambda cls, name: recipe))
    assert main(["apr-demo", "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED apr-demo" in printed and "assert 1 == 2" in printed


def test_a_recipe_that_runs_nothing_fails(tmp_path):
    (tmp_path / "plugin" / "tests").mkdir(parents=True)
    recipe = Recipe("apr-demo", tmp_path / "plugin", (), (), "test_*.py")
    passed, output = run(recipe, FreshVenv(tmp_path / "venv"), quick=True)
    assert not passed and "no test" in output
