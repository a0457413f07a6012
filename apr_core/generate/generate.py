"""From a prompt to text, one sequence at a time. Knows slots and logits, no array library."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

from apr_core.errors import UsageError
from apr_core.generate.answer import Answer, Vocabulary
from apr_core.generate.cuts import CHUNK, GRID, cuts_of, stretches
from apr_core.generate.requests import Delta, EndedBy, GenerationRequest
from apr_core.generate.sampling import SamplingParams

if TYPE_CHECKING:
    from apr_core.model.model import Model
    from apr_core.model.step import Choice


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


@dataclass(slots=True)
class Generation:
    """All of an answer."""

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""  # stop or length
    ended_by: str = ""  # the same more finely: see EndedBy
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
    """The options of `stream`, for those that hand them on."""

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
) -> Iterator[Delta]:
    """Generate until a stop id, a stop string, `max_tokens` or the end of the context.

    `params` None means the model's defaults. Text that repeats itself without end is ended unless
    `detect_repetition` is off. The slot is freed when the iterator ends or is closed. `chunk`
    prompt tokens go into one forward, a multiple of 64. Blank lines between reasoning and answer
    belong to neither. Raises UsageError for an empty or too long prompt.
    """
    check_prompt(model, prompt_ids, max_tokens)
    if chunk < 1 or chunk % GRID:
        raise UsageError(f"chunk must be a multiple of {GRID}, found {chunk}")
    params = params or SamplingParams.from_defaults(model.config.sampling)
    timings = timings if timings is not None else Timings()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    request = GenerationRequest(prompt_ids, params, stop=stops, detect_repetition=detect_repetition)
    full: EndedBy = "context"
    room = model.max_len - len(prompt_ids)
    if max_tokens is not None and max_tokens <= room:
        room, full = max_tokens, "max_tokens"
    slot = model.new_slot()
    try:
        answer = Answer(Vocabulary.of(model), request, 0, slot=slot, room=room, full=full)
        found = _prefill(model, answer, chunk, timings)
        while True:
            answer.take(found)
            timings.tokens += 1
            deltas, answer.deltas = answer.deltas, []
            yield from deltas
            if answer.ended:
                return
            started = time.perf_counter()
            logits = model.forward_last([(slot, [answer.token])])
            (found,) = logits.chosen(map(Answer.draw, [answer]))
            timings.decode_s += time.perf_counter() - started
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


def _prefill(model: Model, answer: Answer, chunk: int, timings: Timings) -> Choice:
    """Read the prompt of an answer; what its first token is taken from."""
    started, ids = time.perf_counter(), answer.request.prompt_ids
    for start, stop in stretches(len(ids), cuts_of(model)(ids), chunk):
        logits = model.forward_last([(answer.slot, ids[start:stop])])
    (found,) = logits.chosen(map(Answer.draw, [answer]))
    timings.prompt_tokens, timings.prefill_s = len(ids), time.perf_counter() - started
    return found


def generate(
    model: Model, prompt_ids: Sequence[int], **options: Unpack[StreamOptions]
) -> Generation:
    """All of an answer; options as in `stream`."""
    result = Generation(timings=options.get("timings") or Timings())
    options["timings"] = result.timings
    for delta in stream(model, prompt_ids, **options):
        result.add(delta)
    return result
