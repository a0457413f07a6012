"""One answer while it is made: from a step's logits to its next token and what is told of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apr_core.errors import AprError
from apr_core.generate.logprobs import token_logprob
from apr_core.generate.repetition import Repetition
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
from apr_core.generate.sampling import Sampler
from apr_core.generate.writer import Piece, Writer
from apr_core.text.chat import END_THINK
from apr_core.text.detokenize import MAX_PENDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr_core.model.model import Model
    from apr_core.model.step import Choice
    from apr_core.ops.binding import Draw
    from apr_core.text.tokenizer import Tokenizer

AFTER_THOUGHT = "\n\n"  # what templates have between reasoning and answer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What answers need to know of a model's tokens."""

    tokenizer: Tokenizer
    valid: int  # ids from here on are padding
    stops: frozenset[int]
    end_think: int | None
    after_thought: tuple[int, ...]

    @classmethod
    def of(cls, model: Model) -> Vocabulary:
        """The vocabulary of a model."""
        tokenizer = model.tokenizer
        return cls(
            tokenizer,
            tokenizer.valid_size,
            frozenset((*tokenizer.stop_ids, *model.config.stop_ids)),
            tokenizer.added[END_THINK].id if END_THINK in tokenizer.added else None,
            tuple(tokenizer.encode(AFTER_THOUGHT)),
        )


