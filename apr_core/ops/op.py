"""What an op is: a name with a fixed meaning and one body that defines it.

A reference body is written against an array namespace `xp` (NumPy, or torch through a shim) and is
the truth every kernel is compared with. A composite is written in other bound ops; its default body
costs nothing to support, and a backend may replace it by one fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Op:
    """An operation. `body` takes `xp` first, or the bound ops `o` if it is a composite."""

    name: str
    body: Callable[..., Any]
    is_composite: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body itself, as tests and other references do."""
        return self.body(*args, **kwargs)


def op(body: Callable[..., Any]) -> Op:
    """Declare an op by its reference body `body(xp, ...)`."""
    return Op(body.__name__, body)


def composite(body: Callable[..., Any]) -> Op:
    """Declare a composite by its default body `body(o, ...)` in terms of other ops."""
    return Op(body.__name__, body, is_composite=True)
