"""OpenAI's `/v1/responses`, for its clients as they are.

Responses are stored in memory, up to a size. Their tenant may continue them by
`previous_response_id`, fetch and delete them. `apr_ended_by` says more precisely than `status` why
an answer ended.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from apr_serve.chat.connection import noting, take_all, tenant_of
from apr_serve.chat.events import ChatEvent
from apr_serve.chat.models import ServedModels
from apr_serve.http.errors import EXPECTED, ApiError, as_api_error
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.http.sse import EventStream, event
from apr_serve.openai.parts import ERRORS, Open, TokenNames, streamed
from apr_serve.responses.events import ResponseEvents, response_head
from apr_serve.responses.input_items import InputItems, Order, input_items
from apr_serve.responses.items import Item
from apr_serve.responses.request import ResponsesRequest
from apr_serve.responses.store import ResponseStore, Stored


class ResponseBody(Open):
    """A response: its output is messages, reasoning and calls."""

    id: str
    object: str
    status: str
    model: str
    output: list[dict[str, Any]]


WHOLE: dict[int | str, dict[str, Any]] = {200: {"model": ResponseBody}}
INPUT: dict[int | str, dict[str, Any]] = {200: {"model": InputItems}}
STREAMED = streamed(ResponseBody, "The response, or a stream of events.", named=True)
PARAMS = {"messages": "input", "response_format": "text.format"}  # as this protocol calls them


def router(models: ServedModels, heartbeat_s: float) -> APIRouter:
    """Return the routes, with their own store. Silent streams get a comment every `heartbeat_s`."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/responses", tags=["responses"])
    store = ResponseStore()

    @routes.post("", responses=STREAMED | ERRORS)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer items, whole or as server-sent events. Stored unless `store` is false."""
        service, tenant = models.pick(body.model), tenant_of(request)
        earlier = _earlier(store, body.previous_response_id, tenant)
        body = body.continuing(store.resolved(body.items, tenant), earlier)
        names = TokenNames(service.model.tokenizer)
        logprobs = None if body.wanted_logprobs is None else names.chat
        events = ResponseEvents(response_head(body, service.model_id), logprobs, body.known_tools)

        def keep() -> None:
            if body.store is not False:
                store.put(events.response, body.items, tenant)

        try:
            since, asked = time.perf_counter(), await service.request(body, tenant)
            note = noting(request, service.model_id)
            steps = await service.stream(asked, body.tool_use(), note, since=since)
        except ApiError as error:
            error.param = PARAMS.get(error.param or "", error.param)
            raise
        if body.stream:
            return EventStream(_streamed(steps, events, keep), heartbeat_s, _failed(events, keep))
        await take_all(request, steps, events.push)
        keep()
        return JSONResponse(events.response)

    @routes.get("/{response_id}", responses=WHOLE | ERRORS)
    async def get_response(
        response_id: str, request: Request, stream: Annotated[bool, Query()] = False
    ) -> Response:
        """Return a stored response."""
        if stream:
            raise ApiError(400, "a response that is kept is not streamed again", "stream")
        return JSONResponse(_known(store, response_id, tenant_of(request)).response)

    @routes.get("/{response_id}/input_items", responses=INPUT | ERRORS)
    async def list_input_items(
        response_id: str,
        request: Request,
        order: Annotated[Order, Query()] = "desc",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query()] = None,
    ) -> Response:
        """List the input items of a stored response."""
        stored = _known(store, response_id, tenant_of(request))
        return JSONResponse(input_items(stored, limit, order, after))

    @routes.delete("/{response_id}", responses=ERRORS)
    async def delete_response(response_id: str, request: Request) -> Response:
        """Delete a response; responses that continue it cannot be continued any more."""
        _known(store, response_id, tenant_of(request))
        store.delete(response_id, tenant_of(request))
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    return routes


async def _streamed(
    steps: AsyncGenerator[list[ChatEvent], None], events: ResponseEvents, keep: Callable[[], None]
) -> AsyncIterator[bytes]:
    """Yield the events as bytes, one piece for all that arrived together."""
    async with aclosing(steps):
        yield _sent(events.begin())
        async for step in steps:
            yield _sent(events.push(step))
    keep()


def _failed(events: ResponseEvents, keep: Callable[[], None]) -> Callable[[Exception], bytes]:
    """Return a function that ends a failed response, which is stored all the same."""

    def failed(error: Exception) -> bytes:
        sent = _sent(events.fail(as_api_error(error).message))
        if isinstance(error, EXPECTED):
            keep()
        return sent

    return failed


def _earlier(store: ResponseStore, previous: str | None, tenant: str) -> list[Item]:
    """Return the conversation that a request continues. Raises ApiError if it is not stored."""
    if previous is None:
        return []
    try:
        return store.conversation(previous, tenant)
    except KeyError as missing:
        raise ApiError(
            400,
            f"previous response {missing} is not kept here (any more): send the whole input",
            "previous_response_id",
            "previous_response_not_found",
        ) from None


def _known(store: ResponseStore, response_id: str, tenant: str) -> Stored:
    stored = store.get(response_id, tenant)
    if stored is None:
        raise ApiError(404, f"response {response_id!r} is not kept here (any more)", "response_id")
    return stored


def _sent(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
