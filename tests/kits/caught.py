"""What tests of kits share: a table of wrong plugins, and the checks that a kit has of its own."""

from __future__ import annotations

import pytest

from apr_devkit.kits import PluginConformance
from apr_devkit.kits.checks import checks_of, run_check


class Wrong:
    """Wrong plugins, each beside the check that catches it and a word of what it says."""

    def __init__(self):
        self.rows = []

    def add(self, thing, check, said, **how):
        """One more. `how` goes to what makes the kit."""
        name = getattr(thing, "__name__", str(thing))
        self.rows.append(pytest.param(thing, f"test_{check}", said, how, id=f"{name}-{check}"))
        return thing

    def caught(self, check, said, **how):
        """The same, as a decorator."""
        return lambda thing: self.add(thing, check, said, **how)

    @property
    def each(self):
        """The decorator of the test that goes through them."""
        return pytest.mark.parametrize(("wrong", "check", "said", "how"), self.rows)

    def checks(self):
        """Checks that catch something."""
        return {row.values[1] for row in self.rows}


def own_checks(kit):
    """Its checks, without those that every plugin passes."""
    return [name for name in checks_of(kit) if not hasattr(PluginConformance, name)]


def assert_caught(kit, check, said):
    """The check fails and says so."""
    result = run_check(kit, check)
    assert result.outcome == "failed", f"{check} {result.outcome} {result.reason}"
    assert said in result.reason, result.reason
