"""The scheduler: what the engine's thread does in a turn. Nothing here is thread-safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr_core.runtime import (
    CHUNK,
    GenerationSequence,
    LastLogits,
    Vocabulary,
    as_exception,
    choose_tokens,
    decode_step,
)
from apr_serve.engine.jobs import GenerationJob, Job, RowsJob
from apr_serve.engine.memory import MemoryBudget
from apr_serve.engine.prefill import Forward, PrefillController, take_turns
from apr_serve.engine.prefix_cache import PrefixCache
from apr_serve.engine.queue import FairQueue
from apr_serve.engine.sharing import readers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.runtime import Model


@dataclass(slots=True)
class Totals:
    """Counts since the start. A request ends as one of finished, cancelled and failed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0


class Scheduler:
    """Moves jobs through queue, prefill and decoding. `slots` answers run at once.

    `gone` is called with every job that has ended, after its last delivery.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        budget: MemoryBudget,
        cache: PrefixCache,
        slots: int,
        job_over: Callable[[Job], None],
        clock: Callable[[], float],
    ) -> None:
        self.model, self._vocabulary, self.budget, self.cache = model, vocabulary, budget, cache
        self.slots, self._job_over, self._clock = slots, job_over, clock
        self.queue: FairQueue[Job] = FairQueue(lambda job: job.owner)
        self.prefilling: list[Job] = []  # in the order of their turns
        self.decoding: dict[GenerationSequence, GenerationJob] = {}
        self.totals = Totals()
        self._forward: Forward | None = None
        self._left: list[Job] = []  # ended, while a running forward still writes to their slots
        self._held: Counter[str] = Counter()  # slots by owner
        self._untold: dict[Job, bool] = {}  # jobs with something to deliver: whether it is the last
        self._controller, self._begun = PrefillController(clock), 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.queue or self.prefilling or self.decoding or self._left or self._untold)

    def cancel(self, everything: bool = False) -> None:
        """End the jobs that callers cancelled, or everything."""
        for job in [*self.prefilling, *self.decoding.values()]:
            job.cancelled |= everything
        for job in self.queue.remove(lambda job: job.cancelled or everything):
            job.cancelled = True
            self._end(job, None)
        for job in [job for job in self.prefilling if job.cancelled]:
            self._end(job, None)
        for sequence in [each for each, job in self.decoding.items() if job.cancelled]:
            sequence.cancel()
        self._retire()
        if self._forward and self._forward.abandoned:
            self._forward.close()
            self._forward_over()

    def fail(self, error: Exception) -> None:
        """End everything with an error: waiting jobs too, as they would fail again."""
        if self._forward:
            self._forward.close()
        self._forward_over()
        for job in list(self.prefilling):
            self._end(job, error)
        for sequence in list(self.decoding):
            sequence.fail(error)
        for job in self.queue.remove(lambda job: True):
            self._end(job, error)
        self._retire()

    def _end(self, job: Job, reason: Exception | None) -> None:
        """End a job that has no answers yet."""
        job.end(reason)
        if job in self.prefilling:
            self.prefilling.remove(job)
        if self._forward and job in self._forward.jobs:
            self._left.append(job)
        else:
            self._release_prompt(job)
        self._over(job, failed=reason is not None)

    def _over(self, job: Job, failed: bool) -> None:
        kind = "failed" if failed or job.broken else "cancelled" if job.cancelled else "finished"
        setattr(self.totals, kind, getattr(self.totals, kind) + 1)
        self._untold[job] = True

    def _release_prompt(self, job: Job) -> None:
        """Release the slot, memory and cache node of a job without answers."""
        self.cache.unpin(job.node)
        job.node = job.restoring = None
        if job.slot is not None:
            self.model.free_slot(job.slot)
            job.slot = None
        self._give_back(job, job.slots_held)

    def _give_back(self, job: Job, slots: int) -> None:
        job.slots_held -= slots
        self.budget.reserved -= slots * job.bytes_each
        self._held[job.owner] -= slots
        if not self._held[job.owner]:
            del self._held[job.owner]

    def admit(self) -> None:
        """Give slots to the jobs whose turn it is, as long as slots and memory last."""
        while (job := self.queue.next(self._held)) is not None:
            wanted, needed = job.answers_wanted, job.answers_wanted * job.bytes_each
            if self._held.total() + wanted > self.slots or not self.budget.fits(needed):
                return
            if not self.cache.shrink(self.budget.limit - self.budget.reserved - needed):
                return
            self.queue.take(job)
            self.budget.reserved += needed
            self._held[job.owner] += wanted
            job.slots_held = wanted
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """Open a slot, with the cached part of the prompt."""
        try:
            self._begun += 1
            job.number, job.slot = self._begun, self.model.new_slot()
            job.use_cache &= self.budget.cache_limit > 0
            if job.use_cache:
                self._take_over(job)
        except BaseException as error:
            self._end(job, as_exception(error))
            return
        self.prefilling.append(job)

    def decode(self) -> None:
        """Run one step over all running answers."""
        sequences = list(self.decoding)
        if not sequences:
            return
        started = self._clock()
        try:
            decode_step(self.model, sequences)
        except BaseException as error:
            for sequence in sequences:
                sequence.fail(as_exception(error))
        else:
            self.totals.generated_tokens += len(sequences)
        self.totals.steps += 1
        self._controller.stepped(self._clock() - started)
        for sequence in sequences:
            self._untold.setdefault(self.decoding[sequence], False)
        self._retire()

    def _retire(self) -> None:
        """Free the slots of answers that have ended."""
        for sequence in [each for each in self.decoding if each.ended]:
            job = self.decoding.pop(sequence)
            self.model.free_slot(sequence.slot)
            self._give_back(job, 1)
            if not job.slots_held:
                self._over(job, any(each.ended == "error" for each in job.sequences))

    def prefill(self, interrupted: Callable[[], bool]) -> None:
        """Run prefill: between steps as long as the controller allows, else a whole forward."""
        seconds = self._controller.between_steps_s if self.decoding else None
        if self._forward is None and not (
            self._restore(seconds, interrupted) and self._start_forward()
        ):
            return
        assert self._forward is not None
        try:
            if not self._forward.run(self._controller, seconds, interrupted):
                return
        except BaseException as error:
            failed, self._forward = self._forward, None
            self._forward_over()
            for job in failed.jobs:
                if job in self.prefilling:
                    self._end(job, as_exception(error))
            return
        forward, self._forward = self._forward, None
        for job, stop, rows in forward.results():
            if job in self.prefilling:
                self._read(job, stop, rows)
        self._forward_over()

    def _restore(self, seconds: float | None, interrupted: Callable[[], bool]) -> bool:
        """Copy cached prefixes into slots, for about `seconds`; return True if all are done."""
        started = self._clock()
        for job in [job for job in self.prefilling if job.restoring is not None]:
            try:
                for _ in job.restoring or ():
                    late = seconds is not None and self._clock() - started > seconds
                    if late or interrupted():
                        return False
            except BaseException as error:
                self._end(job, as_exception(error))
            job.restoring = None
        return True

    def _start_forward(self) -> bool:
        turns = self._catch_up()
        if not turns or any(job.restoring for job in turns):
            return False
        room = self._controller.chunk_between_steps if self.decoding else CHUNK
        self._forward = Forward(self.model, take_turns(self.prefilling, room, turns))
        return True

    def _catch_up(self) -> dict[Job, Job]:
        """Let waiting jobs take over the state of others; return who reads for whom."""
        while True:
            reader_of = readers(self.prefilling)
            late = [job for job, reader in reader_of.items() if job.waits and reader is job]
            for job, reader in reader_of.items():
                job.waits = reader is not job
            if not late:
                return reader_of
            for job in late:
                try:
                    self._take_over(job)
                except BaseException as error:
                    self._end(job, as_exception(error))

    def _take_over(self, job: Job) -> None:
        """Continue from the longest kept prefix of a prompt, if it is longer than what was read."""
        assert job.slot is not None
        node, length, restoring = self.cache.restoring(job.ids, job.slot)
        if job.node is not None and length <= job.position:
            self.cache.unpin(node)
            return
        self.cache.unpin(job.node)
        job.node, job.restoring = node, restoring
        job.cached += length - job.position
        job.position = length

    def _forward_over(self) -> None:
        """Release the slots of ended jobs, which the forward no longer writes to."""
        self._forward = None
        for job in self._left:
            self._release_prompt(job)
        self._left = []

    def _read(self, job: Job, stop: int, rows: LastLogits | NDArray[np.float32]) -> None:
        """Take a forward's results for a job, now at `stop`: last logits, or hidden states."""
        job.position = stop
        try:
            if job.node is not None and job.worth_keeping and job.slot is not None:
                job.node = self.cache.keep(job.node, job.ids, job.slot)
            if isinstance(job, RowsJob) and not isinstance(rows, LastLogits):
                job.add(rows)
        except BaseException as error:
            self._end(job, as_exception(error))
            return
        if not job.done:
            return
        self.totals.prompt_tokens += len(job.ids)
        self.totals.cached_tokens += job.cached
        if isinstance(job, GenerationJob) and isinstance(rows, LastLogits):
            self._answer(job, rows)
        else:
            self.prefilling.remove(job)
            self._release_prompt(job)
            self._over(job, failed=False)

    def _answer(self, job: GenerationJob, logits: LastLogits) -> None:
        """Begin all answers of a request with its prompt's last logits, one row for each."""
        assert job.slot is not None
        slots: list[int] = []
        try:
            for _ in range(job.request.n - 1):
                slots.append(self.model.fork(job.slot))
            job.sequences = [
                job.sequence(self._vocabulary, index, slot)
                for index, slot in enumerate([*slots, job.slot])
            ]
            choose_tokens(logits, job.sequences)
        except BaseException as error:
            job.sequences = []
            for slot in slots:
                self.model.free_slot(slot)
            self._end(job, as_exception(error))
            return
        self.prefilling.remove(job)
        self.cache.unpin(job.node)
        job.node = job.slot = None
        self.decoding |= dict.fromkeys(job.sequences, job)
        self.totals.generated_tokens += len(job.sequences)
        self._untold.setdefault(job, False)
        self._retire()

    def deliver(self) -> bool:
        """Deliver pending results to callers; return True if there were any."""
        untold, self._untold = self._untold, {}
        for job, last in untold.items():
            try:
                job.deliver_pending()
            except BaseException:  # an error in the caller must not hurt others
                job.broken = True
                job.cancel()
            if last:
                self._job_over(job)
        return bool(untold)
