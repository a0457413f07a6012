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
    """Begin with what takes minutes: the other process fills the time beside it."""
    items.sort(key=lambda item: item.get_closest_marker("takes_minutes") is None)
