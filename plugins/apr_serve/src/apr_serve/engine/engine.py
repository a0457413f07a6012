"""The engine: many requests on one model, a step at a time.

Its own thread loops: it takes new requests and cancellations, admits what fits, runs one step for
all running answers, and spends the rest of the time on prompts (`scheduler.py`). Greedy answers
have the same bits as the same request alone: rows do not depend on their batch, prompts are cut
only where `boundaries.py` says, and only state that a prefill produced is reused.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from apr_core.plugin import UsageError
from apr_core.runtime import (
    EVERY,
    GRID,
    ChunkBoundaries,
    Delta,
    EndedBy,
    TokenLogprob,
    as_exception,
    boundaries_of,
    check_prompt,
    limit_of,
)
from apr_serve.engine.groups import EmbeddingGroup, GenerationGroup, ScoringGroup, SequenceGroup
from apr_serve.engine.interface import Busy, EngineRequest, EngineStats, Ticket
from apr_serve.engine.memory import MemoryBudget, default_limit
from apr_serve.engine.prefix_cache import PrefixCache, snapshot_positions
from apr_serve.engine.scheduler import Scheduler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.runtime import Model

log = logging.getLogger("apr.engine")
Deliver = Callable[[Sequence[Delta]], None]
LEAST_ANSWER = 1024  # tokens of an answer without a limit, where memory is small
PREFIXES = 4  # one part in this many of the memory is for prefixes when answers have no limit


def _nothing() -> None:
    pass


class Engine:
    """Runs requests on a model, `slots` answers at once. Implements `GenerationEngine`.

    `memory_bytes` is for the state of sequences and the prefix cache together, by default a share
    of what the machine or the device has left; `cache_bytes` limits the cache within it, 0 means
    none. At most `queue_limit` requests wait, and one more of each tenant who has none waiting.
    States of prompts are kept every `snapshot_every` tokens, and where messages begin. Nothing else
    may use the model meanwhile. Raises UsageError for sizes that make no sense.

    All time is taken from `clock`, in seconds. Without `background` there is no thread: the caller
    calls `turn` until nothing is left, then `close`.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 8,
        memory_bytes: int | None = None,
        cache_bytes: int | None = None,
        queue_limit: int = 128,
        snapshot_every: int = EVERY,
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        if slots < 1 or queue_limit < 1:
            raise UsageError(f"an engine needs slots and a queue, found {slots} and {queue_limit}")
        if snapshot_every < GRID or snapshot_every % GRID:
            raise UsageError(f"snapshot_every must be a multiple of {GRID}, found {snapshot_every}")
        self.model, self.slots, self.queue_limit = model, slots, queue_limit
        self.flushed: Callable[[], None] = _nothing
        headers = boundaries_of(model)
        self._boundaries = ChunkBoundaries(headers.answer, headers.question, snapshot_every)
        if memory_bytes is None:
            memory_bytes = default_limit(model.backend, _file_bytes(model), model.step_bytes())
        self.clock = clock
        self._budget = budget = MemoryBudget(memory_bytes, cache_bytes)
        self._cache = PrefixCache(model, lambda: budget.for_cache)
        self._scheduler = Scheduler(model, budget, self._cache, slots, self._group_ended, clock)
        self._lock = threading.Lock()  # guards what follows
        self._inbox: list[SequenceGroup] = []
        self._waiting = self._live = 0  # requests without a slot, and all that have not ended
        self._tenants_waiting: set[str] = set()
        self._accepts, self._closing = True, False
        self._all_over = threading.Condition(self._lock)
        self._wake, self._interrupted = threading.Event(), False
        self._stats = EngineStats()
        self._publish()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="apr-engine", daemon=True)
            self._thread.start()

    def submit(self, request: EngineRequest, deliver: Deliver) -> Ticket:
        """Queue a request. Raises Busy, or UsageError if it can never run."""
        limit, reason = self._limit(request)
        if not 1 <= request.n <= self.slots:
            raise UsageError(
                f"n must be between 1 and {self.slots}, the answers made at once, found {request.n}"
            )
        group = GenerationGroup(request, deliver, self._woken, limit, reason)
        group.boundaries = self._boundaries(request.prompt_ids)
        group.snapshots_at = snapshot_positions(group.boundaries, self._boundaries.every)
        return self._enqueue(group, limit)

    def embed(
        self,
        ids: Sequence[int],
        deliver: Callable[[NDArray[np.float32] | Exception], None],
        tenant: str = "",
    ) -> Ticket:
        """Queue a prompt whose mean last hidden state [hidden] is wanted."""
        check_prompt(self.model, ids)
        group = EmbeddingGroup(ids, deliver, self._woken, tenant)
        group.boundaries = self._boundaries(ids)
        return self._enqueue(group)

    def score(
        self,
        ids: Sequence[int],
        top: int,
        deliver: Callable[[list[TokenLogprob] | Exception], None],
        tenant: str = "",
    ) -> Ticket:
        """Queue a prompt for the log probabilities of ids[1:], each with its `top` alternatives."""
        check_prompt(self.model, ids)
        valid = self.model.tokenizer.valid_size
        group = ScoringGroup(ids, top, self.model.logits_of, valid, deliver, self._woken, tenant)
        group.boundaries = self._boundaries(ids)
        return self._enqueue(group)

    def _limit(self, request: EngineRequest) -> tuple[int, EndedBy]:
        """Return the most tokens an answer may have, and the end reason when it has them.

        A request without a limit gets what its share of the memory holds, less a part for prefixes:
        otherwise all prefixes would be dropped whenever all slots are taken.
        """
        limit, reason = limit_of(self.model, request.prompt_ids, request.max_tokens)
        if request.max_tokens is not None:
            return limit, reason
        prompt = len(request.prompt_ids)
        bytes_at, budget = self.model.sequence_bytes, self._budget
        shared = budget.limit - min(budget.cache_limit, budget.limit // PREFIXES)
        share = max(shared // self.slots, bytes_at(prompt + LEAST_ANSWER))
        share = min(share, budget.limit // request.n)
        fitting = bisect_right(range(1, limit + 1), share, key=lambda n: bytes_at(prompt + n - 1))
        return max(fitting, 1), reason

    def _reserve(self, group: SequenceGroup, length: int) -> None:
        """Set the bytes that each answer reserves. Raises UsageError if it can never run."""
        count, each = group.answers_wanted, self.model.sequence_bytes(length)
        if each * count > self._budget.limit:
            raise UsageError(
                f"{count} x {length} tokens need {each * count >> 20} MiB of state, the engine has "
                f"{self._budget.limit >> 20} MiB",
                "Ask for fewer tokens or answers, or give the engine more memory.",
            )
        group.bytes_each = each

    def _enqueue(self, group: SequenceGroup, limit: int = 1) -> Ticket:
        self._reserve(group, len(group.ids) + limit - 1)
        with self._lock:
            if not self._accepts:
                raise Busy("the engine is stopping and takes no more requests")
            self._check_queue(group.tenant)
            self._waiting += 1
            self._tenants_waiting.add(group.tenant)
            self._live += 1
            self._inbox.append(group)
        self._wake.set()
        return group

    def _check_queue(self, tenant: str) -> None:
        """Raise Busy if the queue is full.

        A tenant with nothing waiting may still queue one request, up to twice the limit: no tenant
        can keep all others out.
        """
        limit = self.queue_limit * (1 if tenant in self._tenants_waiting else 2)
        if self._waiting >= limit:
            raise Busy(f"{self._waiting} requests are waiting already, which is the limit")

    def _woken(self) -> None:
        self._interrupted = True
        self._wake.set()

    def stats(self) -> EngineStats:
        """Return current counts of requests, slots, memory and tokens."""
        return replace(self._stats, queued=self._waiting)

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests, let running ones finish; return False if any is cancelled."""
        with self._lock:
            self._accepts = False
            finished = self._all_over.wait_for(lambda: not self._live, timeout_s)
        if not finished:
            self._closing = True
            self._woken()
            with self._lock:
                self._all_over.wait_for(lambda: not self._live)
        return finished

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._lock:
            self._accepts = False
        self._closing = True
        self._woken()
        if self._thread is None:
            self._end()
        elif threading.current_thread() is not self._thread:
            self._thread.join()

    def _publish(self) -> None:
        scheduler, totals = self._scheduler, self._scheduler.totals
        self._stats = EngineStats(
            slots=scheduler.slots,
            running=len(scheduler.decoding),
            prefilling=len(scheduler.prefilling),
            memory_bytes=self.model.state_bytes(),
            reserved_bytes=self._budget.reserved,
            memory_limit=self._budget.limit,
            cache_bytes=self._cache.nbytes,
            cache_entries=self._cache.entries,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            generated_tokens=totals.generated_tokens,
            finished=totals.finished,
            cancelled=totals.cancelled,
            failed=totals.failed,
            steps=totals.steps,
        )

    # The engine's thread

    def _run(self) -> None:
        while True:
            if self._scheduler.idle and not self._inbox and not self._closing:
                self._wake.wait()
            self._wake.clear()
            if self._closing:
                self._end()
                return
            self.turn()

    def _end(self) -> None:
        self._take_inbox()
        self._scheduler.cancel(everything=True)
        self._cache.clear()
        self._deliver()

    def turn(self, interrupted: Callable[[], bool] | None = None) -> bool:
        """Take one step and prefill for a while; return whether anything is left to do.

        `interrupted` is asked between parts of a prompt whether to return early, by default whether
        a request was cancelled.
        """
        try:
            self._take_inbox()
            self._take_cancellations()
            self._scheduler.admit()
            self._scheduler.decode()
            if self._scheduler.prefilling:
                self._deliver()
                self._scheduler.prefill(interrupted or (lambda: self._interrupted))
            self._deliver()
        except BaseException as error:  # a bug of ours: all requests are lost, the engine is not
            log.exception("the engine failed: all requests end with this error")
            self._scheduler.fail(as_exception(error))
        return not self._scheduler.idle or bool(self._inbox)

    def _take_inbox(self) -> None:
        with self._lock:
            arrived, self._inbox = self._inbox, []
        for group in arrived:
            self._scheduler.queue.push(group)

    def _take_cancellations(self) -> None:
        if self._interrupted:
            self._interrupted = False
            self._scheduler.cancel()

    def _deliver(self) -> None:
        """Deliver results once memory is released, so that it is free when callers see an end."""
        with self._lock:
            self._waiting = len(self._scheduler.queue) + len(self._inbox)
            self._tenants_waiting = self._scheduler.queue.tenants | {
                group.tenant for group in self._inbox
            }
        self._publish()
        if self._scheduler.deliver():
            with suppress(BaseException):  # a listener's error must not stop the engine
                self.flushed()

    def _group_ended(self, group: SequenceGroup) -> None:
        with self._lock:
            self._live -= 1
            self._all_over.notify_all()


def _file_bytes(model: Model) -> int:
    return model.file.path.stat().st_size
