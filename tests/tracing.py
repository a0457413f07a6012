"""Which functions of the project a call passes through, and the stack at one of them."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).parents[1]


class Trace:
    """`calls` are the functions that were entered, in order; `stacks` those above some of them.

    A function is `module:qualname`. Stacks are taken at the functions `at`, the caller first, and
    are part of the calls: what waited, such as the body of a thread, goes on there.
    """

    def __init__(self, at: set[str]) -> None:
        self.calls: list[str] = []
        self.stacks: dict[str, list[list[str]]] = {name: [] for name in at}
        self._names: dict[CodeType, str] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call: what `sys.setprofile` is given."""
        if event != "call" or not (name := self._name(frame)):
            return
        if name in self.stacks:
            stack = self._stack(frame)
            self.stacks[name].append(stack)
            self.calls += stack
        else:
            self.calls.append(name)

    def _stack(self, frame: FrameType | None) -> list[str]:
        names = []
        while frame is not None:
            names.append(self._name(frame))
            frame = frame.f_back
        return [name for name in reversed(names) if name]

    def _name(self, frame: FrameType) -> str:
        """The function's name; empty if it is none of the project's."""
        code = frame.f_code
        if code not in self._names:
            module = str(frame.f_globals.get("__name__", ""))
            ours = module.startswith("apr_") and not code.co_qualname.startswith("<")
            self._names[code] = f"{module}:{code.co_qualname}" if ours else ""
        return self._names[code]


@contextmanager
def traced(at: set[str]):
    """Trace all threads, also those that begin within."""
    trace = Trace(at)
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
