"""A trial compilation of a grammar in a separate process, which is ended when it takes too long."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

SECONDS = 3  # of processor time
WAIT = 60  # seconds of wall time, where processor time cannot be limited or hardly passes
MEMORY = 2 << 30
TRIAL = f"""
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
except (ImportError, ValueError, OSError):
    pass  # the clock is left
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.buffer.read().decode())
"""


@lru_cache(maxsize=256)
def compiles_in_time(grammar: str) -> bool:
    """Return True if the library finishes with a grammar in time, even if it refuses it."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL],
            input=grammar.encode(), capture_output=True, timeout=WAIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
