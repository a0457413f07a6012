"""Turns tokens into pieces of text: whole characters, reasoning apart, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apr_core.generate.requests import Channel
from apr_core.text.chat import END_THINK, THINK, starts_thinking
from apr_core.text.detokenize import Detokenizer, StopScanner
from apr_core.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown. The last piece has a finish_reason: stop or length."""

    text: str
    channel: Channel
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None


class Writer:
    """Takes an answer's tokens one by one. Blank lines after a thinking tag belong to no channel.

    A closing tag outside of reasoning is text. `plain`: all is text as it was written, tags too.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str],
        plain: bool = False,
    ) -> None:  # fmt: skip
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._scanner = StopScanner(stop)
        self._tags: dict[str, Channel] = {} if plain else {THINK: "reasoning", END_THINK: "text"}
        thinks = not plain and starts_thinking(tokenizer, prompt_ids)
        self.channel: Channel = "reasoning" if thinks else "text"
        self._ids: list[int] = []
        self._border = False  # right after a thinking tag: the template's line breaks follow

    @property
    def stopped(self) -> str | None:
        """The stop string that was found."""
        return self._scanner.stopped

    @property
    def mid_character(self) -> bool:
        """Whether the tokens so far end within a character."""
        return self._detokenizer.mid_character

    def push(self, token: int) -> Iterator[Piece]:
        """What can be shown after one more token."""
        self._ids.append(token)
        added = self._tokenizer.added_token(token)
        switch = self._tags.get(added.content) if added else None
        if switch and switch != self.channel:
            yield from self._emit(self._detokenizer.flush(), flush=True)
            self.channel, self._border = switch, True
            return
        written = self._detokenizer.push(token)
        text = self._inner(written)
        if written and self._border:  # nothing but the line breaks: their ids belong to the tag
            yield Piece("", "reasoning", self._take())
        yield from self._emit(text)

    def _inner(self, text: str) -> str:
        """The text without the line breaks that follow a thinking tag."""
        if not self._border:
            return text
        text = text.lstrip("\n")
        self._border = not text
        return text

    def _emit(self, text: str, flush: bool = False) -> Iterator[Piece]:
        shown = self._scanner.push(text)
        if flush:
            shown += self._scanner.flush()
        if shown or flush:
            yield Piece(shown, self.channel, self._take())

    def _take(self) -> tuple[int, ...]:
        ids, self._ids = tuple(self._ids), []
        return ids

    def finish(self, reason: str, token: int | None = None) -> Piece:
        """The last piece, with all that was held back; `token` ended the answer without text."""
        if token is not None:
            self._ids.append(token)
        shown = ""
        if self.stopped is None:
            rest = self._inner(self._detokenizer.flush())
            shown = self._scanner.push(rest) + self._scanner.flush()
        return Piece(shown, self.channel, self._take(), reason if self.stopped is None else "stop")
