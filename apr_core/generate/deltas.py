"""Answers as they are generated, alone or in an engine: pieces of text with their ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apr_core.errors import AprError

Channel = Literal["reasoning", "text"]
# `tool_calls` is what servers make of a stop after calls; nothing here does
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]
# why it ended, finer than the reason: a token that ends answers, a stop string, `max_tokens`, a
# full context, an endless repetition, a constraint that is complete
EndedBy = Literal[
    "stop_token",
    "stop_string",
    "max_tokens",
    "context",
    "repetition",
    "grammar",
    "cancelled",
    "error",
]


def as_exception(error: BaseException) -> Exception:
    """Return an error as an Exception: native code that panics may raise other classes."""
    if isinstance(error, Exception):
        return error
    return AprError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its natural log probability before sampling parameters, and rivals."""

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
    """One step's addition to answer `index`: whole characters, nothing of a stop string.

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
