"""Text of a file made safe for a terminal: a name must not move the cursor or change colours."""

from __future__ import annotations


def printable(text: object) -> str:
    """The text with control and other unprintable characters written as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def shortened(text: object, width: int = 60) -> str:
    """Printable, and cut with an ellipsis if it is longer than `width`."""
    plain = printable(text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"
