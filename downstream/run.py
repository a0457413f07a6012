"""Runs plugins' own suites against the core as it is here.

    python -m downstream.run [NAME ...] [--quick] [--fetch]

A recipe (downstream/recipes/NAME.toml) says where a plugin is, which other distributions of this
repository and which third parties its tests need, and which of its tests are quick. Everything is
built as wheels and installed into a fresh venv; tests run in a copy, far from the sources. Without
--fetch third-party packages are those of the running interpreter, linked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from downstream.fresh import ROOT, FreshVenv

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a plugin is tested. `path` is a folder of this repository, or of a checkout beside it."""

    name: str
    path: Path
    needs: tuple[str, ...]  # other distributions of this repository
    third_parties: tuple[str, ...]
    quick: str  # the tests that run with --quick, as a glob
    environment: Mapping[str, str] = field(default_factory=dict)  # for its tests, where not set

    @classmethod
    def read(cls, name: str) -> Recipe:
        """The recipe of that name. Raises FileNotFoundError or KeyError."""
        content = tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8"))
        return cls(
            name,
            ROOT / content["path"],
            tuple(content.get("needs", ())),
            tuple(content.get("third_parties", ())),
            content.get("quick", "test_*.py"),
            content.get("environment", {}),
        )


def names() -> list[str]:
    """All recipes there are."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def run(recipe: Recipe, venv: FreshVenv, quick: bool) -> tuple[bool, str]:
    """Install what the recipe says and run its tests; whether they passed, and pytest's output."""
    venv.install("apr-core", *recipe.needs, recipe.name)
    venv.install_third_parties(recipe.third_parties)
    copy = venv.root / recipe.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(recipe.path / "tests", copy / "plugin_tests")
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("test_*"))
    chosen = sorted((copy / "plugin_tests").glob(recipe.quick if quick else "test_*.py"))
    if not chosen:
        return False, f"no test of {recipe.name} is called {recipe.quick}"
    given = {name: os.environ[name] for name in recipe.environment if name in os.environ}
    done = venv.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-rs",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        *chosen,
        cwd=copy,
        env=dict(recipe.environment) | given,
    )
    venv.uninstall(recipe.name)  # the next one may use this venv too
    return done.returncode == 0, done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a suite failed."""
    parser = argparse.ArgumentParser(description="Plugins' own suites against this core.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--quick", action="store_true", help="only what a recipe calls quick")
    parser.add_argument("--fetch", action="store_true", help="pip fetches third-party packages")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(names())
    if unknown:
        parser.error(f"no recipe called {', '.join(sorted(unknown))}")
    failed = []
    for name in options.names or names():
        with tempfile.TemporaryDirectory(prefix="apr-downstream-") as folder:
            passed, output = run(
                Recipe.read(name), FreshVenv(Path(folder), not options.fetch), options.quick
            )
        last = output.strip().splitlines()[-1] if output.strip() else ""
        print(f"{'ok    ' if passed else 'FAILED'} {name}: {last}", flush=True)
        if not passed:
            failed.append(name)
            print(output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
