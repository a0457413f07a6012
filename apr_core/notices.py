"""What takes long and was not asked for: a plugin says so here, and a program may show it.

Nothing is printed by default. `apr` shows notices on stderr; a server may log them.
"""

from __future__ import annotations

from collections.abc import Callable

Notice = Callable[[str, int, int], None]  # what is being done, how many are done, of about how many
_shown_by: Notice | None = None


def show_with(function: Notice | None) -> None:
    """Hand notices to a function from now on; None silences them."""
    global _shown_by
    _shown_by = function


def working(text: str, done: int, total: int) -> None:
    """Say what is going on. `total` may be an estimate; done == total means that it is over."""
    if _shown_by is not None:
        _shown_by(text, done, total)
