"""From a prompt to text, one sequence at a time. Knows slots and logits, no array library."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

from apr_core.errors import PromptTooLong, UsageError
from apr_core.generate.boundaries import CHUNK, GRID, Prefill, boundaries_of
from apr_core.generate.deltas import Delta, EndedBy
from apr_core.generate.sampling import SamplingParams
from apr_core.generate.sequence import GenerationSequence, decode_step, sample_tokens
from apr_core.generate.writer import Writer

if TYPE_CHECKING:
    from apr_core.model.model import Model


@dataclass(slots=True)
class Timings:
    """Seconds of each phase, and its tokens."""

    prompt_tokens: int = 0
    tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens per second, without the first, which belongs to the prefill."""
        return (self.tokens - 1) / self.decode_s if self.decode_s and self.tokens > 1 else 0.0


@dataclass(slots=True)
class Generation:
    """A whole answer: text, ids and how it ended."""

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""  # stop or length
    ended_by: str = ""  # in finer detail: see EndedBy
    timings: Timings = field(default_factory=Timings)

    def add(self, delta: Delta) -> None:
        """Append what a step added."""
        if delta.channel == "text":
            self.text += delta.text
        else:
            self.reasoning += delta.text
        self.ids += delta.ids
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.ended_by = delta.ended_by or self.ended_by


class StreamOptions(TypedDict, total=False):
    """The options of `stream`, for callers that pass them on."""

    params: SamplingParams | None
    max_tokens: int | None
    stop: str | Sequence[str]
    chunk: int
    timings: Timings | None
    detect_repetition: bool


def stream(
    model: Model,
    prompt_ids: Sequence[int],
    *,
    params: SamplingParams | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    chunk: int = CHUNK,
    timings: Timings | None = None,
    detect_repetition: bool = True,
) -> Generator[Delta, None, None]:
    """Generate until a stop id, a stop string, `max_tokens` or the end of the context.

    `params` None means the model's defaults. Text that repeats itself without end is ended unless
    `detect_repetition` is off. The slot is freed when the iterator ends or is closed. `chunk`
    prompt tokens go into one forward, a multiple of 64. Blank lines between reasoning and answer
    belong to neither. Raises UsageError for an empty or too long prompt.
    """
    if chunk < 1 or chunk % GRID:
        raise UsageError(f"chunk must be a multiple of {GRID}, found {chunk}")
    params = params or SamplingParams.from_defaults(model.config.sampling)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    limit, reason = limit_of(model, prompt_ids, max_tokens)
    timings = timings if timings is not None else Timings()
    slot = model.new_slot()
    try:
        sequence = GenerationSequence(
            model,
            params,
            Writer(model.tokenizer, prompt_ids, stops),
            slot=slot,
            limit=limit,
            limit_reason=reason,
            detect_repetition=detect_repetition,
        )
        _prefill(model, sequence, chunk, timings)
        while True:
            deltas, sequence.deltas = sequence.deltas, []
            timings.tokens += 1
            if sequence.ended == "error":
                raise deltas.pop().error or AssertionError("an error that is none")
            yield from deltas
            if sequence.ended:
                return
            started = time.perf_counter()
            decode_step(model, [sequence])
            timings.decode_s += time.perf_counter() - started
    finally:
        model.free_slot(slot)


def limit_of(
    model: Model, prompt_ids: Sequence[int], max_tokens: int | None
) -> tuple[int, EndedBy]:
    """Return an answer's token limit, and the reason for ending when it is reached.

    Raises UsageError as `check_prompt` does, and for a limit below 1.
    """
    check_prompt(model, prompt_ids)
    left = model.max_len - len(prompt_ids)
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens must be at least 1, found {max_tokens}")
    if max_tokens is None or max_tokens > left:
        return left, "context"
    return max_tokens, "max_tokens"


def check_prompt(model: Model, prompt_ids: Sequence[int]) -> None:
    """Raise UsageError for an empty or invalid prompt, PromptTooLong for one too long."""
    if not len(prompt_ids):
        raise UsageError("the prompt is empty")
    model.check_ids(prompt_ids)
    if len(prompt_ids) >= model.max_len:
        raise PromptTooLong(len(prompt_ids), model.max_len)


def _prefill(model: Model, sequence: GenerationSequence, chunk: int, timings: Timings) -> None:
    """Read the prompt of a sequence and sample its first token."""
    started, ids = time.perf_counter(), sequence.writer.prompt_ids
    prefill = Prefill(ids, boundaries_of(model)(ids))
    while not prefill.done:
        start, prefill.position = prefill.position, prefill.stop_within(chunk)
        logits = model.forward_last([(sequence.slot, ids[start : prefill.position])])
    sample_tokens(logits, [sequence])
    timings.prompt_tokens, timings.prefill_s = len(ids), time.perf_counter() - started


def generate(
    model: Model, prompt_ids: Sequence[int], **options: Unpack[StreamOptions]
) -> Generation:
    """Generate a whole answer; options are as in `stream`."""
    result = Generation(timings=options.get("timings") or Timings())
    options["timings"] = result.timings
    for delta in stream(model, prompt_ids, **options):
        result.add(delta)
    return result
