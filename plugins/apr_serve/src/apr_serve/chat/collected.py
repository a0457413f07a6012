"""Answers put together from their events, for clients that do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from apr_core.runtime import Delta, EndedBy, FinishReason, TokenLogprob, Usage
from apr_serve.chat.events import ChatEvent, ToolCallStart
from apr_serve.http.errors import ApiError, as_api_error


@dataclass(slots=True)
class CollectedCall:
    """A call of a tool; `arguments` is the text of one JSON object, if nothing cut it off."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class CollectedAnswer:
    """All of one answer."""

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
    """What a client is told of an answer that ended by an error, or as the server stops."""
    if delta.finish_reason == "error":
        return as_api_error(delta.error or RuntimeError("the answer failed"))
    return stopping()


def stopping() -> ApiError:
    """The server takes no more, or ends what runs."""
    return ApiError(
        503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"}
    )


def collect(answers: list[CollectedAnswer], events: Iterable[ChatEvent]) -> None:
    """Hand each event to its answer."""
    for event in events:
        answers[event.index].add(event)


def total(usages: Iterable[Usage]) -> Usage:
    """Usage of several answers to one prompt, which counts once."""
    usages = list(usages)
    first = usages[0] if usages else Usage()
    return Usage(
        first.prompt_tokens,
        first.cached_tokens,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
    )
