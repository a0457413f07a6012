"""A request with one answer, on its way from the service to any protocol's translation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from starlette.requests import Request

from apr_serve.chat.asking import note
from apr_serve.chat.collected import raise_failure
from apr_serve.chat.events import ChatEvent, Finished
from apr_serve.chat.service import ChatService, ChatStream


async def steps(
    service: ChatService, stream: ChatStream, request: Request
) -> AsyncGenerator[Sequence[ChatEvent], None]:
    """The answer's events, a list a step. Its end is noted in the request's log line.

    Raises ApiError, after all that came before, if the answer fails. Closing it cancels the answer.
    """
    try:
        async for events in stream:
            last = events[-1] if events else None
            if not isinstance(last, Finished):
                yield events
                continue
            note(request, service.model_id, last.usage, [last.ended_by])
            if last.reason in ("error", "cancelled"):
                yield events[:-1]
                raise_failure(last)
            yield events
    finally:
        await stream.aclose()
