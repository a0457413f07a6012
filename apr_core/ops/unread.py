"""Arrays that tell when somebody looks at their values: what a recorded step may not hold.

The one definition of what a mixer may do between ops. A backend that records on NumPy arrays gives
results of this kind, whose values do not exist yet; a load tries steps on them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _read(name: str) -> Callable[..., Any]:
    """A method of arrays that makes values Python's."""

    def method(self: Unread, *args: Any) -> Any:
        self.touched(reads=True)
        return getattr(plain(self), name)(*args)

    return method


class Unread(np.ndarray[Any, Any]):
    """A result nobody has looked at. Shapes, slices and other views are free."""

    def touched(self, reads: bool = False) -> None:
        """Called before values are used outside an op; `reads`: as Python's own numbers."""
        raise NotImplementedError

    def derived(self, result: Any) -> Any:
        """What becomes of a result that was computed from values."""
        return result

    def __array_finalize__(self, source: Any) -> None:
        """Copies need values."""
        if isinstance(source, Unread) and self.base is None:
            source.touched()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic needs values."""
        self.touched()
        if "out" in options:
            options["out"] = tuple(map(plain, options["out"]))
        return self.derived(getattr(ufunc, method)(*map(plain, inputs), **options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """So does what NumPy offers beside."""
        self.touched()
        return super().__array_function__(function, types, args, options)

    def __getitem__(self, index: Any) -> Any:
        """Slices say where something is; other indices copy."""
        part = super().__getitem__(index)
        if isinstance(part, Unread) and np.may_share_memory(plain(self), plain(part)):
            return part
        self.touched()
        return self.derived(plain(self)[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing may be written between ops."""
        self.touched()
        super().__setitem__(index, value)

    item, tolist, tobytes = _read("item"), _read("tolist"), _read("tobytes")
    __bool__, __int__, __float__ = _read("__bool__"), _read("__int__"), _read("__float__")


def plain(x: Any) -> Any:
    """The array as an ordinary one; anything else as it is."""
    return x.view(np.ndarray) if isinstance(x, Unread) else x


def toucher(*beside: str) -> tuple[str, str, str]:
    """Who looks at values: (class or function, module, "file:line").

    The innermost caller that is not in NumPy, here or in the modules `beside`.
    """
    frame = sys._getframe(1)
    while (module := str(frame.f_globals.get("__name__"))) in (__name__, *beside) or (
        module.partition(".")[0] == "numpy"
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    code = frame.f_code
    names = [n for n in code.co_qualname.split(".") if not n.startswith(("<", "__"))]
    return (names or [code.co_name])[-1], module, f"{Path(code.co_filename).name}:{frame.f_lineno}"
