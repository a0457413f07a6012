"""The kits that every plugin passes."""

from __future__ import annotations

from apr_devkit.kits import CommandConformance


class TestDoctor(CommandConformance):
    command = "doctor"


class TestCheck(CommandConformance):
    command = "check"


class TestNew(CommandConformance):
    command = "new"


class TestFreeze(CommandConformance):
    command = "freeze"
