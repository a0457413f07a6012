"""Turns the engine's deltas of one answer into chat events: text, reasoning, tool calls.

Streamed answers and whole ones take the same path: however the text was cut, the joined events
are the same. White space around a call is dropped, because templates add it to the history.

A call written while thinking counts if the thinking ends with it, or if nothing follows the
thinking. It was only a draft, and stays reasoning, if the answer then begins with a call, or if
the model continued thinking after it and then answered.

A call that the model forgot to close counts too. If a limit or a stop string cut a call off, its
arguments are incomplete JSON: half a value would look like an intended one.
"""

from __future__ import annotations

import secrets
import string
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from apr_core.runtime import Channel, Delta, TokenLogprob
from apr_serve.chat.events import ChatEvent, ToolCallArguments, ToolCallStart
from apr_serve.tools.call_pieces import CallArguments, CallEnd, CallStart, Piece, Text
from apr_serve.tools.tool_calls import CallScanner, ToolLike

ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 24


def call_id() -> str:
    """Return a new unique id for a call."""
    return "call_" + "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))


class AnswerParser:
    """The events of answer `index`. Without `parallel` only the first call counts.

    Without tools nothing is a call: text and reasoning pass as they come.
    """

    def __init__(self, tools: Sequence[ToolLike], index: int, parallel: bool = True) -> None:
        self._tools, self._index, self._parallel = tools, index, parallel
        self._calls = 0  # calls so far
        self._open = False  # the last call was not closed by the model
        self._events: list[ChatEvent] = []
        self._channel: _ChannelText | None = None
        self._draft: _Draft | None = None

    def push(self, delta: Delta) -> list[ChatEvent]:
        """Return the events that are certain after this delta; after the last one, the rest."""
        if not self._tools:
            return [delta] if delta.text or delta.logprobs or delta.finish_reason else []
        if delta.text or delta.logprobs:
            if self._channel is None or self._channel.name != delta.channel:
                self._turn(delta.channel)
            assert self._channel is not None
            self._handle(self._channel.push(delta))
        if delta.finish_reason:
            self._finish(delta)
        return self._taken()

    def _finish(self, delta: Delta) -> None:
        cut = delta.finish_reason != "stop" or delta.ended_by == "stop_string"
        self._turn(None, cut)
        self._resolve(as_calls=True)
        called = self._calls and delta.finish_reason == "stop" and not (cut and self._open)
        reason = "tool_calls" if called else delta.finish_reason
        end = replace(delta, text="", ids=(), logprobs=(), finish_reason=reason)
        self._events.append(end)

    def _taken(self) -> list[ChatEvent]:
        events, self._events = self._events, []
        return events

    def _turn(self, name: Channel | None, cut: bool = False) -> None:
        """Close the open channel and open another."""
        if self._channel is not None:
            self._handle(self._channel.finish(cut))
            if self._draft is None or (name and self._draft.channel is not self._channel):
                self._say(self._channel.name, *self._channel.left())
        if name == "reasoning":
            self._resolve(as_calls=False)  # the thinking goes on after all
        self._channel = _ChannelText(name, self._tools) if name else None

    def _handle(self, pieces: list[Piece]) -> None:
        channel = self._channel
        assert channel is not None
        for piece in pieces:
            if channel.name == "reasoning":
                if self._draft is None and isinstance(piece, CallStart):
                    self._draft = _Draft(channel, piece.begin)
                if self._draft is not None:
                    self._draft.pieces.append(piece)
                    continue
            elif self._draft is not None and _speaks(piece):
                as_calls = isinstance(piece, Text) and self._draft.ends_thought
                self._resolve(as_calls)
                if as_calls:
                    channel.call_follows()  # so that space between them is not part of the text
            self._emit(channel, piece)

    def _emit(self, channel: _ChannelText, piece: Piece) -> None:
        """Append the events of a piece, but hold back space that may come before a call."""
        if isinstance(piece, Text):
            self._say(channel.name, *channel.shown(piece))
        elif isinstance(piece, CallStart):
            channel.call_follows()
            self._calls += 1
            if self._counts:
                self._events.append(
                    ToolCallStart(self._index, self._calls - 1, call_id(), piece.name)
                )
        elif isinstance(piece, CallArguments) and self._counts:
            fragment = ToolCallArguments(self._index, self._calls - 1, piece.fragment)
            self._events.append(fragment)
        elif isinstance(piece, CallEnd):
            self._open = not piece.closed

    @property
    def _counts(self) -> bool:
        return self._parallel or self._calls == 1

    def _say(self, name: Channel, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        if text or logprobs:
            self._events.append(Delta(self._index, text, name, logprobs=logprobs))

    def _resolve(self, as_calls: bool) -> None:
        """Turn the calls drafted while thinking into calls, or back into text."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        for piece in draft.pieces if as_calls else [draft.channel.text_from(draft.begin)]:
            self._emit(draft.channel, piece)
        self._say(draft.channel.name, *draft.channel.left())


def _speaks(piece: Piece) -> bool:
    return isinstance(piece, CallStart) or (isinstance(piece, Text) and not piece.text.isspace())


class _ChannelText:
    """The text of one channel: finds calls, holds space back, keeps log probabilities beside it."""

    def __init__(self, name: Channel, tools: Sequence[ToolLike]) -> None:
        self.name = name
        self._scanner = CallScanner(tools)
        self._came: list[str] = []
        self._size = 0
        self._logprobs: deque[tuple[int, tuple[TokenLogprob, ...]]] = deque()
        self._space = ""  # held back: a call may follow
        self._gap = ""  # space before a call; shown only if text follows the call
        self._spoke = self._after_call = False

    def push(self, delta: Delta) -> list[Piece]:
        """Return the pieces that are certain now."""
        self._size += len(delta.text)
        if delta.logprobs:
            self._logprobs.append((self._size, delta.logprobs))
        if self.name == "reasoning":
            self._came.append(delta.text)
        return self._scanner.push(delta.text)

    def finish(self, cut: bool) -> list[Piece]:
        """Return the remaining pieces."""
        return self._scanner.finish(cut)

    def text_from(self, begin: int) -> Text:
        """Return all thinking text from character `begin` on, with calls as they were written."""
        return Text("".join(self._came)[begin:], begin, self._size)

    def shown(self, piece: Text) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Return the text that can be shown now, with trailing white space held back."""
        text = piece.text
        if self._after_call:
            self._logprobs_until(piece.begin)  # those of the call
            text = text.lstrip()
            if not text:
                return "", ()
            self._after_call, self._space = False, self._gap if self._spoke else ""
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if not body:
            return "", ()
        self._spoke = True
        return body, self._logprobs_until(piece.end)

    def call_follows(self) -> None:
        """Note that a call stands here: the space before and after it is not part of the text."""
        if not self._after_call:
            self._after_call, self._gap, self._space = True, self._space or "\n", ""

    def left(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Return the text that was held back, now that nothing follows it."""
        logprobs = self._logprobs_until(self._size)
        return ("", ()) if self._after_call else (self._space, logprobs)

    def _logprobs_until(self, end: int) -> tuple[TokenLogprob, ...]:
        logprobs: list[TokenLogprob] = []
        while self._logprobs and self._logprobs[0][0] <= end:
            logprobs += self._logprobs.popleft()[1]
        return tuple(logprobs)


class _Draft:
    """Calls in thinking, and the text after them, until it is known whether they count."""

    def __init__(self, channel: _ChannelText, begin: int) -> None:
        self.channel, self.begin = channel, begin
        self.pieces: list[Piece] = []

    @property
    def ends_thought(self) -> bool:
        """Whether the model closed the call and thought nothing after it."""
        speech = [p for p in self.pieces if _speaks(p) or isinstance(p, CallEnd)]
        return speech[-1] == CallEnd(closed=True)
