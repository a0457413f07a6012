"""Server-sent events: a streamed response with heartbeats, which ends when the client leaves.

Heartbeats keep proxies from closing the connection while a long prompt is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from apr_serve.http.errors import EXPECTED

HEARTBEAT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def event(data: object, name: str | None = None) -> bytes:
    """Return one event with a JSON body, named if the protocol names events."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {_encode(data)}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """Sends `events`, each bytes of one or more whole events, as they come.

    The iterator is closed when it ends and as soon as the client disconnects: that cancels the work
    behind it. After `heartbeat_s` seconds without an event a comment is sent. An error becomes the
    last event, which `failure` returns for it.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        heartbeat_s: float = 10.0,
        failure: Callable[[Exception], bytes] | None = None,
    ) -> None:
        super().__init__(headers=HEADERS)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        self._events, self._heartbeat_s = events, heartbeat_s
        self._failure, self._sent_at = failure, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the events end or the client disconnects."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        stream = asyncio.ensure_future(self._stream(send))
        disconnection = asyncio.ensure_future(_disconnected(receive))
        beat = asyncio.ensure_future(self._beat(send))
        try:
            await asyncio.wait({stream, disconnection}, return_when=asyncio.FIRST_COMPLETED)
            if not stream.done():  # for the log: the status was sent long ago
                scope.get("state", {}).get("details", {})["ended_by"] = "client_left"
        finally:
            for task in (stream, disconnection, beat):
                task.cancel()
            await asyncio.gather(disconnection, beat, return_exceptions=True)
            with contextlib.suppress(asyncio.CancelledError):
                await stream

    async def _stream(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._sent_at = clock()
        try:
            try:
                async for chunk in self._events:
                    await send(_body(chunk, True))
                    self._sent_at = clock()
            except Exception as error:
                if self._failure is None:
                    raise
                await send(_body(self._failure(error), True))
                if not isinstance(error, EXPECTED):
                    raise
            await send(_body(b"", False))
        finally:
            close = getattr(self._events, "aclose", None)
            if close:
                await close()

    async def _beat(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.05, self._sent_at + self._heartbeat_s - clock()))
            if clock() - self._sent_at >= self._heartbeat_s:
                self._sent_at = clock()
                await send(_body(HEARTBEAT, True))


def _body(chunk: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    """Return once the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
