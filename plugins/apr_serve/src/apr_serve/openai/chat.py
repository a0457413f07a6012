"""`/v1/chat/completions`: OpenAI's chat, streamed or whole.

Beyond OpenAI: `reasoning_content` in messages and deltas, and `apr_ended_by` beside
`finish_reason`, which says more finely why an answer ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from apr_serve.chat.asking import note, owner_of, while_connected
from apr_serve.chat.collected import Answer, raise_failure, total
from apr_serve.chat.events import ChatEvent, Finished, TextDelta, ToolCallStart
from apr_serve.chat.models import ServedModels
from apr_serve.chat.service import ChatService, ChatStream
from apr_serve.http.errors import EXPECTED
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
    """The route of chats."""
    routes = APIRouter(tags=["chat"])

    @routes.post(
        "/v1/chat/completions",
        responses=streamed(ChatCompletion, "The answers, or a stream of chunks.") | ERRORS,
    )
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """An answer to a chat, or `n` of them, whole or as a stream of chunks."""
        service = models.pick(body.model)
        one_stream_option(body.stream_options, body.stream)
        chat = body.as_chat(owner_of(request))
        if not body.stream:
            answers = await while_connected(request, service.complete(chat))
            usage = total(answer.usage for answer in answers)
            note(request, service.model_id, usage, [answer.ended_by for answer in answers])
            return JSONResponse(whole(service, answers, body.logprobs is True))
        stream = await service.stream(chat)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = ChatChunks(service, chat.n, include_usage, body.logprobs is True, request)
        return EventStream(chunks.events(stream), options.heartbeat)

    return routes


def whole(service: ChatService, answers: Sequence[Answer], logprobs: bool) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    names = TokenNames(service.model.tokenizer)
    return {
        **new_head("chatcmpl", "chat.completion", service.model_id),
        "choices": [_choice(answer, names, logprobs) for answer in answers],
        "usage": usage_body(total(answer.usage for answer in answers)),
    }


def _choice(answer: Answer, names: TokenNames, logprobs: bool) -> dict[str, Any]:
    content = answer.text if answer.text or not answer.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]  # fmt: skip
    found = {"content": names.chat(answer.logprobs), "refusal": None} if logprobs else None
    return {
        "index": answer.index, "message": message, "logprobs": found,
        "finish_reason": answer.reason, "apr_ended_by": answer.ended_by,
    }  # fmt: skip


class ChatChunks:
    """Makes the chunks of one streamed chat."""

    def __init__(
        self, service: ChatService, n: int, include_usage: bool, logprobs: bool, request: Request
    ) -> None:
        self._service, self._n, self._request = service, n, request
        self._head = new_head("chatcmpl", "chat.completion.chunk", service.model_id)
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}
        self._names = TokenNames(service.model.tokenizer)
        self._logprobs, self._include_usage = logprobs, include_usage
        self._ends: list[Finished] = []

    async def events(self, stream: ChatStream) -> AsyncIterator[bytes]:
        """Server-sent events, a step's together. Whatever goes wrong is the last event."""
        try:
            first = {"role": "assistant", "content": ""}
            yield b"".join(self._chunk(index, first) for index in range(self._n))
            async for events in stream:
                sent = b"".join(map(self._event, events))
                if sent:
                    yield sent
            yield self._end()
        except Exception as error:
            yield failure_events(error)
            if not isinstance(error, EXPECTED):
                raise
        finally:
            await stream.aclose()

    def _event(self, event_: ChatEvent) -> bytes:
        if isinstance(event_, TextDelta):
            return self._text(event_)
        if isinstance(event_, Finished):
            raise_failure(event_)
            self._ends.append(event_)
            return self._chunk(event_.index, {}, finished=event_)
        function: dict[str, Any]
        if isinstance(event_, ToolCallStart):
            function = {"name": event_.name, "arguments": ""}
            call = {"index": event_.call, "id": event_.id, "type": "function", "function": function}
        else:
            call = {"index": event_.call, "function": {"arguments": event_.fragment}}
        return self._chunk(event_.index, {"tool_calls": [call]})

    def _text(self, delta: TextDelta) -> bytes:
        reasoning = delta.channel == "reasoning"
        told = {} if reasoning or not self._logprobs else {"logprobs": self._found(delta)}
        if not delta.text and not (told and delta.logprobs):
            return b""
        return self._chunk(
            delta.index, {"reasoning_content" if reasoning else "content": delta.text}, told
        )

    def _found(self, delta: TextDelta) -> dict[str, Any]:
        return {"content": self._names.chat(delta.logprobs), "refusal": None}

    def _chunk(
        self, index: int, delta: dict[str, Any], more: dict[str, Any] | None = None,
        finished: Finished | None = None,
    ) -> bytes:  # fmt: skip
        choice: dict[str, Any] = {
            "index": index, "delta": delta, "finish_reason": None, **(more or {}),
        }  # fmt: skip
        if finished:
            choice |= {"finish_reason": finished.reason, "apr_ended_by": finished.ended_by}
        return event({**self._head, "choices": [choice], **self._tail})

    def _end(self) -> bytes:
        usage = total(end.usage for end in self._ends)
        note(self._request, self._service.model_id, usage, [end.ended_by for end in self._ends])
        if not self._include_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage_body(usage)}) + DONE
