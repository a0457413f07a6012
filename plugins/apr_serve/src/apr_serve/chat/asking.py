"""What routes of every protocol do with a request: whose it is, is the client there, its log."""

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
LEFT = 499  # what logs call a client that went away before the answer


def owner_of(request: Request) -> str:
    """Who asks, as the engine shares itself among owners: a key's number, else the address."""
    return str(request.scope["state"].get("owner", ""))


class Noting(Protocol):
    """Puts what was done, by the answers' last deltas, into a request's log line."""

    def __call__(self, ends: Sequence[Delta], usage: Usage | None = None) -> None:
        """Take the last deltas, and the usage if they do not answer one prompt."""


def noting(request: Request, model: str) -> Noting:
    """What notes how a request to a model ended."""

    def note(ends: Sequence[Delta], usage: Usage | None = None) -> None:
        usage = usage or total(end.usage or Usage() for end in ends)
        request.scope["state"].get("details", {}).update(
            model=model, prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ended_by=",".join(dict.fromkeys(end.ended_by or "" for end in ends)),
        )  # fmt: skip

    return note


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; it is cancelled when the client goes away (ApiError that nobody reads)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(LEFT, "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def take_all(
    request: Request, steps: AsyncGenerator[list[ChatEvent], None],
    push: Callable[[list[ChatEvent]], object],
) -> None:  # fmt: skip
    """Push all of an answer that is not streamed. Raises ApiError if it fails."""

    async def take() -> None:
        async with aclosing(steps):
            async for events in steps:
                push(events)

    await while_connected(request, take())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