class Answer:
    """Answer `index` of a request. It has a slot, which the scheduler opens and frees.

    `token` is what comes into the next step; `deltas` collects what has to be delivered. `room` are
    the tokens it may have, and `full` says why no more.
    """

    def __init__(
        self, vocabulary: Vocabulary, request: GenerationRequest, index: int, *, slot: int,
        room: int, full: EndedBy, constraint: Constraint | None = None, cached: int = 0,
    ) -> None:  # fmt: skip
        self.index, self.slot, self.request, self._vocabulary = index, slot, request, vocabulary
        self.deltas: list[Delta] = []
        self.ended: FinishReason | None = None
        self.token = -1
        self._room, self._full, self._cached = room, full, cached
        self._constraint = constraint
        tokenizer, ids = vocabulary.tokenizer, request.prompt_ids
        self._writer = Writer(tokenizer, ids, request.stop, request.plain)
        self._sampler = _sampler(request, index, vocabulary.valid)
        self._repetition = Repetition() if request.detect_repetition else None
        self._logprobs: list[TokenLogprob] = []
        self._forced: deque[int] = deque()
        self._count = self._reasoning = 0
        self._budget_told = False
        self._close_thought()

    def draw(self) -> Draw | None:
        """What the next token takes beside its logits; None if the logits are needed here."""
        needed = self._forced or self._constrained or self.request.top_logprobs is not None
        return None if needed or self._must_go_on else self._sampler.draw()

    def advance(self, found: Choice) -> None:
        """As `take`, but whatever goes wrong ends this answer with the error."""
        try:
            self.take(found)
        except BaseException as error:
            self.fail(as_exception(error))

    def take(self, found: Choice) -> None:
        """Take the next token: what `draw` gave, or one from logits [vocab], which are left so."""
        forced = bool(self._forced)
        self.token = self._forced.popleft() if forced else self._chosen(found)
        if not forced and self._gives_up_in_thought(self.token):
            assert self._vocabulary.end_think is not None
            self.token = self._vocabulary.end_think
        self._count += 1
        if self.request.top_logprobs is not None:
            assert not isinstance(found, int), "log probabilities need the logits"
            valid = found[: self._vocabulary.valid]
            self._logprobs.append(token_logprob(valid, self.token, self.request.top_logprobs))
        if not forced and self._stops(self.token):
            self._finish("stop", "stop_token", self.token)
            return
        constrained = not forced and self._constrained
        self._write(self.token)
        if constrained and self._constraint is not None:
            self._constraint.accept(self.token)
        self._end_if_due(constrained)

    def _chosen(self, found: Choice) -> int:
        if isinstance(found, int):
            self._sampler.took(found)
            return found
        if not self._constrained or self._constraint is None:
            return self._sampler(self._without_ends(found))
        scores = self._constraint.mask(found.copy())
        if not np.isfinite(scores[: self._vocabulary.valid].max()):
            raise AprError("the constraint of this answer allows no token here")
        return self._sampler(scores)

    @property
    def _must_go_on(self) -> bool:
        """Whether a token that ends the answer would come too early."""
        return self._count < self.request.min_tokens

    def _without_ends(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [vocab]; with tokens that end the answer at -inf where it must go on."""
        if not self._must_go_on:
            return logits
        scores = logits.copy()
        scores[list(self._vocabulary.stops)] = -np.inf
        return scores

    @property
    def _constrained(self) -> bool:
        return self._constraint is not None and self._writer.channel == "text"

    def _gives_up_in_thought(self, token: int) -> bool:
        """Whether the model would end before an answer that has to be of some form."""
        thinks = self._constraint is not None and self._writer.channel == "reasoning"
        return thinks and self._vocabulary.end_think is not None and self._stops(token)

    def _stops(self, token: int) -> bool:
        return token in self._vocabulary.stops and not self.request.ignore_stop_tokens

    def _write(self, token: int) -> None:
        before = self._writer.channel
        for piece in self._writer.push(token):
            self._tell(piece)
        if "reasoning" in (before, self._writer.channel):
            self._reasoning += 1
        if before == "reasoning" and self._constrained and not self._forced:
            self._forced.extend(self._vocabulary.after_thought)
        self._close_thought()

    def _close_thought(self) -> None:
        """Have the thought closed if it has used up its budget, after a whole character."""
        budget, end = self.request.thinking_budget, self._vocabulary.end_think
        if budget is None or end is None or self._forced or self._reasoning < budget:
            return
        if self._writer.mid_character and self._reasoning < budget + MAX_PENDING:
            return
        if self._writer.channel == "reasoning":
            text = "" if self._budget_told else self.request.budget_text
            words = self._vocabulary.tokenizer.encode(text)
            self._forced.extend((*words, end, *self._vocabulary.after_thought))
            self._budget_told = True

    def _end_if_due(self, constrained: bool) -> None:
        thinking = self._writer.channel == "reasoning"
        repeats = self._repetition is not None and self._repetition.push(self.token, thinking)
        if self._writer.stopped is not None:
            self._finish("stop", "stop_string")
        elif constrained and self._constraint is not None and self._constraint.complete:
            self._finish("stop", "grammar")
        elif self._count >= self._room:
            self._finish("length", self._full)
        elif repeats:
            self._finish("length", "repetition")

    def cancel(self) -> None:
        """End it where it stands."""
        self._finish("cancelled", "cancelled")

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if self.ended is None:
            self._finish("error", "error", error=error)

    def _finish(
        self, reason: FinishReason, ended_by: EndedBy, token: int | None = None,
        error: Exception | None = None,
    ) -> None:  # fmt: skip
        self.ended = reason
        try:
            piece = self._writer.finish(reason, token)
        except BaseException as broken:
            piece = Piece("", self._writer.channel)
            reason, ended_by, error = "error", "error", error or as_exception(broken)
        if reason == "length" and self._writer.stopped is not None:  # found in what was held back
            reason, ended_by = "stop", "stop_string"
        self.ended = reason
        self._tell(
            piece, finish_reason=reason, ended_by=ended_by, usage=self.usage, error=error,
            stop_string=self._writer.stopped if ended_by == "stop_string" else None,
        )  # fmt: skip

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = len(self.request.prompt_ids)
        return Usage(prompt, self._cached, self._count, self._reasoning)

    def _tell(self, piece: Piece, **end: object) -> None:
        logprobs = tuple(self._logprobs[: len(piece.ids)])
        del self._logprobs[: len(piece.ids)]
        if self._writer.stopped is not None:
            logprobs = self._of_shown(piece.text, logprobs)
        delta = Delta(self.index, piece.text, piece.channel, piece.ids, logprobs)
        self.deltas.append(replace(delta, **end) if end else delta)  # type: ignore[arg-type]

    def _of_shown(
        self, text: str, logprobs: Sequence[TokenLogprob]
    ) -> tuple[TokenLogprob, ...]:  # fmt: skip
        """Those of the tokens that the text is of, without those of the stop string after it."""
        kept, size = [], 0
        for found in logprobs:
            if size >= len(text):
                break
            kept.append(found)
            size += len(self._vocabulary.tokenizer.decode([found.id]))
        return tuple(kept)


def _sampler(request: GenerationRequest, index: int, valid: int) -> Sampler:
    params = request.params
    if index and params.seed is not None:
        params = replace(params, seed=params.seed + index)
    prompt: Sequence[int] = request.prompt_ids if params.repetition_penalty != 1.0 else ()
    return Sampler(params, valid, prompt)
