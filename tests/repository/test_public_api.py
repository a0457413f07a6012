"""What plugins may rely on does not change by accident."""

from __future__ import annotations

from pathlib import Path

from tests import public_api

PINNED = Path(__file__).parents[1] / "data" / "public_api.txt"


def test_the_public_api_is_pinned():
    now, pinned = list(public_api.lines()), PINNED.read_text("utf-8").splitlines()
    old = [line for line in pinned if line not in now]
    new = [line for line in now if line not in pinned]
    assert now == pinned, (
        f"gone: {old}\nnew: {new}\nIf that is meant: python -m tests.public_api > {PINNED.name}, "
        "after reading docs/explanation/plugin-api.md"
    )


def test_every_kit_checks_something_of_its_kind():
    checks = public_api.kit_checks()
    every = set(checks.pop("PluginConformance"))
    assert every
    for kit, names in checks.items():
        assert set(names) > every, f"{kit} has no check of its own"
