"""Measures a loaded model. Every phase is timed by itself; nothing is inferred."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import SamplingMetadata, UsageError
from apr_core.runtime import CHUNK, Sampler, SamplingParams

if TYPE_CHECKING:
    from apr_core.runtime import Model

STREAMED = 128 << 20  # bytes a thread reads to measure bandwidth: far beyond any cache
SEED = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `batch` sequences of random tokens, prompt first, then greedy tokens."""

    prompt_tokens: int = 128
    max_tokens: int = 32
    batch: int = 1
    warmup: int = 3
    measure: int = 10

    def check(self, model: Model) -> None:
        """Raise UsageError for what the model cannot do."""
        longest = model.max_len - self.max_tokens
        if self.prompt_tokens > longest:
            raise UsageError(
                f"{self.prompt_tokens} prompt tokens and {self.max_tokens} new ones do not fit "
                f"the context of {model.max_len}",
                "Use fewer tokens.",
            )


@dataclass(slots=True)
class Run:
    """Seconds of one repetition."""

    prefill_s: float  # of one sequence
    ttft_s: float  # prefill, and choosing the first token
    steps_s: list[float] = field(default_factory=list)  # of each step of the whole batch


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speeds over all repetitions, in tokens per second; decode is summed over the batch."""

    ttft_s: Spread
    prefill_tok_s: Spread
    decode_tok_s: Spread
    weight_bytes: int  # read by one step; of experts, those of as many as rows choose on average
    state_bytes: int  # KV, recurrent and conv state that a step reads at the end, over the batch
    batch: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes of weights and state that one step reads, per token."""
        return (self.weight_bytes + self.state_bytes) / self.batch

    def bandwidth_share(self, bandwidth: float) -> float:
        """Return bytes read per second in decode over what the machine can read."""
        return self.bytes_per_token * self.decode_tok_s.median / bandwidth


def measure(model: Model, plan: Plan, done: Callable[[], None] = lambda: None) -> Measurement:
    """Run the plan; `done` is called after each repetition. Raises UsageError."""
    plan.check(model)
    runs, state = [], 0
    for number in range(plan.warmup + plan.measure):
        run, state = repetition(model, plan, number)
        if number >= plan.warmup:
            runs.append(run)
        done()
    steps = [s for run in runs for s in run.steps_s]
    return Measurement(
        Spread.of([run.ttft_s for run in runs]),
        Spread.of([plan.prompt_tokens / run.prefill_s for run in runs]),
        Spread.of([plan.batch / s for s in steps]),
        model.bytes_read(plan.batch),
        state,
        plan.batch,
    )


def repetition(model: Model, plan: Plan, number: int) -> tuple[Run, int]:
    """Time one prompt alone and steps of the batch; return them and the state's bytes."""
    rng = np.random.default_rng([SEED, number])
    valid = model.tokenizer.valid_size
    slots = [model.new_slot() for _ in range(plan.batch)]
    try:
        tokens, run = [], None
        for slot in slots:
            ids = rng.integers(0, valid, plan.prompt_tokens).tolist()
            sampler = Sampler(SamplingParams(), valid)
            started = time.perf_counter()
            logits = prefill(model, slot, ids)
            prefilled = time.perf_counter()
            tokens.append(sampler(logits))
            run = run or Run(prefilled - started, time.perf_counter() - started)
        assert run is not None
        likeliest = [SamplingMetadata(valid)] * plan.batch
        for _ in range(plan.max_tokens):
            started = time.perf_counter()
            step = model.forward_last([(s, [t]) for s, t in zip(slots, tokens, strict=True)])
            tokens = [
                choice if isinstance(choice, int) else int(choice[:valid].argmax())
                for choice in step.sample(likeliest)
            ]
            run.steps_s.append(time.perf_counter() - started)
        return run, state_bytes(model, slots)
    finally:
        for slot in slots:
            model.free_slot(slot)


def prefill(model: Model, slot: int, ids: list[int]) -> NDArray[np.float32]:
    """Read a prompt in chunks, as generation does; return the logits of its last token."""
    for i in range(0, len(ids), CHUNK):
        logits = model.forward([(slot, ids[i : i + CHUNK])])
    row: NDArray[np.float32] = logits[0]
    return row


def state_bytes(model: Model, slots: Iterable[int]) -> int:
    """Return the bytes of state that the next step of these slots reads.

    Counted on snapshots, which hold what is in use: what a model holds is more, because caches
    grow ahead of the sequence.
    """
    return sum(_nbytes(part) for slot in slots for part in model.snapshot(slot)[1])


def _nbytes(part: Any) -> int:
    """Return the bytes of an array, of the arrays in a mapping or a sequence, or of a number: 0."""
    if hasattr(part, "nbytes") or isinstance(part, int):
        return int(getattr(part, "nbytes", 0))
    return sum(map(_nbytes, part.values() if isinstance(part, Mapping) else part))


def memory_bandwidth(threads: int, rounds: int = 5) -> float:
    """Return the bytes per second that `threads` read together: the best of `rounds`.

    Each thread reduces a buffer of its own, once, front to back; reductions release the GIL and
    are limited by memory. The clock runs from the first thread's start to the last one's end.
    """
    parts = [np.ones(STREAMED // 8, np.uint64) for _ in range(threads)]
    return threads * STREAMED / min(_seconds_to_read(parts) for _ in range(rounds))


def _seconds_to_read(parts: Sequence[NDArray[np.uint64]]) -> float:
    gate = Barrier(len(parts))
    spans: list[tuple[float, float]] = []

    def read(part: NDArray[np.uint64]) -> None:
        gate.wait()
        started = time.perf_counter()
        np.bitwise_or.reduce(part)
        spans.append((started, time.perf_counter()))

    # daemons: after an interruption here the process must not wait for threads at the gate
    workers = [Thread(target=read, args=(part,), daemon=True) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)
