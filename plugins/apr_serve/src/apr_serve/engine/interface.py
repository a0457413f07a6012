"""The interface between server and engine. Nothing here knows chats or HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from apr_core.plugin import AprError
from apr_core.runtime import Delta, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Busy(AprError):
    """The queue is full, or the server is about to stop: the request may work a little later."""


class Constraint(Protocol):
    """A limit on which tokens may come next; one object per answer."""

    def mask(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [vocab], with forbidden tokens at -inf. May write in place."""

    def accept(self, token: int) -> None:
        """Take note of a chosen token."""

    @property
    def complete(self) -> bool:
        """True if nothing may follow but the end of the answer."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt and how to answer it. `n` answers are drawn; answer i has seed `seed + i`.

    Before `min_tokens` no token that ends answers is chosen, and no stop string looked for;
    `skip_special_tokens` leaves control tokens out of the text. `thinking_budget` are reasoning
    tokens, after which the thought is closed with `budget_text`. `constraint` makes what limits the
    answer; it applies from the end of the reasoning on. `top_logprobs` None means none, 0 those of
    the chosen tokens only. Tenants take turns, however many requests each has waiting.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: Sequence[str] = ()
    n: int = 1
    top_logprobs: int | None = None
    thinking_budget: int | None = None
    budget_text: str = ""
    constraint: Callable[[], Constraint] | None = None
    detect_repetition: bool = True
    ignore_stop_tokens: bool = False
    skip_special_tokens: bool = True
    plain: bool = False  # all is text as it was written, tags of thinking too
    use_cache: bool = True  # of prefixes
    tenant: str = ""


class Ticket(Protocol):
    """A request that the engine has accepted."""

    def cancel(self) -> None:
        """Stop within one step. Every answer still ends with a delta (`cancelled`)."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts of the engine, cheap enough to read every second."""

    slots: int = 0
    running: int = 0
    prefilling: int = 0
    queued: int = 0
    memory_bytes: int = 0  # state of running sequences, held now
    reserved_bytes: int = 0  # the most they may grow to
    memory_limit: int = 0  # for sequences and cache together
    cache_bytes: int = 0
    cache_entries: int = 0
    prompt_tokens: int = 0  # totals since the start
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0


class GenerationEngine(Protocol):
    """An engine, as the server sees it. `apr_serve.engine.engine.Engine` is one.

    It has its own thread. `deliver` of a request is called from that thread with what a step added
    to its answers, in order, the last call holding the last delta of the last answer; it must
    return at once. `flushed` (an attribute, called after every step's last delivery) lets a server
    wake its event loop once a step.
    """

    flushed: Callable[[], None]

    def submit(self, request: EngineRequest, deliver: Callable[[Sequence[Delta]], None]) -> Ticket:
        """Queue a request. Raises Busy, or UsageError if it can never run."""

    def embed(
        self,
        ids: Sequence[int],
        deliver: Callable[[NDArray[np.float32] | Exception], None],
        tenant: str = "",
    ) -> Ticket:
        """Queue a prompt whose mean last hidden state [hidden] is wanted."""

    def score(
        self,
        ids: Sequence[int],
        top: int,
        deliver: Callable[[list[TokenLogprob] | Exception], None],
        tenant: str = "",
    ) -> Ticket:
        """Queue a prompt for the log probabilities of ids[1:], each with its `top` alternatives."""

    def stats(self) -> EngineStats:
        """Return current counts of requests, slots, memory and tokens."""

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests, let running ones finish; return False if any is cancelled."""

    def close(self) -> None:
        """Cancel everything and end the thread."""
