"""From the engine's thread to the event loop: one wake-up a step, for any number of streams."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from apr_core.runtime import Delta, TokenLogprob
from apr_serve.engine.interface import EngineRequest, GenerationEngine, Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Deliveries(AsyncIterator[list[Delta]]):
    """What an engine delivers to one request; each item has all deltas that have arrived.

    Ends after the last delta of the last answer. `close` cancels what is still running.
    """

    def __init__(self, answers: int, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.ticket: Ticket | None = None
        self._unfinished = answers
        self._arrived: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failed: Exception | None = None
        self.alarm: asyncio.TimerHandle | None = None  # fires when it has taken too long

    def feed(self, deltas: Sequence[Delta]) -> None:
        """Add deltas that arrived; called in the event loop."""
        self._arrived.extend(deltas)
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self, error: Exception) -> None:
        """Cancel what has not ended, and raise the error to whoever iterates."""
        if self._unfinished:
            self.close()
            self._failed = error
            self._wake()

    async def __anext__(self) -> list[Delta]:
        if not self._arrived and not self._unfinished:
            raise StopAsyncIteration
        if not self._arrived:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failed:
            raise self._failed
        taken = list(self._arrived)
        self._arrived.clear()
        self._unfinished -= sum(delta.finish_reason is not None for delta in taken)
        if not self._unfinished and self.alarm:
            self.alarm.cancel()
        return taken

    def close(self) -> None:
        """Cancel the request if it has not ended."""
        if self.alarm:
            self.alarm.cancel()
        if self._unfinished and self.ticket:
            self.ticket.cancel()


class Bridge:
    """Submits requests of one event loop to one engine. Takes the engine's `flushed` for itself."""

    def __init__(self, engine: GenerationEngine) -> None:
        self.engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[tuple[Callable[[Any], None], Any]] = deque()
        engine.flushed = self._flushed

    def submit(self, request: EngineRequest) -> Deliveries:
        """Queue a request from within the event loop. Raises Busy or UsageError."""
        self._loop = asyncio.get_running_loop()
        deliveries = Deliveries(request.n, len(request.prompt_ids))
        feed = deliveries.feed
        deliveries.ticket = self.engine.submit(
            request, lambda deltas: self._arrived.append((feed, deltas))
        )
        return deliveries

    async def embed(self, ids: Sequence[int], tenant: str = "") -> NDArray[np.float32]:
        """Return the mean [hidden] of the last hidden states. Raises Busy or AprError."""
        embed = self.engine.embed
        return await self._result(lambda deliver: embed(ids, deliver, tenant))  # type: ignore[no-any-return]

    async def score(self, ids: Sequence[int], top: int, tenant: str = "") -> list[TokenLogprob]:
        """Return the log probabilities of ids[1:]. Raises Busy or AprError."""
        score = self.engine.score
        return await self._result(lambda deliver: score(ids, top, deliver, tenant))  # type: ignore[no-any-return]

    async def _result(self, submit: Callable[[Callable[[Any], None]], Ticket]) -> Any:
        """Return the engine's single result. The request is cancelled if the caller is."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = self._loop.create_future()

        def set_result(result: Any) -> None:
            if future.done():  # the client has disconnected
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        ticket = submit(lambda result: self._arrived.append((set_result, result)))
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def _flushed(self) -> None:
        """Hand the loop all deltas of a step; called in the engine's thread."""
        batch = []
        while self._arrived:
            batch.append(self._arrived.popleft())
        if batch and self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_spread, batch)


def _spread(batch: Sequence[tuple[Callable[[Any], None], Any]]) -> None:
    for receive, what in batch:
        receive(what)
