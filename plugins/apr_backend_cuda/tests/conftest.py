"""Triton's interpreter without two pieces of work whose results it throws away: half its time."""

from __future__ import annotations

from dataclasses import replace

from triton.runtime import interpreter

_call = interpreter.InterpretedFunction.__call__
_called = set()


def _call_device_function(self, *args, **kwargs):
    """Replace the operations of the language at a function's first call, not at every one.

    What a function that a kernel calls has replaced, the interpreter never puts back.
    """
    if self.fn in _called:
        return self.rewrite()(*args, **kwargs)
    _called.add(self.fn)
    return _call(self, *args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call_device_function
# every sum is made again in int64, for an assertion that is made with `debug` alone
interpreter.interpreter_builder.options = replace(
    interpreter.interpreter_builder.options, sanitize_overflow=False
)
