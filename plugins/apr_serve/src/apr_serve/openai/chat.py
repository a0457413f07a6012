"""`/v1/chat/completions`: OpenAI's chat, streamed or whole.

Beyond OpenAI: `reasoning_content` in messages and deltas, and `apr_ended_by` beside
`finish_reason`, which says more precisely why an answer ended.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from apr_core.runtime import Delta, Usage
from apr_serve.chat.collected import CollectedAnswer, total
from apr_serve.chat.connection import noting, tenant_of, while_connected
from apr_serve.chat.events import ChatEvent, ToolCallStart
from apr_serve.chat.models import ServedModels
from apr_serve.chat.service import ChatService
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.http.options import ServerOptions
from apr_serve.http.sse import DONE, EventStream, event
from apr_serve.openai.chat_request import ChatCompletionRequest
from apr_serve.openai.parts import (
    ERRORS,
    Open,
    TokenNames,
    UsageBody,
    failure_events,
    new_head,
    one_stream_option,
    streamed,
    usage_body,
)


class Message(Open):
    """What the model said. `reasoning_content` is there if it thought."""

    role: str
    content: str | None


class Choice(Open):
    """One answer."""

    index: int
    message: Message
    finish_reason: str
    apr_ended_by: str


class ChatCompletion(Open):
    """All answers to a chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody


def router(models: ServedModels, options: ServerOptions) -> APIRouter:
    """Return the route of chats."""
    routes = APIRouter(route_class=BodyRoute, tags=["chat"])

    @routes.post(
        "/v1/chat/completions",
        responses=streamed(ChatCompletion, "The answers, or a stream of chunks.") | ERRORS,
    )
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a chat, once or `n` times, whole or as a stream of chunks."""
        service = models.pick(body.model)
        one_stream_option(body.stream_options, body.stream)
        since, tools = time.perf_counter(), body.tool_use()
        asked = await service.request(body, tenant_of(request))
        note = noting(request, service.model_id)
        special = body.skip_special_tokens is not False
        names = TokenNames(service.model.tokenizer, special=special) if body.logprobs else None
        if not body.stream:
            answers = await while_connected(request, service.complete(asked, tools, note, since))
            return JSONResponse(whole(service, answers, names))
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = ChatChunks(service, asked.n, include_usage, names)
        steps = await service.stream(asked, tools, note, since=since)
        return EventStream(chunks.streamed(steps), options.heartbeat, failure_events)

    return routes


def whole(
    service: ChatService, answers: Sequence[CollectedAnswer], names: TokenNames | None
) -> dict[str, Any]:
    """Return the body of an answer that is not streamed, with log probabilities if `names`."""
    return {
        **new_head("chatcmpl", "chat.completion", service.model_id),
        "choices": [_choice(answer, names) for answer in answers],
        "usage": usage_body(total(answer.usage for answer in answers)),
    }


def _choice(answer: CollectedAnswer, names: TokenNames | None) -> dict[str, Any]:
    content = answer.text if answer.text or not answer.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    details = {"content": names.chat(answer.logprobs), "refusal": None} if names else None
    return {
        "index": answer.index, "message": message, "logprobs": details,
        "finish_reason": answer.reason, "apr_ended_by": answer.ended_by,
    }  # fmt: skip


class ChatChunks:
    """Makes the chunks of one streamed chat."""

    def __init__(
        self, service: ChatService, n: int, include_usage: bool, names: TokenNames | None
    ) -> None:
        self._head = new_head("chatcmpl", "chat.completion.chunk", service.model_id)
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}
        self._n, self._names, self._include_usage = n, names, include_usage
        self._usages: list[Usage] = []

    async def streamed(self, steps: AsyncGenerator[list[ChatEvent], None]) -> AsyncIterator[bytes]:
        """Yield server-sent events, one piece a step."""
        async with aclosing(steps):
            first = {"role": "assistant", "content": ""}
            yield b"".join(self._chunk(index, first) for index in range(self._n))
            async for events in steps:
                if sent := b"".join(map(self._event, events)):
                    yield sent
            yield self._end()

    def _event(self, event_: ChatEvent) -> bytes:
        if isinstance(event_, Delta):
            return self._text(event_) + self._finished(event_)
        function: dict[str, Any]
        if isinstance(event_, ToolCallStart):
            function = {"name": event_.name, "arguments": ""}
            call = {"index": event_.call, "id": event_.id, "type": "function", "function": function}
        else:
            call = {"index": event_.call, "function": {"arguments": event_.fragment}}
        return self._chunk(event_.index, {"tool_calls": [call]})

    def _text(self, delta: Delta) -> bytes:
        reasoning = delta.channel == "reasoning"
        more: dict[str, Any] = {}
        if self._names and not reasoning:
            more["logprobs"] = {"content": self._names.chat(delta.logprobs), "refusal": None}
        if not delta.text and not (more and delta.logprobs):
            return b""
        return self._chunk(
            delta.index, {"reasoning_content" if reasoning else "content": delta.text}, more
        )

    def _finished(self, delta: Delta) -> bytes:
        if not delta.finish_reason:
            return b""
        self._usages.append(delta.usage or Usage())
        reasons = {"finish_reason": delta.finish_reason, "apr_ended_by": delta.ended_by}
        return self._chunk(delta.index, {}, reasons)

    def _chunk(
        self, index: int, delta: dict[str, Any], more: dict[str, Any] | None = None
    ) -> bytes:
        choice: dict[str, Any] = {
            "index": index, "delta": delta, "finish_reason": None, **(more or {}),
        }  # fmt: skip
        return event({**self._head, "choices": [choice], **self._tail})

    def _end(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = usage_body(total(self._usages))
        return event({**self._head, "choices": [], "usage": usage}) + DONE
