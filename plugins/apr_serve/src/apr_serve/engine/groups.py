"""Sequence groups: prompts the engine has accepted, and the texts wanted for each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr_core.plugin import AprError
from apr_core.runtime import Delta, EndedBy, Prefill, TokenLogprob, Usage
from apr_serve.engine.interface import EngineRequest
from apr_serve.engine.prefix_cache import Node
from apr_serve.engine.sequence import AnswerSequence, token_logprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr_core.runtime import Model

SCORED_AT_ONCE = 64  # rows of logits in memory at a time


class SequenceGroup(Prefill):
    """A prompt, how much of it is in a slot, and what memory is reserved for it.

    Groups are the tickets that callers get: `cancel` may be called from any thread, everything else
    only from the engine's.
    """

    answers_wanted = 1

    def __init__(self, ids: Sequence[int], tenant: str, wake: Callable[[], None]) -> None:
        super().__init__(ids)
        self.tenant, self._wake = tenant, wake
        self.cancelled = False  # the caller asked for it
        self.broken = False  # the caller can no longer be reached
        self.slot: int | None = None
        self.passed_over = False  # it was left out of the last prefill forward
        self.number = 0  # order in which slots were given
        self.waits = False  # for another group that reads the same tokens
        self.snapshots_at: Sequence[int] = ()  # the cuts where state is worth keeping
        self.use_cache = False
        self.bytes_each = 0  # reserved for each answer
        self.slots_held = 0
        self.node: Node | None = None  # where its prompt stands in the prefix cache
        self.cached = 0
        self.restoring: Iterator[None] | None = None  # copies the cached part into the slot

    def cancel(self) -> None:
        """Stop within one step."""
        self.cancelled = True
        self._wake()

    @property
    def shares(self) -> bool:
        """Whether it reads from the cache, and other requests may have the same prompt."""
        return self.use_cache and bool(self.boundaries)

    @cached_property
    def marks(self) -> list[int]:
        """For each cut, a hash of the ids before it."""
        hashes, start = [0], 0
        for stop in self.boundaries:
            hashes.append(hash((hashes[-1], tuple(self.ids[start:stop]))))
            start = stop
        return hashes[1:]

    @property
    def worth_keeping(self) -> bool:
        """Whether the slot's state is worth keeping in the cache."""
        i = bisect_left(self.snapshots_at, self.position)
        return i < len(self.snapshots_at) and self.snapshots_at[i] == self.position

    def deliver_pending(self) -> None:
        """Deliver what is pending to the caller."""
        raise NotImplementedError

    def end(self, reason: Exception | None) -> None:
        """End it before or during its prefill: cancelled, or with an error."""
        raise NotImplementedError


class GenerationGroup(SequenceGroup):
    """A request for answers, each with the limit and the reason of an `AnswerSequence`."""

    def __init__(
        self,
        request: EngineRequest,
        deliver: Callable[[Sequence[Delta]], None],
        wake: Callable[[], None],
        limit: int,
        limit_reason: EndedBy,
    ) -> None:
        super().__init__(request.prompt_ids, request.tenant, wake)
        self.request, self._deliver = request, deliver
        self._limit, self._limit_reason = limit, limit_reason
        self.answers_wanted = request.n
        make = request.constraint
        self._constraints = [make() if make else None for _ in range(request.n)]
        self.use_cache = request.use_cache
        self.sequences: list[AnswerSequence] = []
        self._deltas: list[Delta] = []

    def sequence(self, model: Model, index: int, slot: int) -> AnswerSequence:
        """Return answer `index` as a sequence, in a slot that holds the prompt."""
        return AnswerSequence(
            model,
            self.request,
            index,
            slot=slot,
            limit=self._limit,
            limit_reason=self._limit_reason,
            constraint=self._constraints[index],
            cached=self.cached,
        )

    def deliver_pending(self) -> None:
        """Deliver the pending deltas of its answers to the caller."""
        deltas, self._deltas = self._deltas, []
        for sequence in self.sequences:
            deltas += sequence.deltas
            sequence.deltas = []
        if deltas and not self.broken:
            self._deliver(deltas)

    def end(self, reason: Exception | None) -> None:
        """Queue a last delta for each of the answers, none of which has begun."""
        usage = Usage(len(self.ids), self.cached)
        for index in range(self.request.n):
            kind: Literal["error", "cancelled"] = "error" if reason else "cancelled"
            last = Delta(index, finish_reason=kind, ended_by=kind, usage=usage, error=reason)
            self._deltas.append(last)


class HiddenStatesGroup(SequenceGroup):
    """A prompt whose hidden states are wanted, not an answer."""

    def __init__(
        self,
        ids: Sequence[int],
        deliver: Callable[[Any], None],
        wake: Callable[[], None],
        tenant: str = "",
    ) -> None:
        super().__init__(ids, tenant, wake)
        self._deliver = deliver
        self._result: Any = None

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take the hidden states [rows, hidden] of the next tokens."""
        raise NotImplementedError

    def deliver_pending(self) -> None:
        """Deliver the result or the error, if there is one."""
        result, self._result = self._result, None
        if result is not None and not self.broken:
            self._deliver(result)

    def end(self, reason: Exception | None) -> None:
        """End with an error, or cancelled."""
        self._result = reason or AprError("the request was cancelled")


class ScoringGroup(HiddenStatesGroup):
    """A prompt whose tokens' log probabilities are wanted: all but the first token's."""

    def __init__(
        self,
        ids: Sequence[int],
        top: int,
        logits_of: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        valid: int,
        deliver: Callable[[list[TokenLogprob] | Exception], None],
        wake: Callable[[], None],
        tenant: str = "",
    ) -> None:
        """Score `ids`; of the logits that `logits_of` returns, the first `valid` are tokens."""
        super().__init__(ids, deliver, wake, tenant)
        self._top, self._logits_of, self._valid = top, logits_of, valid
        self._scores: list[TokenLogprob] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        """Score the tokens that follow these rows."""
        following = self.ids[self.position - len(rows) + 1 : self.position + 1]
        for start in range(0, len(rows), SCORED_AT_ONCE):
            logits = self._logits_of(rows[start : start + SCORED_AT_ONCE])[:, : self._valid]
            tokens = following[start : start + SCORED_AT_ONCE]
            self._scores += [
                token_logprob(row, token, self._top)
                for row, token in zip(logits, tokens, strict=False)  # nothing follows the last row
            ]
        if self.done:
            self._result = self._scores


class EmbeddingGroup(HiddenStatesGroup):
    """A prompt whose mean hidden state is wanted."""

    def __init__(
        self,
        ids: Sequence[int],
        deliver: Callable[[NDArray[np.float32] | Exception], None],
        wake: Callable[[], None],
        tenant: str = "",
    ) -> None:
        super().__init__(ids, deliver, wake, tenant)
        self._sum: NDArray[np.float64] | None = None  # [hidden]

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add the hidden states [rows, hidden] of the next tokens.

        Rows are added one by one, so that the sum does not depend on where the prompt was cut.
        """
        wide = rows.astype(np.float64)
        if self._sum is not None:
            wide[0] += self._sum
        self._sum = np.add.reduce(wide, axis=0)
        if self.done:
            self._result = (self._sum / len(self.ids)).astype(np.float32)
