"""One sequence while it is generated: from a step's logits to its next token and deltas.

`decode_step` and `sample_tokens` are the only way from logits to tokens, for one as for many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apr_core.errors import AprError
from apr_core.generate.requests import (
    Constraint,
    Delta,
    EndedBy,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
    as_exception,
)
from apr_core.generate.sampling import Sampler, finite, largest
from apr_core.generate.writer import Writer
from apr_core.text.detokenize import MAX_PENDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr_core.model.model import Model
    from apr_core.model.step import Choice, LastLogits
    from apr_core.ops.binding import SamplingMetadata
    from apr_core.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0  # for a token whose logit is not finite, as clients expect
AFTER_THOUGHT = "\n\n"  # between reasoning and answer in templates
TIMES = 4  # repetitions after which nothing new comes
LEAST = 2048  # repeated tokens needed
LEAST_IN_THOUGHT = 1024
FARTHEST = 8192  # tokens; up to this, the answer is searched for its own end
LOOKS = 32  # tokens between searches, and of the end that is searched for
TRIED = 512  # matches tried at most, the nearest first


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's token facts that sequences need."""

    tokenizer: Tokenizer
    valid: int  # ids from here on are padding
    stops: frozenset[int]
    end_think: int | None
    after_thought: tuple[int, ...]

    @classmethod
    def of(cls, model: Model) -> Vocabulary:
        """Return the vocabulary of a model."""
        tokenizer = model.tokenizer
        end = tokenizer.added.get(tokenizer.reasoning[1]) if tokenizer.reasoning else None
        return cls(
            tokenizer,
            tokenizer.valid_size,
            frozenset((*tokenizer.stop_ids, *model.config.stop_ids)),
            end.id if end else None,
            tuple(tokenizer.encode(AFTER_THOUGHT)),
        )


