"""Answers put together from their events, for clients that do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from apr_core.runtime import Delta, EndedBy, FinishReason, TokenLogprob, Usage
from apr_serve.chat.events import ChatEvent, ToolCallStart
from apr_serve.http.errors import ApiError, as_api_error


@dataclass(slots=True)
class CollectedCall:
    """A tool call; `arguments` is the text of one JSON object, unless it was cut off."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class CollectedAnswer:
    """One whole answer."""

    index: int
    text: str = ""
    reasoning: str = ""
    calls: list[CollectedCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of text, not of reasoning
    reason: FinishReason = "stop"
    ended_by: EndedBy = "stop_token"
    usage: Usage = field(default_factory=Usage)
    stop_string: str | None = None

    def add(self, event: ChatEvent) -> None:
        """Take one event of this answer."""
        if isinstance(event, Delta):
            self._add(event)
        elif isinstance(event, ToolCallStart):
            self.calls.append(CollectedCall(event.id, event.name))
        else:
            self.calls[event.call].arguments += event.fragment

    def _add(self, delta: Delta) -> None:
        if delta.channel == "reasoning":
            self.reasoning += delta.text
        else:
            self.text += delta.text
            self.logprobs += delta.logprobs
        if delta.finish_reason:
            self.reason, self.ended_by = delta.finish_reason, delta.ended_by or self.ended_by
            self.usage, self.stop_string = delta.usage or self.usage, delta.stop_string


def failure(delta: Delta) -> ApiError:
    """Return the error for a client whose answer ended by an error, or because the server stops."""
    if delta.finish_reason == "error":
        return as_api_error(delta.error or RuntimeError("the answer failed"))
    return stopping()


def stopping() -> ApiError:
    """Return the error for requests that arrive or still run while the server shuts down."""
    return ApiError(
        503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"}
    )


def collect(answers: list[CollectedAnswer], events: Iterable[ChatEvent]) -> None:
    """Add each event to the answer it belongs to."""
    for event in events:
        answers[event.index].add(event)


def total(usages: Iterable[Usage]) -> Usage:
    """Return the usage of several answers to one prompt; the prompt counts once."""
    usages = list(usages)
    first = usages[0] if usages else Usage()
    return Usage(
        first.prompt_tokens,
        first.cached_tokens,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
    )
