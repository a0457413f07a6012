"""Decode steps as CUDA graphs: launched as a whole, with no Python between kernels.

A graph is for a number of sequences, each of which gets one token. What differs from step to step -
ids, positions, slots - is data on the device, updated before a replay. Batches are padded to a few
sizes with rows that belong to no sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from apr_backend_cuda.kernels.attention import RANGE
from apr_backend_cuda.run.steps import StaticTables, using
from apr_backend_cuda.states.slots import NOBODY
from apr_core.plugin import Segment, Step

StepFunction = Callable[[Any, Step], Any]
FINE = 8  # up to here batches are padded to powers of two, beyond to multiples of this
MOST = 256  # sequences of a graph, at most


class Results:
    """Where recorded steps leave their logits: a few arrays shared by all graphs.

    A graph's own result would live as long as the graph: a megabyte for each of its sequences.
    """

    def __init__(self) -> None:
        self._kept: dict[int, torch.Tensor] = {}

    def put(self, logits: torch.Tensor) -> torch.Tensor:
        """Copy logits [sequences, vocab] to the array for that many, made if there is none."""
        rows = logits.shape[0]
        capacity = 1 << (rows - 1).bit_length()
        if capacity not in self._kept:
            self._kept[capacity] = logits.new_empty((capacity, logits.shape[1]))
        array = self._kept[capacity][:rows]
        array.copy_(logits)
        return array


class Recorder:
    """What all graphs of a model are recorded with: shared memory and a stream.

    torch would record all on the first graph's device, with a separate stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record a function's launches as a graph. A function that fails leaves nothing."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()
        except BaseException:
            torch.cuda.set_stream(current)  # a failed recording leaves torch's stream
            raise
        return graph


class Graph:
    """One recorded step: `size` sequences of at most `end` tokens.

    The first step runs kernel by kernel, which compiles them; the second is recorded. Where kernels
    are interpreted nothing is recorded, and every step runs.
    """

    def __init__(
        self,
        function: StepFunction,
        ids: torch.Tensor,
        step: Step,
        size: int,
        end: int,
        results: Results,
        recorder: Recorder | None,
    ) -> None:
        self._function, self._size = function, size
        self._results, self._recorder = results, recorder
        self._ids = torch.zeros(size, dtype=ids.dtype, device=ids.device)
        self._positions = torch.zeros(size, dtype=step.positions.dtype, device=ids.device)
        self._tables = StaticTables(self._padded(step), ids.device, end)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

    def _padded(self, step: Step) -> Step:
        """Return the step with padding rows, and with positions where kernels read them."""
        more = [Segment(NOBODY, i, i + 1, 0) for i in range(step.n_rows, self._size)]
        return Step((*step.segments, *more), self._positions, step.host_positions)

    def __call__(self, ids: torch.Tensor, step: Step) -> torch.Tensor:
        """Return logits [sequences, vocab] of a step."""
        rows = ids.shape[0]
        self._ids[:rows].copy_(ids)
        self._positions[:rows].copy_(step.positions)
        if self._logits is None:
            self._run()
        else:
            self._tables.refresh(self._padded(step))
            self._replay()
        assert self._logits is not None
        return self._logits[:rows]

    def _run(self) -> None:
        with using(self._tables):
            self._logits = self._results.put(self._function(self._ids, self._tables.step))

    def _replay(self) -> None:
        if self._recorder is None:
            self._run()
            return
        if self._graph is None:
            self._graph = self._recorder.record(self._run)
        self._graph.replay()


class Captured:
    """A step function that replays graphs for steps of one token per sequence.

    Graphs share their working memory: a result is valid until another graph is replayed.
    """

    def __init__(self, function: StepFunction) -> None:
        self._function = function
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._results = Results()
        self._recorder: Recorder | None = None  # None where kernels are interpreted

    def __call__(self, ids: torch.Tensor, step: Step) -> Any:
        """Return logits of every segment's last row."""
        count = len(step.segments)
        if count != step.n_rows or count > MOST:
            return self._function(ids, step)
        if self._recorder is None and ids.device.type == "cuda":
            self._recorder = Recorder(ids.device)
        size, end = bucket(count), _end(step)
        graph = self._graphs.get((size, end)) or Graph(
            self._function, ids, step, size, end, self._results, self._recorder
        )
        logits = graph(ids, step)
        self._graphs[size, end] = graph  # only now: its tables must be those of a step that ran
        return logits


def bucket(count: int) -> int:
    """Return the batch size that this many sequences are padded to."""
    if count <= FINE:
        return 1 << (count - 1).bit_length()
    return -(-count // FINE) * FINE


def _end(step: Step) -> int:
    """Return the most tokens of a graph for this step: a power of two of ranges of attention."""
    ranges = -(-(int(np.max(step.host_positions)) + 1) // RANGE)
    return RANGE << (ranges - 1).bit_length()
