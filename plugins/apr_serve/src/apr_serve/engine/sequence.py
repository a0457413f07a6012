"""An answer as clients may ask for it: constrained, with a budget of thought, log probabilities.

How its tokens are sampled and written is the core's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from apr_core.plugin import AprError, SamplingMetadata
from apr_core.runtime import (
    MAX_PENDING,
    Channel,
    Choice,
    Delta,
    GenerationSequence,
    TokenLogprob,
    Writer,
    finite,
    largest,
)
from apr_serve.engine.interface import Constraint, EngineRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr_core.runtime import Model

IMPOSSIBLE = -9999.0  # for a token whose logit is not finite, as clients expect
AFTER_THOUGHT = "\n\n"  # between reasoning and answer in templates


class ScoredWriter(Writer):
    """Gives deltas the log probabilities of their tokens, which `scores` collects."""

    def __init__(self, *prompt: Any, **options: Any) -> None:
        super().__init__(*prompt, **options)
        self.scores: list[TokenLogprob] = []

    def delta(self, text: str, channel: Channel | None = None) -> Delta:
        """Return a delta, without the log probabilities of a stop string after its text."""
        scores = tuple(self.scores)
        self.scores.clear()
        if scores and self.stopped is not None:
            sizes = (len(self.tokenizer.decode([s.id], self.skip_special)) for s in scores)
            before = accumulate(sizes, initial=0)
            scores = tuple(s for s, size in zip(scores, before, strict=False) if size < len(text))
        delta = super().delta(text, channel)
        return replace(delta, logprobs=scores) if scores else delta


class AnswerSequence(GenerationSequence):
    """Answer `index` of a request. What is forced comes before what the model would say."""

    def __init__(
        self,
        model: Model,
        request: EngineRequest,
        index: int,
        *,
        constraint: Constraint | None = None,
        cached: int = 0,
        **options: Any,
    ) -> None:
        """Take where it runs and ends, `options`, as GenerationSequence does."""
        tokenizer, params = model.tokenizer, request.params
        if index and params.seed is not None:
            params = replace(params, seed=params.seed + index)
        writer = ScoredWriter(
            tokenizer,
            request.prompt_ids,
            request.stop,
            index,
            skip_special=request.skip_special_tokens,
            min_tokens=request.min_tokens,
            plain=request.plain,
        )
        options["detect_repetition"] = request.detect_repetition
        super().__init__(model, params, writer, **options)
        self.request, self.cached, self._scores = request, cached, writer.scores
        tag = tokenizer.added.get(tokenizer.reasoning[1]) if tokenizer.reasoning else None
        self.end_think = tag.id if tag else None
        self._after_thought = tokenizer.encode(AFTER_THOUGHT)
        self._constraint = constraint
        self._forced: deque[int] = deque()
        self._was_forced = self._budget_spent = False
        self._close_thought()

    @property
    def _constrained(self) -> bool:
        return self._constraint is not None and self.writer.channel == "text"

    @property
    def _must_go_on(self) -> bool:
        """True if a token that ends the answer would come too early."""
        return self.count < self.request.min_tokens

    def metadata(self) -> SamplingMetadata | None:
        """Return how to sample the next token; None if the logits are needed here."""
        needed = self._forced or self._constrained or self.request.top_logprobs is not None
        return None if needed or self._must_go_on else super().metadata()

    def choose(self, choice: Choice) -> int:
        """Return the next token: what is forced, or what the constraint allows."""
        self._was_forced = bool(self._forced)
        token = self._forced.popleft() if self._was_forced else self._chosen(choice)
        if self.request.top_logprobs is not None:
            assert not isinstance(choice, int), "log probabilities need the logits"
            valid = choice[: self.writer.tokenizer.valid_size]
            self._scores.append(token_logprob(valid, token, self.request.top_logprobs))
        return token

    def _chosen(self, choice: Choice) -> int:
        if isinstance(choice, int):
            token = super().choose(choice)
        elif self._constraint is None or not self._constrained:
            if self._must_go_on:
                choice = choice.copy()
                choice[list(self.stop_ids)] = -np.inf
            token = super().choose(choice)
        else:
            scores = self._constraint.mask(choice.copy())
            if not np.isfinite(scores[: self.writer.tokenizer.valid_size].max()):
                raise AprError("the constraint of this answer allows no token here")
            token = self.sampler(scores)
        # the model would end in thought, before an answer of a required form
        thinks = self._constraint is not None and self.writer.channel == "reasoning"
        if thinks and self.end_think is not None and self.stops(token):
            return self.end_think
        return token

    def stops(self, token: int) -> bool:
        """Return True if the token ends the answer, which none does that is forced."""
        ends = not self._was_forced and not self.request.ignore_stop_tokens
        return ends and super().stops(token)

    def write(self, token: int) -> None:
        """Add a token to the answer; close the thought, or begin what is constrained."""
        before, constrained = self.writer.channel, self._constrained and not self._was_forced
        super().write(token)
        if before == "reasoning" and self._constrained and not self._forced:
            self._forced.extend(self._after_thought)
        self._close_thought()
        if constrained and self._constraint is not None:
            self._constraint.accept(token)
            self.complete = self._constraint.complete

    def _close_thought(self) -> None:
        """Close the thought if it has used up its budget, after a whole character."""
        budget, end = self.request.thinking_budget, self.end_think
        if budget is None or end is None or self._forced or self.reasoning_tokens < budget:
            return
        if self.writer.mid_character and self.reasoning_tokens < budget + MAX_PENDING:
            return
        if self.writer.channel == "reasoning":
            text = "" if self._budget_spent else self.request.budget_text
            words = self.writer.tokenizer.encode(text)
            self._forced.extend((*words, end, *self._after_thought))
            self._budget_spent = True


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
