"""Keeps stdout for what a command prints: code of others may print, and so may their drivers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def diverted() -> Iterator[None]:
    """What is printed inside goes to stderr, also by code that does not ask sys.stdout.

    A service may have closed stdout, and then there is nothing to keep.
    """
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):  # full or closed: whoever prints is told
            sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError):  # one that is closed cannot be spoilt
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        yield
