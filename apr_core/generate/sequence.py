"""One sequence while it is generated: from a step's logits to its next token and deltas.

`decode_step` and `sample_tokens` are the only way from logits to tokens, for one as for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from apr_core.generate.deltas import Delta, EndedBy, FinishReason, Usage, as_exception
from apr_core.generate.sampling import Sampler, SamplingParams
from apr_core.generate.writer import Writer

if TYPE_CHECKING:
    from apr_core.model.model import Model
    from apr_core.model.step import Choice, LastLogits
    from apr_core.ops.binding import SamplingMetadata

TIMES = 4  # repetitions after which nothing new comes
LEAST = 2048  # repeated tokens needed
LEAST_IN_THOUGHT = 1024
FARTHEST = 8192  # tokens; up to this, the answer is searched for its own end
LOOKS = 32  # tokens between searches, and of the end that is searched for
TRIED = 512  # matches tried at most, the nearest first


class GenerationSequence:
    """A text that is generated, in a slot that its caller opens and frees.

    `token` goes into the next step; `deltas` collects what is to be delivered. It ends by
    `limit_reason` when it has `limit` tokens. What further limits a text overrides `metadata`,
    `choose`, `stops`, `write` and `complete`.
    """

    complete = False  # nothing may follow but the end of the text
    cached = 0  # tokens of the prompt that were not computed for it

    def __init__(
        self,
        model: Model,
        params: SamplingParams,
        writer: Writer,
        *,
        slot: int,
        limit: int,
        limit_reason: EndedBy,
        detect_repetition: bool = True,
    ) -> None:
        self.writer, self.slot = writer, slot
        self.stop_ids = frozenset((*writer.tokenizer.stop_ids, *model.config.stop_ids))
        self.deltas: list[Delta] = []
        self.ended: FinishReason | None = None
        self.token = -1
        self._limit, self._limit_reason = limit, limit_reason
        prompt: Sequence[int] = writer.prompt_ids if params.repetition_penalty != 1.0 else ()
        self.sampler = Sampler(params, writer.tokenizer.valid_size, prompt)
        self._repetition = Repetition() if detect_repetition else None
        self.count = self.reasoning_tokens = 0

    def metadata(self) -> SamplingMetadata | None:
        """Return how to sample the next token; None if the logits are needed here."""
        return self.sampler.metadata()

    def advance(self, choice: Choice) -> None:
        """Run `take`; any failure ends this sequence with the error."""
        try:
            self.take(choice)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.fail(as_exception(error))

    def take(self, choice: Choice) -> None:
        """Take the next token: the one sampled, or one from logits [vocab], left unchanged."""
        self.token = self.choose(choice)
        self.count += 1
        if self.stops(self.token):
            self._finish("stop", "stop_token", token=self.token)
            return
        self.write(self.token)
        thinking = self.writer.channel == "reasoning"
        repeats = self._repetition is not None and self._repetition.push(self.token, thinking)
        if self.writer.stopped is not None:
            self._finish("stop", "stop_string")
        elif self.complete:
            self._finish("stop", "grammar")
        elif self.count >= self._limit:
            self._finish("length", self._limit_reason)
        elif repeats:
            self._finish("length", "repetition")

    def choose(self, choice: Choice) -> int:
        """Return the next token."""
        if isinstance(choice, int):
            self.sampler.accept(choice)
            return choice
        return self.sampler(choice)

    def stops(self, token: int) -> bool:
        """Return True if the token ends the text."""
        return token in self.stop_ids

    def write(self, token: int) -> None:
        """Add a token to the text."""
        before = self.writer.channel
        self.deltas += self.writer.push(token)
        if "reasoning" in (before, self.writer.channel):
            self.reasoning_tokens += 1

    def cancel(self) -> None:
        """End the sequence where it stands."""
        self._finish("cancelled", "cancelled")

    def fail(self, error: Exception) -> None:
        """End the sequence with an error."""
        if self.ended is None:
            self._finish("error", "error", error=error)

    def _finish(
        self,
        reason: FinishReason,
        ended_by: EndedBy,
        *,
        error: Exception | None = None,
        token: int | None = None,
    ) -> None:
        """Deliver the last delta; `token` ended the text without being part of it."""
        try:
            last = self.writer.finish(token)
        except BaseException as broken:
            last = Delta(self.writer.index, "", self.writer.channel)
            reason, ended_by, error = "error", "error", error or as_exception(broken)
        stop_string = self.writer.stopped
        if reason == "length" and stop_string is not None:  # in text that was held back
            reason, ended_by = "stop", "stop_string"
        self.ended = reason
        self.deltas.append(
            replace(
                last,
                finish_reason=reason,
                ended_by=ended_by,
                usage=self.usage,
                error=error,
                stop_string=stop_string if ended_by == "stop_string" else None,
            )
        )

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        prompt = len(self.writer.prompt_ids)
        return Usage(prompt, self.cached, self.count, self.reasoning_tokens)


def decode_step(model: Model, sequences: Sequence[GenerationSequence]) -> None:
    """Run one step over sequences, after which each has its next token or has ended.

    Raises what the forward raises; an error in one sequence ends only that one.
    """
    sample_tokens(model.forward_last([(each.slot, [each.token]) for each in sequences]), sequences)


def sample_tokens(logits: LastLogits, sequences: Sequence[GenerationSequence]) -> None:
    """Give each sequence its next token, from its row of logits."""
    choices = logits.sample(each.metadata() for each in sequences)
    for each, choice in zip(sequences, choices, strict=True):
        each.advance(choice)


class Repetition:
    """Detects an answer that repeats itself without end.

    Searches it for its own end: the tokens since an earlier place where it stands are a period, if
    all before repeat them. Only exact repetition counts. Tables, matrices of zeros, or a line
    wanted a hundred times are not endless, so many repetitions are needed; fewer in a thought,
    which has no required form.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(1024, np.int64)
        self._count = 0

    def push(self, token: int, thinking: bool = False) -> bool:
        """Take a token; return True if the answer repeats itself endlessly, exact to LOOKS tokens.

        A period longer than TRIED may take as many more as it has, if its end repeats by itself.
        """
        if self._count == self._buffer.size:
            self._buffer = np.resize(self._buffer, 2 * self._count)
        self._buffer[self._count] = token
        self._count += 1
        return self._count % LOOKS == 0 and self._repeats(LEAST_IN_THOUGHT if thinking else LEAST)

    def _repeats(self, least: int) -> bool:
        """Return True if the last tokens came before, and the same tokens after each time."""
        tokens, last = self._buffer[: self._count], self._count - 1
        first = max(LOOKS, last - FARTHEST)
        places = first + np.flatnonzero(tokens[first:last] == tokens[last])
        for back in range(1, LOOKS):
            places = places[tokens[places - back] == tokens[last - back]]
        return any(self._is_period(last - int(p), least) for p in places[: -TRIED - 1 : -1])

    def _is_period(self, period: int, least: int) -> bool:
        start = self._count - max(least, TIMES * period)
        repeated = self._buffer[max(start, 0) : self._count]
        return start >= 0 and np.array_equal(repeated[period:], repeated[:-period])
