"""Many clients at once: nobody gets what is another's, and who leaves leaves nothing behind.

A short soak; `python -m benchmarks.soak` is the long one. $APR_CROWD_S sets for how many seconds.
"""

from __future__ import annotations

import os

import pytest

from benchmarks import soak

pytestmark = pytest.mark.needs_plugins

SECONDS = os.environ.get("APR_CROWD_S", "8")


@pytest.mark.parametrize(("clients", "slots"), [("64", "16"), ("24", "4")])
def test_a_crowd_of_clients_hears_what_each_would_alone(capsys, clients, slots):
    code = soak.main(["--clients", clients, "--seconds", SECONDS, "--slots", slots])
    assert code == 0, capsys.readouterr().out
