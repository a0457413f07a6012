"""A short soak; `python -m benchmarks.soak` is the long one."""

from __future__ import annotations

import pytest

from benchmarks import soak

pytestmark = pytest.mark.needs_plugins


def test_many_clients_get_what_one_gets_and_leave_nothing_behind(capsys):
    code = soak.main(["--clients", "24", "--seconds", "6", "--slots", "4", "--requests", "8"])
    assert code == 0, capsys.readouterr().out
