"""For all tests: what they start can be interrupted, however the tests themselves were started."""

from __future__ import annotations

import signal

# A shell has its background jobs ignore interrupts, and so do all programs that these start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
