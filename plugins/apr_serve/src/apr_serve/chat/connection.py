"""What routes of every protocol do with a request: find its tenant, watch the connection, log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from apr_core.runtime import Delta, Usage
from apr_serve.chat.collected import total
from apr_serve.chat.events import ChatEvent
from apr_serve.http.errors import ApiError

Result = TypeVar("Result")
LEFT = 499  # status in logs for a client that disconnected before the answer


def tenant_of(request: Request) -> str:
    """Return the tenant for fair scheduling: the API key's number, else the client's address."""
    return str(request.scope["state"].get("tenant", ""))


class Noting(Protocol):
    """Adds the model, token counts and end reasons of a request to its log line."""

    def __call__(self, ends: Sequence[Delta], usage: Usage | None = None) -> None:
        """Take the last deltas, and the usage if they do not answer one prompt."""


def noting(request: Request, model: str) -> Noting:
    """Return a function that notes in the log how a request to a model ended."""

    def note(ends: Sequence[Delta], usage: Usage | None = None) -> None:
        usage = usage or total(end.usage or Usage() for end in ends)
        request.scope["state"].get("details", {}).update(
            model=model,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ended_by=",".join(dict.fromkeys(end.ended_by or "" for end in ends)),
        )

    return note


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the work's result; cancel the work and raise ApiError when the client disconnects."""
    task = asyncio.ensure_future(work)
    disconnection = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(LEFT, "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        disconnection.cancel()
        await asyncio.gather(task, disconnection, return_exceptions=True)


async def take_all(
    request: Request,
    steps: AsyncGenerator[list[ChatEvent], None],
    push: Callable[[list[ChatEvent]], object],
) -> None:
    """Push all steps of an answer that is not streamed. Raises ApiError if it fails."""

    async def take() -> None:
        async with aclosing(steps):
            async for events in steps:
                push(events)

    await while_connected(request, take())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
