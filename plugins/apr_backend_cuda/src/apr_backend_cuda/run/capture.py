"""Decode steps as CUDA graphs: launched once as a whole, with no Python between kernels.

A graph is of a number of sequences, each of which gets one token. What differs from step to step -
ids, positions, slots - is data on the device that is fed before a replay. Batches are filled up to
a few sizes with rows that are nobody's.
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
FINE = 8  # to here batches are filled up to powers of two, then to multiples of this
MOST = 256  # sequences of a graph


class Results:
    """Where recorded steps leave their logits: a few arrays, whatever number of graphs there are.

    A graph's own result would be kept as long as the graph, a megabyte for each sequence of it.
    """

    def __init__(self) -> None:
        self._kept: dict[int, torch.Tensor] = {}

    def put(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy [sequences, vocab] in the array for so many, which is made if there is none."""
        rows = logits.shape[0]
        room = 1 << (rows - 1).bit_length()
        if room not in self._kept:
            self._kept[room] = logits.new_empty((room, logits.shape[1]))
        kept = self._kept[room][:rows]
        kept.copy_(logits)
        return kept


class Recorder:
    """What all graphs of a model are recorded with: memory they share, and a stream.

    torch would record all on the device of the first, with a stream of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What a function launches, as a graph. Nothing of it is left if the function fails."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()
        except BaseException:
            torch.cuda.set_stream(current)  # torch leaves its own where a recording is broken off
            raise
        return graph


class Graph:
    """One recorded step: of `size` sequences with at most `end` tokens.

    The first step is run kernel by kernel, which compiles them; the second is recorded. Where
    kernels are interpreted there is nothing to record, and every step is run.
    """

    def __init__(
        self, function: StepFunction, ids: torch.Tensor, step: Step, size: int, end: int,
        results: Results, recorder: Recorder | None,
    ) -> None:  # fmt: skip
        self._function, self._size = function, size
        self._results, self._recorder = results, recorder
        self._ids = torch.zeros(size, dtype=ids.dtype, device=ids.device)
        self._positions = torch.zeros(size, dtype=step.positions.dtype, device=ids.device)
        self._tables = StaticTables(self._padded(step), ids.device, end)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

    def _padded(self, step: Step) -> Step:
        """The step with rows of nobody, and positions where kernels read them."""
        more = [Segment(NOBODY, i, i + 1, 0) for i in range(step.n_rows, self._size)]
        return Step((*step.segments, *more), self._positions, step.host_positions)

    def __call__(self, ids: torch.Tensor, step: Step) -> torch.Tensor:
        """Logits [sequences, vocab] of a step."""
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
    """A step function that replays graphs for steps of one token a sequence.

    Graphs share their working memory: what one returns is there until another is replayed.
    """

    def __init__(self, function: StepFunction) -> None:
        self._function = function
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._results = Results()
        self._recorder: Recorder | None = None  # where kernels are not interpreted

    def __call__(self, ids: torch.Tensor, step: Step) -> Any:
        """Logits of every segment's last row."""
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
        self._graphs[size, end] = graph  # not before: its tables are those of a step that was run
        return logits


def bucket(count: int) -> int:
    """The size of the batch that so many sequences are filled up to."""
    if count <= FINE:
        return 1 << (count - 1).bit_length()
    return -(-count // FINE) * FINE


def _end(step: Step) -> int:
    """The most tokens of a graph for this step: a power of two of ranges of attention."""
    ranges = -(-(int(np.max(step.host_positions)) + 1) // RANGE)
    return RANGE << (ranges - 1).bit_length()
