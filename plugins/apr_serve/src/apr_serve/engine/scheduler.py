"""The scheduler: what the engine's thread does in a turn. Nothing here is thread-safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apr_core.runtime import CHUNK, LastLogits, as_exception, decode_step, sample_tokens
from apr_serve.engine.groups import GenerationGroup, HiddenStatesGroup, SequenceGroup
from apr_serve.engine.memory import MemoryBudget
from apr_serve.engine.prefill import Forward, PrefillController, take_turns
from apr_serve.engine.prefix_cache import PrefixCache
from apr_serve.engine.queue import FairQueue
from apr_serve.engine.sequence import AnswerSequence
from apr_serve.engine.shared_prefixes import readers

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
    """Moves groups through queue, prefill and decoding. `slots` answers run at once.

    `on_end` is called with every group that has ended, after its last delivery.
    """

    def __init__(
        self,
        model: Model,
        budget: MemoryBudget,
        cache: PrefixCache,
        slots: int,
        on_end: Callable[[SequenceGroup], None],
        clock: Callable[[], float],
    ) -> None:
        self.model, self.budget, self.cache = model, budget, cache
        self.slots, self._on_end, self._clock = slots, on_end, clock
        self.queue: FairQueue[SequenceGroup] = FairQueue(lambda group: group.tenant)
        self.prefilling: list[SequenceGroup] = []  # in the order of their turns
        self.decoding: dict[AnswerSequence, GenerationGroup] = {}
        self.totals = Totals()
        self._forward: Forward | None = None
        self._left: list[
            SequenceGroup
        ] = []  # ended, while a running forward still writes to their slots
        self._held: Counter[str] = Counter()  # slots by tenant
        self._undelivered: dict[
            SequenceGroup, bool
        ] = {}  # groups with something to deliver: whether it is the last
        self._controller, self._begun = PrefillController(clock), 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (
            self.queue or self.prefilling or self.decoding or self._left or self._undelivered
        )

    def cancel(self, everything: bool = False) -> None:
        """End the groups that callers cancelled, or everything."""
        for group in [*self.prefilling, *self.decoding.values()]:
            group.cancelled |= everything
        for group in self.queue.remove(lambda group: group.cancelled or everything):
            group.cancelled = True
            self._end(group, None)
        for group in [group for group in self.prefilling if group.cancelled]:
            self._end(group, None)
        for sequence in [each for each, group in self.decoding.items() if group.cancelled]:
            sequence.cancel()
        self._retire()
        if self._forward and self._forward.abandoned:
            self._forward.close()
            self._forward_over()

    def fail(self, error: Exception) -> None:
        """End everything with an error: waiting groups too, as they would fail again."""
        if self._forward:
            self._forward.close()
        self._forward_over()
        for group in list(self.prefilling):
            self._end(group, error)
        for sequence in list(self.decoding):
            sequence.fail(error)
        for group in self.queue.remove(lambda group: True):
            self._end(group, error)
        self._retire()

    def _end(self, group: SequenceGroup, reason: Exception | None) -> None:
        """End a group that has no answers yet."""
        group.end(reason)
        if group in self.prefilling:
            self.prefilling.remove(group)
        if self._forward and group in self._forward.groups:
            self._left.append(group)
        else:
            self._release_prompt(group)
        self._count_end(group, failed=reason is not None)

    def _count_end(self, group: SequenceGroup, failed: bool) -> None:
        kind = (
            "failed" if failed or group.broken else "cancelled" if group.cancelled else "finished"
        )
        setattr(self.totals, kind, getattr(self.totals, kind) + 1)
        self._undelivered[group] = True

    def _release_prompt(self, group: SequenceGroup) -> None:
        """Release the slot, memory and cache node of a group without answers."""
        self.cache.unpin(group.node)
        group.node = group.restoring = None
        if group.slot is not None:
            self.model.free_slot(group.slot)
            group.slot = None
        self._give_back(group, group.slots_held)

    def _give_back(self, group: SequenceGroup, slots: int) -> None:
        group.slots_held -= slots
        self.budget.reserved -= slots * group.bytes_each
        self._held[group.tenant] -= slots
        if not self._held[group.tenant]:
            del self._held[group.tenant]

    def admit(self) -> None:
        """Give slots to the groups whose turn it is, as long as slots and memory last."""
        while (group := self.queue.next(self._held)) is not None:
            wanted, needed = group.answers_wanted, group.answers_wanted * group.bytes_each
            if self._held.total() + wanted > self.slots or not self.budget.fits(needed):
                return
            if not self.cache.shrink(self.budget.limit - self.budget.reserved - needed):
                return
            self.queue.take(group)
            self.budget.reserved += needed
            self._held[group.tenant] += wanted
            group.slots_held = wanted
            self._begin(group)

    def _begin(self, group: SequenceGroup) -> None:
        """Open a slot, with the cached part of the prompt."""
        try:
            self._begun += 1
            group.number, group.slot = self._begun, self.model.new_slot()
            group.use_cache &= self.budget.cache_limit > 0
            if group.use_cache:
                self._take_over(group)
        except BaseException as error:
            self._end(group, as_exception(error))
            return
        self.prefilling.append(group)

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
            self._undelivered.setdefault(self.decoding[sequence], False)
        self._retire()

    def _retire(self) -> None:
        """Free the slots of answers that have ended."""
        for sequence in [each for each in self.decoding if each.ended]:
            group = self.decoding.pop(sequence)
            self.model.free_slot(sequence.slot)
            self._give_back(group, 1)
            if not group.slots_held:
                self._count_end(group, any(each.ended == "error" for each in group.sequences))

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
            for group in failed.groups:
                if group in self.prefilling:
                    self._end(group, as_exception(error))
            return
        forward, self._forward = self._forward, None
        for group, stop, rows in forward.results():
            if group in self.prefilling:
                self._read(group, stop, rows)
        self._forward_over()

    def _restore(self, seconds: float | None, interrupted: Callable[[], bool]) -> bool:
        """Copy cached prefixes into slots, for about `seconds`; return True if all are done."""
        started = self._clock()
        for group in [group for group in self.prefilling if group.restoring is not None]:
            try:
                for _ in group.restoring or ():
                    late = seconds is not None and self._clock() - started > seconds
                    if late or interrupted():
                        return False
            except BaseException as error:
                self._end(group, as_exception(error))
            group.restoring = None
        return True

    def _start_forward(self) -> bool:
        turns = self._catch_up()
        if not turns or any(group.restoring for group in turns):
            return False
        tokens = self._controller.chunk_between_steps if self.decoding else CHUNK
        self._forward = Forward(self.model, take_turns(self.prefilling, tokens, turns))
        return True

    def _catch_up(self) -> dict[SequenceGroup, SequenceGroup]:
        """Let waiting groups take over the state of others; return who reads for whom."""
        while True:
            reader_of = readers(self.prefilling)
            late = [group for group, reader in reader_of.items() if group.waits and reader is group]
            for group, reader in reader_of.items():
                group.waits = reader is not group
            if not late:
                return reader_of
            for group in late:
                try:
                    self._take_over(group)
                except BaseException as error:
                    self._end(group, as_exception(error))

    def _take_over(self, group: SequenceGroup) -> None:
        """Continue from the longest kept prefix of a prompt, if it is longer than what was read."""
        assert group.slot is not None
        node, length, restoring = self.cache.restoring(group.ids, group.slot)
        if group.node is not None and length <= group.position:
            self.cache.unpin(node)
            return
        self.cache.unpin(group.node)
        group.node, group.restoring = node, restoring
        group.cached += length - group.position
        group.position = length

    def _forward_over(self) -> None:
        """Release the slots of ended groups, which the forward no longer writes to."""
        self._forward = None
        for group in self._left:
            self._release_prompt(group)
        self._left = []

    def _read(
        self, group: SequenceGroup, stop: int, rows: LastLogits | NDArray[np.float32]
    ) -> None:
        """Take a forward's results for a group, now at `stop`: last logits, or hidden states."""
        group.position = stop
        try:
            if group.node is not None and group.worth_keeping and group.slot is not None:
                group.node = self.cache.keep(group.node, group.ids, group.slot)
            if isinstance(group, HiddenStatesGroup) and not isinstance(rows, LastLogits):
                group.add(rows)
        except BaseException as error:
            self._end(group, as_exception(error))
            return
        if not group.done:
            return
        self.totals.prompt_tokens += len(group.ids)
        self.totals.cached_tokens += group.cached
        if isinstance(group, GenerationGroup) and isinstance(rows, LastLogits):
            self._answer(group, rows)
        else:
            self.prefilling.remove(group)
            self._release_prompt(group)
            self._count_end(group, failed=False)

    def _answer(self, group: GenerationGroup, logits: LastLogits) -> None:
        """Begin all answers of a request with its prompt's last logits, one row for each."""
        assert group.slot is not None
        slots: list[int] = []
        try:
            for _ in range(group.request.n - 1):
                slots.append(self.model.new_slot())
                self.model.restore(slots[-1], self.model.snapshot(group.slot))
            group.sequences = [
                group.sequence(self.model, index, slot)
                for index, slot in enumerate([*slots, group.slot])
            ]
            sample_tokens(logits, group.sequences)
        except BaseException as error:
            group.sequences = []
            for slot in slots:
                self.model.free_slot(slot)
            self._end(group, as_exception(error))
            return
        self.prefilling.remove(group)
        self.cache.unpin(group.node)
        group.node = group.slot = None
        self.decoding |= dict.fromkeys(group.sequences, group)
        self.totals.generated_tokens += len(group.sequences)
        self._undelivered.setdefault(group, False)
        self._retire()

    def deliver(self) -> bool:
        """Deliver pending results to callers; return True if there were any."""
        undelivered, self._undelivered = self._undelivered, {}
        for group, last in undelivered.items():
            try:
                group.deliver_pending()
            except BaseException:  # an error in the caller must not hurt others
                group.broken = True
                group.cancel()
            if last:
                self._on_end(group)
        return bool(undelivered)
