"""What is asked of the engine, and what it answers: the seam between it and any server.

Nothing here knows chats, tools or HTTP: a request is ids in, pieces of text with their ids out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from apr_core.errors import AprError
from apr_core.generate.sampling import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Channel = Literal["reasoning", "text"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
# why it ended, finer than the reason: a token that ends answers, a stop string, `max_tokens`, a
# full context, an endless repetition, a constraint that is complete
EndedBy = Literal[
    "stop_token", "stop_string", "max_tokens", "context", "repetition", "grammar", "cancelled",
    "error",
]  # fmt: skip


class Constraint(Protocol):
    """Which tokens may come next; one object an answer."""

    def mask(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [vocab], with those of forbidden tokens at -inf. May write in place."""

    def accept(self, token: int) -> None:
        """A token was chosen."""

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end of the answer."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and how to answer it. `n` answers are drawn; answer i has seed `seed + i`.

    Before `min_tokens` no token that ends answers is chosen. `thinking_budget` are reasoning
    tokens, after which the thought is closed with `budget_text`. `constraint` makes what limits the
    answer; it applies from the end of the reasoning on. `top_logprobs` None means none, 0 those of
    the chosen tokens only. `owner` shares the engine fairly: owners take turns, however many
    requests each has waiting.
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
    plain: bool = False  # all is text as it was written, tags of thinking too
    use_cache: bool = True  # of prefixes
    owner: str = ""


def as_exception(error: BaseException) -> Exception:
    """What a delta can carry: native code that panics raises what is no Exception."""
    if isinstance(error, Exception):
        return error
    return AprError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its natural log probability before sampling parameters, and rivals."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (id, log probability), likeliest first


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` of the prompt were not computed for this request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to answer `index`: whole characters, nothing of a stop string.

    The last delta of an answer has a `finish_reason`, what `ended_by` says more finely, its
    `usage`, and `error` or `stop_string` if that is the reason. `ids` may come later than their
    text would: all deltas joined have all ids and all text.
    """

    index: int
    text: str = ""
    channel: Channel = "text"
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    ended_by: EndedBy | None = None
    usage: Usage | None = None
    error: Exception | None = None
    stop_string: str | None = None


class Ticket(Protocol):
    """A request that the engine has taken."""

    def cancel(self) -> None:
        """Stop within one step. Every answer still ends with a delta (`cancelled`)."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A look at the engine, cheap enough to take every second."""

    slots: int = 0
    running: int = 0
    prefilling: int = 0
    queued: int = 0
    memory_bytes: int = 0  # state of running sequences, held now
    reserved_bytes: int = 0  # what they may grow to
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
    """What a server needs of an engine. The implementation is `apr_serve.engine.engine.Engine`.

    It has a thread of its own. `deliver` of a request is called from that thread with what a step
    added to its answers, in order, the last call holding the last delta of the last answer; it must
    return at once. `flushed` (an attribute, called after every step's last delivery) lets a server
    wake its event loop once a step.
    """

    flushed: Callable[[], None]

    def submit(
        self, request: GenerationRequest, deliver: Callable[[Sequence[Delta]], None]
    ) -> Ticket:
        """Queue a request. Raises Busy, or UsageError if it can never run."""

    def embed(
        self, ids: Sequence[int], deliver: Callable[[NDArray[np.float32] | Exception], None],
        owner: str = "",
    ) -> Ticket:  # fmt: skip
        """The mean [hidden] of the last hidden states over the ids' rows, in its turn."""

    def score(
        self, ids: Sequence[int], top: int,
        deliver: Callable[[list[TokenLogprob] | Exception], None], owner: str = "",
    ) -> Ticket:  # fmt: skip
        """The log probabilities of ids[1:], each with its `top` likeliest rivals, in its turn."""

    def stats(self) -> EngineStats:
        """How it stands."""

    def drain(self, timeout_s: float) -> bool:
        """Take no more, let what runs finish; whether all did. The rest is cancelled."""

    def close(self) -> None:
        """Cancel everything and end the thread."""
