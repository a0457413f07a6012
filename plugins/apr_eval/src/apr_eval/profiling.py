"""Times ops by wrapping the bound ops. An op's time excludes the ops inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apr_core.plugin import BackendPlugin, Weight

if TYPE_CHECKING:
    from apr_core.runtime import Model


@dataclass(slots=True)
class OpTime:
    """Time of one op with one combination of weight formats."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Profile:
    """Times by label, and the whole profiled time; the rest is between ops."""

    kernels: dict[str, str]  # BindReport.as_dict() of the model
    _wait: Callable[[Any], None]  # for what an op gave
    total_s: float = 0.0
    ops: dict[str, OpTime] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Return rows, slowest first: op, kernel, calls, seconds, share; last, unaccounted time."""
        named = sorted(self.ops.items(), key=lambda item: -item[1].seconds)
        rows = [
            {
                "op": label,
                "kernel": self._kernel(label),
                "calls": t.calls,
                "seconds": t.seconds,
                "share": self._share(t.seconds),
            }
            for label, t in named
        ]
        rest = self.total_s - sum(t.seconds for t in self.ops.values())
        between = {"op": "(between)", "kernel": "", "calls": 0}
        return [*rows, between | {"seconds": rest, "share": self._share(rest)}]

    def _kernel(self, label: str) -> str:
        """Return what the op is bound to, for its weight's format or for any."""
        return self.kernels.get(label) or self.kernels.get(label.partition("[")[0], "")

    def _share(self, seconds: float) -> float:
        return seconds / self.total_s if self.total_s else 0.0

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed under its name and its weights' formats."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            started = time.perf_counter()
            try:
                result = function(*args, **kwargs)
                self._wait(result)
                return result
            finally:
                took = time.perf_counter() - started
                entry = self.ops.setdefault(name + _formats(args), OpTime())
                entry.calls += 1
                entry.seconds += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return timed


def _formats(args: tuple[Any, ...]) -> str:
    weights = [a for a in args if isinstance(a, Weight)]
    for a in args:
        if isinstance(a, tuple):
            weights += [w for w in a if isinstance(w, Weight)]
    return "[" + "+".join(w.format for w in weights) + "]" if weights else ""


def _waiting(backend: BackendPlugin) -> Callable[[Any], None]:
    """Return a function that waits until an op's result exists; devices may lag behind."""

    def wait(result: Any) -> None:
        last = result[-1] if isinstance(result, tuple) else result
        backend.download(last[(slice(1),) * len(last.shape)])

    return wait if backend.capacity() is not None else lambda result: None


@contextmanager
def profiled(model: Model) -> Iterator[Profile]:
    """Wrap the model's ops inside the block.

    Weights keep their kernels unwrapped: a backend may look at these to decide whether to fuse, so
    wrapping them would time other code. Captured steps are switched off, since they call no ops;
    the cost between ops is therefore larger than without a profile. On a device with its own
    memory each op is waited for, or only launches would be timed.
    """
    profile, ops = Profile(model.report.as_dict(), _waiting(model.backend)), model.ops
    before, captures = dict(vars(ops)), model.captures
    model.captures = False
    for name, function in before.items():
        setattr(ops, name, profile.wrap(name, function))
    started = time.perf_counter()
    try:
        yield profile
    finally:
        profile.total_s = time.perf_counter() - started
        vars(ops).update(before)
        model.captures = captures