class GenerationSequence:
    """Text `index` of a request, in a slot that its caller opens and frees.

    `token` goes into the next step; `deltas` collects what is to be delivered. It ends by
    `limit_reason` when it has `limit` tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        request: GenerationRequest,
        index: int,
        *,
        slot: int,
        limit: int,
        limit_reason: EndedBy,
        constraint: Constraint | None = None,
        cached: int = 0,
    ) -> None:
        self.index, self.slot, self.request, self._vocabulary = index, slot, request, vocabulary
        self.deltas: list[Delta] = []
        self.ended: FinishReason | None = None
        self.token = -1
        self._limit, self._limit_reason, self._cached = limit, limit_reason, cached
        self._constraint = constraint
        self._writer = Writer(vocabulary.tokenizer, request, index)
        params = request.params
        if index and params.seed is not None:
            params = replace(params, seed=params.seed + index)
        prompt: Sequence[int] = request.prompt_ids if params.repetition_penalty != 1.0 else ()
        self._sampler = Sampler(params, vocabulary.valid, prompt)
        self._repetition = Repetition() if request.detect_repetition else None
        self._forced: deque[int] = deque()
        self._count = self._reasoning = 0
        self._budget_spent = False
        self._close_thought()

    def metadata(self) -> SamplingMetadata | None:
        """Return how to sample the next token; None if the logits are needed here."""
        needed = self._forced or self._constrained or self.request.top_logprobs is not None
        return None if needed or self._must_go_on else self._sampler.metadata()

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
        forced = bool(self._forced)
        self.token = self._forced.popleft() if forced else self._sample(choice)
        if not forced and self._gives_up_in_thought(self.token):
            assert self._vocabulary.end_think is not None
            self.token = self._vocabulary.end_think
        self._count += 1
        logprob = self._logprob(choice)
        if not forced and self._stops(self.token):
            self._finish("stop", "stop_token", token=self.token, logprob=logprob)
            return
        constrained = not forced and self._constrained
        self._write(self.token, logprob)
        if constrained and self._constraint is not None:
            self._constraint.accept(self.token)
        self._end_if_due(constrained)

    def _logprob(self, choice: Choice) -> TokenLogprob | None:
        if self.request.top_logprobs is None:
            return None
        assert not isinstance(choice, int), "log probabilities need the logits"
        valid = choice[: self._vocabulary.valid]
        return token_logprob(valid, self.token, self.request.top_logprobs)

    def _sample(self, choice: Choice) -> int:
        if isinstance(choice, int):
            self._sampler.accept(choice)
            return choice
        if not self._constrained or self._constraint is None:
            return self._sampler(self._without_ends(choice))
        scores = self._constraint.mask(choice.copy())
        if not np.isfinite(scores[: self._vocabulary.valid].max()):
            raise AprError("the constraint of this answer allows no token here")
        return self._sampler(scores)

    @property
    def _must_go_on(self) -> bool:
        """True if a token that ends the text would come too early."""
        return self._count < self.request.min_tokens

    def _without_ends(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits [vocab], with end tokens at -inf while the text must go on."""
        if not self._must_go_on:
            return logits
        scores = logits.copy()
        scores[list(self._vocabulary.stops)] = -np.inf
        return scores

    @property
    def _constrained(self) -> bool:
        return self._constraint is not None and self._writer.channel == "text"

    def _gives_up_in_thought(self, token: int) -> bool:
        """Return True if the model would end in thought, before an answer of a required form."""
        thinks = self._constraint is not None and self._writer.channel == "reasoning"
        return thinks and self._vocabulary.end_think is not None and self._stops(token)

    def _stops(self, token: int) -> bool:
        return token in self._vocabulary.stops and not self.request.ignore_stop_tokens

    def _write(self, token: int, logprob: TokenLogprob | None) -> None:
        before = self._writer.channel
        self.deltas += self._writer.push(token, logprob)
        if "reasoning" in (before, self._writer.channel):
            self._reasoning += 1
        if before == "reasoning" and self._constrained and not self._forced:
            self._forced.extend(self._vocabulary.after_thought)
        self._close_thought()

    def _close_thought(self) -> None:
        """Close the thought if it has used up its budget, after a whole character."""
        budget, end = self.request.thinking_budget, self._vocabulary.end_think
        if budget is None or end is None or self._forced or self._reasoning < budget:
            return
        if self._writer.mid_character and self._reasoning < budget + MAX_PENDING:
            return
        if self._writer.channel == "reasoning":
            text = "" if self._budget_spent else self.request.budget_text
            words = self._vocabulary.tokenizer.encode(text)
            self._forced.extend((*words, end, *self._vocabulary.after_thought))
            self._budget_spent = True

    def _end_if_due(self, constrained: bool) -> None:
        thinking = self._writer.channel == "reasoning"
        repeats = self._repetition is not None and self._repetition.push(self.token, thinking)
        if self._writer.stopped is not None:
            self._finish("stop", "stop_string")
        elif constrained and self._constraint is not None and self._constraint.complete:
            self._finish("stop", "grammar")
        elif self._count >= self._limit:
            self._finish("length", self._limit_reason)
        elif repeats:
            self._finish("length", "repetition")

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
        logprob: TokenLogprob | None = None,
    ) -> None:
        """Deliver the last delta; `token` ended the text without being part of it."""
        try:
            last = self._writer.finish(token, logprob)
        except BaseException as broken:
            last = Delta(self.index, "", self._writer.channel)
            reason, ended_by, error = "error", "error", error or as_exception(broken)
        stop_string = self._writer.stopped
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
        prompt = len(self.request.prompt_ids)
        return Usage(prompt, self._cached, self._count, self._reasoning)


def decode_step(model: Model, sequences: Sequence[GenerationSequence]) -> None:
    """Run one step over sequences, after which each has its next token or has ended.

    Raises what the forward raises; an error in one sequence ends only that one.
    """
    sample_tokens(model.forward_last([(each.slot, [each.token]) for each in sequences]), sequences)


def sample_tokens(logits: LastLogits, sequences: Sequence[GenerationSequence]) -> None:
    """Give each sequence its next token, from its row of logits."""
    choices = logits.sample(map(GenerationSequence.metadata, sequences))
    for each, choice in zip(sequences, choices, strict=True):
        each.advance(choice)


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Return the log probabilities of a token and the `top` likeliest, exact to about 1e-7.

    Natural logarithms before any sampling parameter, for logits [valid tokens].

    Exponentials are in float32, as logits are: float64 would take ten times as long, while all
    other answers wait.
    """
    scores, best = finite(logits)
    weights = scores - scores[best]
    np.exp(weights, out=weights)
    total = float(scores[best]) + float(np.log(weights.sum(dtype=np.float64)))
    rivals = largest(scores, top).tolist() if top else []
    return TokenLogprob(
        token,
        _floor(float(scores[token]) - total if token < scores.size else -np.inf),
        tuple((rival, _floor(float(scores[rival]) - total)) for rival in rivals),
    )


def _floor(value: float) -> float:
    return max(value, IMPOSSIBLE)


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
