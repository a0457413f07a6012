r"""Finds tool calls in model output while it streams. Knows no protocol and no tokens.

Two forms, whichever the model's template taught it:

    <tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>
    <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>

Text that only looks like a call, or calls an unknown tool, stays text. Nothing is decided before
the text decides it, so how the text was cut into pieces never matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from apr_serve.tools.call_pieces import (
    ArgumentWriter,
    Brackets,
    CallArguments,
    CallEnd,
    CallStart,
    Piece,
    Text,
)
from apr_serve.tools.coercion import ArgumentTypes, as_json, strict_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
Form = Literal["tags", "json"]


class ToolLike(Protocol):
    """A tool, as far as its calls can be read."""

    @property
    def name(self) -> str:
        """The tool's name."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments."""


def form_of(template: str) -> Form | None:
    """Return the form of calls that a chat template teaches; None if it knows no tools."""
    if FUNCTION in template:
        return "tags"
    return "json" if OPEN in template and "arguments" in template else None


class _More(Exception):
    """The text so far does not decide it."""


@dataclass(frozen=True, slots=True)
class _Match:
    end: int
    choices: tuple[str, ...]


_Head = tuple[str, int]
SPACE: tuple[str, ...] = ()  # a step: any amount of white space
AT_END = ""  # an option: nothing may follow
BORDER = (PARAMETER, END_FUNCTION, CLOSE, AT_END)  # what may follow a parameter
ENDS = (END_PARAMETER, END_FUNCTION, CLOSE)
VALUE_ENDS = ((END_PARAMETER,), SPACE, BORDER)
FUNCTION_ENDS = ((END_FUNCTION,), SPACE, (CLOSE, AT_END))  # a parameter was left open before it
CALL_ENDS = ((CLOSE,), SPACE, (OPEN, AT_END))  # and the function too
MAX_KEY = 256  # characters; a longer one is not a name
KEY = re.compile(re.escape(PARAMETER) + rf"([^<>\n]{{0,{MAX_KEY}}})>")
NO_KEY = re.compile(r"[<>\n]")
BLANK = re.compile(r"\s*")


def _match(text: str, at: int, steps: Sequence[tuple[str, ...]], final: bool) -> _Match | None:
    """Match each step's options from `at` on. Raises _More if later text may decide."""
    choices = []
    for options in steps:
        if options is SPACE:
            at = _after_space(text, at)
            continue
        chosen = next((o for o in options if o and text.startswith(o, at)), None)
        if chosen is None:
            if not final and _may_become(text, at, options):
                raise _More
            if not (final and at == len(text) and AT_END in options):
                return None
        choices.append(chosen or AT_END)
        at += len(choices[-1])
    return _Match(at, tuple(choices))


def _after_space(text: str, at: int) -> int:
    blank = BLANK.match(text, at)
    return blank.end() if blank else at


def _may_become(text: str, at: int, options: Sequence[str]) -> bool:
    """Return True if the text from `at` to its end is the beginning of an option."""
    longest = max(map(len, options))
    return len(text) - at < longest and any(o.startswith(text[at:]) for o in options)


