"""Turns tokens into deltas: whole characters, reasoning apart, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr_core.generate.deltas import Channel, Delta
from apr_core.text.chat import starts_thinking
from apr_core.text.detokenize import Detokenizer, StopScanner
from apr_core.text.tokenizer import Tokenizer


class Writer:
    """Takes the tokens of answer `index` to a prompt, one by one.

    Blank lines after a thinking tag belong to no channel. A closing tag outside of reasoning is
    text. `skip_special` leaves control tokens out of the text, and before `min_tokens` no stop
    string is looked for. `plain`: all is text as it was written, tags too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        index: int = 0,
        *,
        skip_special: bool = True,
        min_tokens: int = 0,
        plain: bool = False,
    ) -> None:
        self.tokenizer, self.prompt_ids, self.index = tokenizer, prompt_ids, index
        self._detokenizer = Detokenizer(tokenizer, skip_special)
        self.skip_special, self._unstoppable = skip_special, min_tokens
        self._scanner = StopScanner(stop)
        channels: tuple[Channel, ...] = ("reasoning", "text")
        self._tags = {} if plain else dict(zip(tokenizer.reasoning, channels, strict=False))
        thinks = not plain and starts_thinking(tokenizer, prompt_ids)
        self.channel: Channel = "reasoning" if thinks else "text"
        self._ids: list[int] = []
        self._border = False  # right after a thinking tag: the template's line breaks follow

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._scanner.stopped

    @property
    def mid_character(self) -> bool:
        """True if the tokens so far end within a character."""
        return self._detokenizer.mid_character

    def push(self, token: int) -> Iterator[Delta]:
        """Yield what can be shown after one more token."""
        self._ids.append(token)
        self._unstoppable -= 1  # tokens left in whose text no stop string is looked for
        added = self.tokenizer.added_token(token)
        switch = self._tags.get(added.content) if added else None
        if switch and switch != self.channel:
            shown = self._scanner.push(self._detokenizer.flush()) + self._scanner.flush()
            yield self.delta(shown)
            self.channel, self._border = switch, True
            return
        written = self._detokenizer.push(token)
        text = self._inner(written)
        if written and self._border:  # only line breaks: their ids belong to the tag
            yield self.delta("", "reasoning")
        if shown := text if self._unstoppable >= 0 else self._scanner.push(text):
            yield self.delta(shown)

    def finish(self, token: int | None = None) -> Delta:
        """Return the last delta with all held text; `token` ended the text without adding to it."""
        if token is not None:
            self._ids.append(token)
        shown = ""
        if self.stopped is None:
            rest = self._inner(self._detokenizer.flush())
            shown = self._scanner.push(rest) + self._scanner.flush()
        return self.delta(shown)

    def _inner(self, text: str) -> str:
        """Return the text without the line breaks that follow a thinking tag."""
        if not self._border:
            return text
        text = text.lstrip("\n")
        self._border = not text
        return text

    def delta(self, text: str, channel: Channel | None = None) -> Delta:
        """Return a delta with a text, and the ids since the last one."""
        ids, self._ids = tuple(self._ids), []
        return Delta(self.index, text, channel or self.channel, ids)
