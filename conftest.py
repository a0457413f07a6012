"""For all tests: those that take minutes begin first, and what tests start can be interrupted."""

from __future__ import annotations

import os
import signal

import pytest

# Triton decides as kernels are imported whether they are interpreted, and so does what they start:
# their tests are not for the process that runs all others. `make test` names them in its second.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["plugins/apr_backend_cuda"]

# A shell has its background jobs ignore interrupts, and so do all programs that these start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes: the other process fills the time beside it.

    Files that need wheels come later, when the processes are no longer at the same point: while one
    builds the wheels, another would wait for them.
    """
    wheels = {item.path for item in items if "wheels" in getattr(item, "fixturenames", ())}
    short = {item: item.get_closest_marker("takes_minutes") is None for item in items}
    items.sort(key=lambda item: (short[item], item.path in wheels))


def pytest_configure() -> None:
    """Pin each worker to a core of its own: two threads on half a core each mostly wait."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