class CallScanner:
    """Turns streamed text into pieces: text, and calls of `tools`."""

    def __init__(self, tools: Sequence[ToolLike]) -> None:
        self._types = {tool.name: ArgumentTypes(tool.parameters) for tool in tools}
        functions = tuple(f"{FUNCTION}{name}>" for name in self._types)
        self._bare = (functions, SPACE, BORDER)
        self._tagged = ((OPEN,), SPACE, *self._bare)
        self._buffer, self._begin = "", 0  # text not yet decided; its position in all text
        self._line_start = True  # whether the buffer begins a line
        self._seen = 0  # characters of the buffer that were scanned
        self._state: Callable[[bool], bool] = self._text
        self._out: list[Piece] = []
        self._call: ArgumentWriter | None = None
        self._cut = False

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that are certain now."""
        self._buffer += text
        return self._run(final=False)

    def finish(self, cut: bool = False) -> list[Piece]:
        """Return the remaining pieces. A call that is still open is closed, `closed` false.

        `cut`: the model did not end here. Then the arguments of an open call stay incomplete, so
        that half a value is not taken for a whole one, and an incomplete JSON call is text.
        """
        self._cut = cut
        return self._run(final=True)

    def _run(self, final: bool) -> list[Piece]:
        while self._state(final):
            pass
        out = self._out.copy()
        self._out.clear()  # an open call writes to it
        return out

    def _consume(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._begin += count
        self._seen = max(0, self._seen - count)
        self._line_start = taken.endswith("\n") if taken else self._line_start
        return taken

    def _say(self, count: int) -> None:
        """Output the first `count` characters of the buffer as text."""
        if count:
            begin = self._begin
            self._out.append(Text(self._consume(count), begin, begin + count))

    def _starts_line(self, at: int) -> bool:
        return self._buffer[at - 1] == "\n" if at else self._line_start

    # Outside of calls

    def _text(self, final: bool) -> bool:
        """Read text up to where a call may begin; return True if a call began."""
        while (at := self._buffer.find("<", self._seen)) >= 0:
            try:
                if begun := self._begun(at, final):
                    self._say(at)
                    begun()
                    return True
            except _More:
                self._say(at)
                return False
            self._seen = at + 1
        self._say(len(self._buffer))
        return False

    def _begun(self, at: int, final: bool) -> Callable[[], None] | None:
        """Return the function that enters the call at `at`; None if no call begins there."""
        if OPEN.startswith(self._buffer[at : at + len(OPEN)]):
            if _match(self._buffer, at, ((OPEN,), SPACE, ("{",)), final):
                return self._enter_json
            head = self._head(at, self._tagged, final)
        else:
            head = self._head(at, self._bare, final) if self._starts_line(at) else None
        return (lambda: self._enter(*head)) if head else None

    def _head(self, at: int, steps: Sequence[tuple[str, ...]], final: bool) -> _Head | None:
        """Return the name of the called function, and the length before its arguments."""
        try:
            if not _match(self._buffer, at, steps, final=False):
                return None
        except _More:
            if not final:
                raise
        function = _match(self._buffer, at, steps[:-2], final)  # what follows it may be cut off
        return (function.choices[-1][len(FUNCTION) : -1], function.end - at) if function else None

    # Calls in tags

    def _enter(self, name: str, size: int) -> None:
        self._call = ArgumentWriter(self._types[name], self._out)
        self._out.append(CallStart(name, self._begin))
        self._consume(size)
        self._state = self._parameters

    def _parameters(self, final: bool) -> bool:
        """Read what stands between parameters."""
        blank = _after_space(self._buffer, 0)
        try:
            if key := KEY.match(self._buffer, blank):
                self._consume(key.end())
                self._open_call.key(key[1])
                self._state = self._value_start
                return True
            border = _match(self._buffer, blank, ((END_FUNCTION, CLOSE, PARAMETER),), final)
        except _More:
            return False
        tag = border.choices[0] if border else AT_END
        if tag == PARAMETER and not final and self._incomplete_key(blank):
            return False
        if tag not in (END_FUNCTION, CLOSE):
            if final and self._cut_tag(blank):
                self._consume(len(self._buffer))
            return self._leave(closed=False)
        self._consume(blank + len(tag))
        return self._leave(closed=True, tagged=tag == END_FUNCTION)

    def _cut_tag(self, at: int) -> bool:
        """Return True if only the beginning of a tag is left."""
        if self._buffer.startswith(PARAMETER, at):
            return self._incomplete_key(at)
        return _may_become(self._buffer, at, (PARAMETER, *ENDS))

    def _incomplete_key(self, at: int) -> bool:
        begin = at + len(PARAMETER)
        short = len(self._buffer) - begin <= MAX_KEY
        return short and not NO_KEY.search(self._buffer, begin)

    @property
    def _open_call(self) -> ArgumentWriter:
        assert self._call is not None
        return self._call

    def _leave(self, closed: bool, tagged: bool = False) -> bool:
        """End the call; `tagged` if the tag around it is still to come."""
        if closed or not self._cut:
            self._open_call.end()
        self._out.append(CallEnd(closed))
        self._call = None
        self._state = self._closing if tagged else self._text
        self._seen = 0
        return True

    def _closing(self, final: bool) -> bool:
        """Read the tag that closes a call, unless the model left it out."""
        try:
            close = _match(self._buffer, 0, (SPACE, (CLOSE,)), final)
        except _More:
            return False
        if close or (final and _may_become(self._buffer, _after_space(self._buffer, 0), (CLOSE,))):
            self._consume(close.end if close else len(self._buffer))
        self._state = self._text
        return True

    def _value_start(self, final: bool) -> bool:
        if not (self._buffer or final):
            return False
        if self._buffer.startswith("\n"):
            self._consume(1)
        self._line_start, self._seen = True, 0
        self._state = self._value
        return True

    def _value(self, final: bool) -> bool:
        """Read a value up to what ends it; return True if it ended."""
        while (at := self._buffer.find("<", self._seen)) >= 0:
            try:
                tag = self._value_end(at, final)
            except _More:
                self._seen = at
                self._flow(at)
                return False
            if tag is not None:
                return self._end_value(at, tag)
            self._seen = at + 1
        self._seen = len(self._buffer)
        if final and self._cut:
            self._flow(len(self._buffer))
            self._consume(len(self._buffer))
            return self._leave(closed=False)
        if final:
            return self._end_value(len(self._buffer), 0)
        self._flow(len(self._buffer))
        return False

    def _flow(self, count: int) -> None:
        """Stream a value's text, but hold back a last line break: it may end the value."""
        if self._open_call.streams:
            count -= self._buffer[:count].endswith("\n")
            if count:
                self._open_call.value(self._consume(count))

    def _value_end(self, at: int, final: bool) -> int | None:
        """Return how many characters at `at` close the value; None if it continues."""
        size = self._closer(at, final)
        return self._cut_short(at) if size is None and final else size

    def _closer(self, at: int, final: bool) -> int | None:
        if _match(self._buffer, at, VALUE_ENDS, final):
            return len(END_PARAMETER)
        if not self._starts_line(at):
            return None
        if key := KEY.match(self._buffer, at):
            return 0 if self._open_call.lacks(key[1]) else None
        for steps in (FUNCTION_ENDS, CALL_ENDS):
            if _match(self._buffer, at, steps, final):
                return 0
        if not final and self._may_be_key(at):
            raise _More
        return None

    def _may_be_key(self, at: int) -> bool:
        if self._buffer.startswith(PARAMETER, at):
            return self._incomplete_key(at)
        return _may_become(self._buffer, at, (PARAMETER,))

    def _cut_short(self, at: int) -> int | None:
        """Return the length of a closing tag cut off at the end of the text; None if it is text."""
        try:
            self._closer(at, final=False)
        except _More:
            rest = len(self._buffer) - at
            return rest if rest > 1 or self._cut else None
        return None

    def _end_value(self, at: int, tag: int) -> bool:
        text = self._consume(at)
        self._consume(tag)
        self._open_call.value(text.removesuffix("\n"))
        self._open_call.end_value()
        self._state = self._parameters
        return True

    # Calls as JSON

    def _enter_json(self) -> None:
        self._seen, self._object = len(OPEN), Brackets()
        self._state = self._json

    def _json(self, final: bool) -> bool:
        """Read a call as JSON once it is complete: only then is it known to be one."""
        end = self._object.scan(self._buffer, self._seen)
        self._seen = len(self._buffer) if end is None else end
        if end is None and not final:
            return False
        text = self._buffer[len(OPEN) : self._seen]
        cut = end is None and self._cut
        call = None if cut else self._parsed(text + self._object.missing())
        self._state, self._seen = self._text, 1  # not again as a call
        if call is None:
            return True
        self._out += [
            CallStart(call[0], self._begin),
            CallArguments(call[1]),
            CallEnd(end is not None),
        ]
        self._consume(len(OPEN) + len(text))
        self._state = self._closing
        return True

    def _parsed(self, text: str) -> tuple[str, str] | None:
        """Return (name, arguments as JSON) of a call of a known tool."""
        try:
            call = strict_json(text)
            name, arguments = call["name"], call.get("arguments", call.get("parameters"))
            if isinstance(arguments, str):
                arguments = strict_json(arguments)
            if name in self._types and isinstance(arguments or {}, dict):
                return name, as_json(arguments or {})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        return None
