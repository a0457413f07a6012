"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`, for its clients as they are.

`apr_ended_by` says more precisely than `stop_reason` why an answer ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from apr_serve.anthropic.errors import ERRORS, NO_THREADS, PATH, anthropic_shape
from apr_serve.anthropic.events import Event, MessageEvents
from apr_serve.anthropic.request import MessagesRequest, PromptRequest
from apr_serve.chat.connection import noting, take_all, tenant_of
from apr_serve.chat.events import ChatEvent
from apr_serve.chat.models import ServedModels
from apr_serve.http.errors import ApiError, as_api_error
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.http.sse import EventStream, event
from apr_serve.openai.parts import Open, streamed


class MessageBody(Open):
    """An answer: its content are blocks of text, thinking and calls."""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None


class TokenCount(Open):
    """How long a prompt is."""

    input_tokens: int


COUNT: dict[int | str, dict[str, Any]] = {200: {"model": TokenCount}}
ANSWERS = streamed(MessageBody, "The message, or a stream of events.", named=True)


def router(models: ServedModels, heartbeat_s: float) -> APIRouter:
    """Return the routes. Silent streams get a comment every `heartbeat_s` seconds."""
    routes = APIRouter(route_class=BodyRoute, prefix=PATH, tags=["messages"])

    @routes.post("", responses=ANSWERS | ERRORS)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        service = models.pick(body.model)
        if body.thread is not None:
            message = "threads are not kept here: send the whole conversation, without thread"
            raise ApiError(400, message, "thread", NO_THREADS)
        since, asked = time.perf_counter(), await service.request(body, tenant_of(request))
        events = MessageEvents(service.model_id, hide_thinking=body.hides_thinking)
        if body.context_management is not None:
            events.message["context_management"] = {"applied_edits": []}
        note = noting(request, service.model_id)
        steps = await service.stream(asked, body.tool_use(), note, since=since)
        if body.stream:
            started = events.begin(len(asked.prompt_ids))
            return EventStream(_streamed(steps, events, started), heartbeat_s, _failed)
        await take_all(request, steps, events.push)
        return JSONResponse(events.message)

    @routes.post("/count_tokens", responses=COUNT | ERRORS)
    async def count_tokens(body: PromptRequest) -> Response:
        """Count the tokens of the prompt that these messages make."""
        service = models.pick(body.model)
        ids = await asyncio.to_thread(service.prompt_ids, body)
        return JSONResponse({"input_tokens": len(ids)})

    return routes


async def _streamed(
    steps: AsyncGenerator[list[ChatEvent], None], events: MessageEvents, started: list[Event]
) -> AsyncIterator[bytes]:
    """Yield the events as bytes, one piece for all that arrived together."""
    async with aclosing(steps):
        yield _sent(started)
        async for step in steps:
            yield _sent(events.push(step))


def _failed(error: Exception) -> bytes:
    return _sent([anthropic_shape(as_api_error(error))])


def _sent(events: list[Event]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
