"""Turns ids into text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from apr_core.text.tokenizer import Tokenizer

MAX_PENDING = 8  # tokens; a character has at most four bytes
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns ids into text piece by piece; the pieces joined are the text of all ids.

    With `skip_special`, control tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._run: _ByteRun | _TokenRun
        self._run = _ByteRun(tokenizer) if tokenizer.byte_level else _TokenRun(tokenizer)

    def push(self, id_: int) -> str:
        """Return the text that is certain after this id; empty while a character is incomplete."""
        added = self._tokenizer.added_token(id_)
        if added is None:
            return self._run.push(id_)
        return self._run.flush() + ("" if self._skip and added.special else added.content)

    @property
    def mid_character(self) -> bool:
        """True if the ids so far end within a character."""
        return self._run.pending

    def flush(self) -> str:
        """Return the remaining text, incomplete characters as U+FFFD."""
        return self._run.flush()


class _ByteRun:
    """Byte-level tokens: an incremental UTF-8 decoder joins their bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id_: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(id_))

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _TokenRun:
    """Other tokens: each adds what it changes in the decoded text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # decoded along, as context for the decoder
        self._pending: list[int] = []

    def push(self, id_: int) -> str:
        self._pending.append(id_)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._pending) < MAX_PENDING:
            return ""
        return self._accept(text)

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]

    def _accept(self, text: str) -> str:
        self._context, self._pending = self._pending[-1:], []
        if self._tokenizer.decode(self._context).startswith(REPLACEMENT):
            self._context = []  # the tail of a character gives no context
        return text

    def flush(self) -> str:
        text = self._accept(self._new_text()) if self._pending else ""
        self._context = []
        return text


class StopScanner:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped: str | None = None  # the stop string that was found

    def push(self, text: str) -> str:
        """Return the text that can be shown now; after a stop string, nothing more."""
        if self.stopped is not None:
            return ""
        self._held += text
        matches = [(self._held.find(s), s) for s in self._stops if s in self._held]
        if matches:
            at, self.stopped = min(matches, key=lambda item: item[0])
            shown, self._held = self._held[:at], ""
            return shown
        certain = len(self._held) - self._possible_start()
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown

    def _possible_start(self) -> int:
        """Return how many characters at the end begin some stop string."""
        longest = max((len(s) - 1 for s in self._stops), default=0)
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stops):
                return n
        return 0

    def flush(self) -> str:
        """Return the text still held, at the end of generation."""
        held, self._held = self._held, ""
        return held
