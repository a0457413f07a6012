"""Answers put together from their events, for clients that do not stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from apr_core.runtime import EndedBy, TokenLogprob, Usage
from apr_serve.chat.events import (
    ChatEvent,
    Finished,
    FinishReason,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from apr_serve.http.errors import ApiError, as_api_error


@dataclass(slots=True)
class CollectedCall:
    """A call of a tool; `arguments` is the text of one JSON object, if nothing cut it off."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
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
        """Take one event of this answer. Raises ApiError for an answer that failed."""
        if isinstance(event, TextDelta):
            if event.channel == "reasoning":
                self.reasoning += event.text
            else:
                self.text += event.text
                self.logprobs += event.logprobs
        elif isinstance(event, ToolCallStart):
            self.calls.append(CollectedCall(event.id, event.name))
        elif isinstance(event, ToolCallArguments):
            self.calls[event.call].arguments += event.fragment
        else:
            raise_failure(event)
            self.reason, self.ended_by = event.reason, event.ended_by
            self.usage, self.stop_string = event.usage, event.stop_string


def raise_failure(event: Finished) -> None:
    """Raise ApiError if the answer ended by an error, or was cut off by a server that stops."""
    if event.reason == "error":
        raise as_api_error(event.error or RuntimeError("the answer failed"))
    if event.reason == "cancelled":
        raise stopping()


def stopping() -> ApiError:
    """The server takes no more, or ends what runs."""
    return ApiError(
        503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"}
    )


def collect(answers: list[Answer], events: Iterable[ChatEvent]) -> None:
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
