"""From a prompt to text, one sequence at a time. Knows slots and logits, no array library."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from apr_core.engine.sampling import Sampler, SamplingParams
from apr_core.errors import UsageError
from apr_core.text.chat import END_THINK, THINK, starts_thinking
from apr_core.text.detokenize import Detokenizer, StopScanner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.model.model import Model

Channel = Literal["reasoning", "text"]
GRID = 64  # tokens; recurrent mixers are cut at its multiples
CHUNK = 512  # prompt tokens a forward


@dataclass(slots=True)
class Timings:
    """Seconds of each phase, and the tokens they are for."""

    prompt_tokens: int = 0
    tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second after the first, which the prefill made."""
        return (self.tokens - 1) / self.decode_s if self.decode_s and self.tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown. The last piece has a finish_reason: stop or length."""

    text: str
    channel: Channel
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None


@dataclass(slots=True)
class Generation:
    """All of an answer."""

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    timings: Timings = field(default_factory=Timings)

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        if piece.channel == "text":
            self.text += piece.text
        else:
            self.reasoning += piece.text
        self.ids += piece.ids
        self.finish_reason = piece.finish_reason or self.finish_reason


def stream(
    model: Model,
    prompt_ids: Sequence[int],
    *,
    params: SamplingParams | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
    timings: Timings | None = None,
) -> Iterator[Piece]:
    """Generate until a stop id, a stop string, `max_tokens` or the end of the context.

    `params` None means the model's defaults. The slot is freed when the iterator ends or is
    closed. `chunk` prompt tokens go into one forward, a multiple of 64. Blank lines between
    reasoning and answer belong to neither. Raises UsageError for an empty or too long prompt.
    """
    check_prompt(model, prompt_ids, max_tokens)
    if chunk < 1 or chunk % GRID:
        raise UsageError(f"chunk must be a multiple of {GRID}, found {chunk}")
    params = params or SamplingParams.from_defaults(model.config.sampling)
    timings = timings if timings is not None else Timings()
    writer = _Writer(model, prompt_ids, stop)
    sampler = Sampler(params, model.tokenizer.valid_size, prompt_ids)
    room = model.max_len - len(prompt_ids)
    limit = room if max_tokens is None else min(max_tokens, room)
    stops = {*model.tokenizer.stop_ids, *model.config.stop_ids}
    slot = model.new_slot()
    try:
        logits = _prefill(model, slot, prompt_ids, chunk, timings)
        for count in range(1, limit + 1):
            token = sampler(logits)
            timings.tokens = count
            if token in stops:
                yield from writer.finish("stop", token)
                return
            yield from writer.push(token)
            if writer.stopped:
                yield from writer.finish("stop")
                return
            if count < limit:
                started = time.perf_counter()
                logits = model.forward([(slot, [token])])[0]
                timings.decode_s += time.perf_counter() - started
        yield from writer.finish("length")
    finally:
        model.free_slot(slot)


def check_prompt(model: Model, prompt_ids: Sequence[int], max_tokens: int | None) -> None:
    """Raise UsageError unless the prompt fits and there is something to generate."""
    if not len(prompt_ids):
        raise UsageError("the prompt is empty", "Give some text, or - to read standard input.")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens must be at least 1, found {max_tokens}")
    if len(prompt_ids) >= model.max_len:
        raise UsageError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {model.max_len}",
            "Shorten the prompt.",
        )


def _prefill(
    model: Model, slot: int, ids: Sequence[int], chunk: int, timings: Timings
) -> NDArray[np.float32]:
    started = time.perf_counter()
    for i in range(0, len(ids), chunk):
        logits = model.forward([(slot, ids[i : i + chunk])])
    timings.prompt_tokens, timings.prefill_s = len(ids), time.perf_counter() - started
    row: NDArray[np.float32] = logits[0]
    return row


class _Writer:
    """Turns tokens into pieces: whole characters, reasoning apart, nothing of a stop string."""

    def __init__(self, model: Model, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = model.tokenizer
        self._detokenizer = Detokenizer(model.tokenizer)
        self._scanner = StopScanner(stop)
        thinking = starts_thinking(model.tokenizer, prompt_ids)
        self._channel: Channel = "reasoning" if thinking else "text"
        self._ids: list[int] = []
        self._border = False  # right after a thinking tag: the template's line breaks follow

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped is not None

    def push(self, token: int) -> Iterator[Piece]:
        self._ids.append(token)
        added = self._tokenizer.added_token(token)
        switch = {THINK: "reasoning", END_THINK: "text"}.get(added.content if added else "")
        if switch and switch != self._channel:
            yield from self._emit(self._detokenizer.flush(), flush=True)
            self._channel = "reasoning" if switch == "reasoning" else "text"
            self._border = True
            return
        yield from self._emit(self._inner(self._detokenizer.push(token)))

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
            yield Piece(shown, self._channel, self._take())

    def _take(self) -> tuple[int, ...]:
        ids, self._ids = tuple(self._ids), []
        return ids

    def finish(self, reason: str, token: int | None = None) -> Iterator[Piece]:
        if token is not None:
            self._ids.append(token)
        shown = ""
        if not self.stopped:
            rest = self._inner(self._detokenizer.flush())
            shown = self._scanner.push(rest) + self._scanner.flush()
        yield Piece(shown, self._channel, self._take(), "stop" if self.stopped else reason)


def generate(model: Model, prompt_ids: Sequence[int], **options: object) -> Generation:
    """All of an answer; options as in `stream`."""
    result = Generation()
    for piece in stream(model, prompt_ids, timings=result.timings, **options):  # type: ignore[arg-type]
        result.add(piece)
    return result
