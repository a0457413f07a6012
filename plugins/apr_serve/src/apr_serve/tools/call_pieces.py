"""Pieces of tool calls, and the conversion of their arguments to JSON as they stream."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_serve.tools.coercion import ArgumentTypes, as_json, coerced, quoted


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside of calls: characters `begin` to `end` of all that was pushed."""

    text: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins; its first character is number `begin`."""

    name: str
    begin: int


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of JSON; all fragments of a call are one object, or its beginning if cut off."""

    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete; `closed` tells whether the model closed it itself."""

    closed: bool


Piece = Text | CallStart | CallArguments | CallEnd


class ArgumentWriter:
    """Writes the arguments of one call as JSON, string values as they come."""

    def __init__(self, types: ArgumentTypes, out: list[Piece]) -> None:
        self._types, self._out = types, out
        self._given: set[str] = set()
        self._key, self._held, self._ignored = "", "", False
        self.streams = False  # the open value is written as it comes

    def lacks(self, key: str) -> bool:
        """Return True if the tool has such an argument, and it was not given yet."""
        return self._types.declares(key) and key not in self._given

    def key(self, key: str) -> None:
        """Begin an argument. One that was given already is read and dropped: the first counts."""
        self._ignored = key in self._given
        self.streams = self._ignored or self._types.of(key) == {"string"}
        self._key, self._held = key, ""
        if not self._ignored:
            self._write(f"{', ' if self._given else '{'}{as_json(key)}: ")
            self._given.add(key)
            if self.streams:
                self._write('"')

    def value(self, text: str) -> None:
        """Add text of the value."""
        if self.streams:
            self._write("" if self._ignored else quoted(text))
        else:
            self._held += text

    def end_value(self) -> None:
        """End the value."""
        if self._ignored:
            return
        self._write('"' if self.streams else coerced(self._held, self._types.of(self._key)))

    def end(self) -> None:
        """End the arguments."""
        self._write("}" if self._given else "{}")

    def _write(self, fragment: str) -> None:
        if fragment:
            self._out.append(CallArguments(fragment))


class Brackets:
    """Finds where a JSON object ends, a piece at a time, also where it was not closed."""

    MARKS = re.compile(r'["\\{}\[\]<]')

    def __init__(self) -> None:
        self._open: list[str] = []
        self._quoted = False
        self._skip = -1  # the character after a backslash, even if it has not come yet

    def scan(self, text: str, at: int) -> int | None:
        """Scan the text from `at`; return where the object ends, None if it does not yet."""
        for mark in self.MARKS.finditer(text, at):
            sign = mark.group()
            if mark.start() == self._skip:
                continue
            if sign == "\\":
                self._skip = mark.end() if self._quoted else -1
            elif sign == '"':
                self._quoted = not self._quoted
            elif not self._quoted and sign == "<":
                return mark.start()  # no JSON continues like this: a tag closes the call
            elif not self._quoted and self._bracket(sign):
                return mark.end()
        return None

    def _bracket(self, sign: str) -> bool:
        if sign in "{[":
            self._open.append("}" if sign == "{" else "]")
            return False
        if self._open:
            self._open.pop()
        return not self._open

    def missing(self) -> str:
        """Return what closes the open brackets; "" inside a string, where nothing helps."""
        return "" if self._quoted else "".join(reversed(self._open))
