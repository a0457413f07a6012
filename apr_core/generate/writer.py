"""Turns tokens into deltas: whole characters, reasoning apart, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apr_core.generate.requests import Channel, Delta, GenerationRequest, TokenLogprob
from apr_core.text.chat import starts_thinking
from apr_core.text.detokenize import Detokenizer, StopScanner
from apr_core.text.tokenizer import Tokenizer


class Writer:
    """Takes the tokens of text `index` one by one, with their log probabilities if wanted.

    Blank lines after a thinking tag belong to no channel. A closing tag outside of reasoning is
    text. `plain`: all is text as it was written, tags too.
    """

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest, index: int) -> None:
        self._tokenizer, self._index = tokenizer, index
        self._detokenizer = Detokenizer(tokenizer, request.skip_special_tokens)
        self._skip, self._unstoppable = request.skip_special_tokens, request.min_tokens
        self._scanner = StopScanner(request.stop)
        channels: tuple[Channel, ...] = ("reasoning", "text")
        self._tags = {} if request.plain else dict(zip(tokenizer.reasoning, channels, strict=False))
        thinks = not request.plain and starts_thinking(tokenizer, request.prompt_ids)
        self.channel: Channel = "reasoning" if thinks else "text"
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._border = False  # right after a thinking tag: the template's line breaks follow

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._scanner.stopped

    @property
    def mid_character(self) -> bool:
        """True if the tokens so far end within a character."""
        return self._detokenizer.mid_character

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Iterator[Delta]:
        """Yield what can be shown after one more token."""
        self._add(token, logprob)
        added = self._tokenizer.added_token(token)
        switch = self._tags.get(added.content) if added else None
        if switch and switch != self.channel:
            shown = self._scanner.push(self._detokenizer.flush()) + self._scanner.flush()
            yield self._delta(shown)
            self.channel, self._border = switch, True
            return
        written = self._detokenizer.push(token)
        text = self._inner(written)
        if written and self._border:  # only line breaks: their ids belong to the tag
            yield self._delta("", "reasoning")
        if shown := text if self._unstoppable >= 0 else self._scanner.push(text):
            yield self._delta(shown)

    def finish(self, token: int | None = None, logprob: TokenLogprob | None = None) -> Delta:
        """Return the last delta with all held text; `token` ended the text without adding to it."""
        if token is not None:
            self._add(token, logprob)
        shown = ""
        if self.stopped is None:
            rest = self._inner(self._detokenizer.flush())
            shown = self._scanner.push(rest) + self._scanner.flush()
        return self._delta(shown)

    def _add(self, token: int, logprob: TokenLogprob | None) -> None:
        self._ids.append(token)
        self._unstoppable -= 1  # tokens left in whose text no stop string is looked for
        if logprob is not None:
            self._logprobs.append(logprob)

    def _inner(self, text: str) -> str:
        """Return the text without the line breaks that follow a thinking tag."""
        if not self._border:
            return text
        text = text.lstrip("\n")
        self._border = not text
        return text

    def _delta(self, text: str, channel: Channel | None = None) -> Delta:
        ids, logprobs = tuple(self._ids), tuple(self._logprobs)
        self._ids, self._logprobs = [], []
        if self.stopped is not None:
            logprobs = self._of_shown(text, logprobs)
        return Delta(self._index, text, channel or self.channel, ids, logprobs)

    def _of_shown(self, text: str, logprobs: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """Return the logprobs of tokens in the text, without those of a stop string after it."""
        shown, size = [], 0
        for each in logprobs:
            if size >= len(text):
                break
            shown.append(each)
            size += len(self._tokenizer.decode([each.id], self._skip))
        return tuple(shown)
