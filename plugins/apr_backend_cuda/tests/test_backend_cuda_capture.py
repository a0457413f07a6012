"""Recorded steps of any number of sequences, and what is left where one fails."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apr_backend_cuda.kernels import attention
from apr_backend_cuda.run import capture
from apr_backend_cuda.run.capture import Captured, Recorder
from apr_backend_cuda.states.device import DeviceStates
from apr_backend_cuda.states.pages import PAGE
from apr_backend_cuda.states.slots import NOBODY
from apr_core.model.step import make_step
from apr_core.plugin import BackendError

CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM = 4, 2, 8


def zeros(shape, dtype="f32"):
    return torch.zeros(shape, dtype={"f32": torch.float32, "f16": torch.float16}[dtype])


def opened(*slots, max_len=4 * PAGE):
    state = DeviceStates(zeros, "f32", CPU, max_len).kv(KV_HEADS, DIM)
    for slot in slots:
        state.open(slot)
    return state


def rows(count, heads, seed):
    values = np.random.default_rng([seed, count, heads]).standard_normal((count, heads, DIM))
    return torch.from_numpy(values.astype(np.float32))


def attending(state):
    """A step function: every id has a query, a key and a value of its own."""
    table = torch.stack([rows(9, HEADS, 1), rows(9, HEADS, 2), rows(9, HEADS, 3)])

    def step_function(ids, step):
        q, k, v = table[:, ids]
        out = attention.attention(q, k[:, :KV_HEADS], v[:, :KV_HEADS], state, step, 0.3)
        return out.reshape(len(ids), -1)

    return step_function


def one_each(*parts):
    """A step of one token for each (slot, position)."""
    return make_step([(slot, 1, position) for slot, position in parts], torch.from_numpy)


@pytest.mark.parametrize("then", [3, 1])
def test_a_full_batch_may_be_followed_by_one_that_is_filled_up(then):
    state, plain = opened(*range(4)), opened(*range(4))
    recorded, by_ops = Captured(attending(state)), attending(plain)
    for position, count in enumerate((4, 4, then)):
        ids = torch.arange(count) + position
        step = one_each(*((slot, position) for slot in range(count)))
        assert torch.equal(recorded(ids, step), by_ops(ids, step))
    assert state.pool.table[NOBODY, 0]


def test_a_step_that_failed_leaves_nothing_to_the_next(monkeypatch):
    state = opened(0, 1)
    recorded, new = Captured(attending(state)), state.pool._new
    monkeypatch.setattr(state.pool, "_new", full)
    with pytest.raises(BackendError):
        recorded(torch.tensor([1]), one_each((0, 0)))
    monkeypatch.setattr(state.pool, "_new", new)
    output = recorded(torch.tensor([2]), one_each((1, 0)))
    plain = opened(1)
    assert torch.equal(output, attending(plain)(torch.tensor([2]), one_each((1, 0))))
    assert not state.pool._pages.get(0), "nobody wrote to the slot of the step that failed"


def full():
    raise BackendError("the GPU has no memory left", "Free some.")


def test_pages_that_were_found_before_memory_ran_out_are_in_the_table(monkeypatch):
    state = opened(0)
    pool, new, pages = state.pool, state.pool._new, []

    def two_more():
        if len(pages) == 2:
            full()
        pages.append(new())
        return pages[-1]

    monkeypatch.setattr(pool, "_new", two_more)
    with pytest.raises(BackendError):
        pool.reserve(0, 0, 3 * PAGE)
    assert pool.table[0].tolist() == [page.data.data_ptr() for page in pages] + [0, 0]


def test_a_recording_that_breaks_off_is_no_graph_and_leaves_no_stream(monkeypatch):
    """torch has to be made up here: it ends a recording well although what it is of has failed."""
    current = ["of the caller"]

    @contextmanager
    def recording(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        current[0] = stream
        yield  # the exception comes out here: torch's does not go back to the caller's stream

    monkeypatch.setattr(
        capture.torch,
        "cuda",
        SimpleNamespace(
            graph_pool_handle=lambda: (0, 1),
            Stream=lambda device: f"of {device}",
            graph=recording,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
            current_stream=lambda device: current[0],
            set_stream=lambda stream: current.__setitem__(0, stream),
        ),
    )
    recorder = Recorder(CPU)
    with pytest.raises(BackendError):
        recorder.record(full)
    assert current == ["of the caller"]


@pytest.mark.parametrize("group", [1, 7])
def test_ranges_of_a_long_context_give_the_same_bits_shared_out_or_not(monkeypatch, group):
    monkeypatch.setattr(attention, "RANGE", PAGE)
    step = make_step([(0, 5, 0), (1, 130, 0)], torch.from_numpy)
    q, k, v = rows(135, KV_HEADS * group, 4), rows(135, KV_HEADS, 5), rows(135, KV_HEADS, 6)
    joined, calls = attention._joined, []
    monkeypatch.setattr(
        attention, "_joined", lambda parts, *more: calls.append(parts) or joined(parts, *more)
    )
    whole = attention.attention(q, k, v, opened(0, 1), step, 0.3)
    assert not calls
    monkeypatch.setattr(attention, "SHAPES", replace(attention.SHAPES, programs=1 << 10))
    assert torch.equal(attention.attention(q, k, v, opened(0, 1), step, 0.3), whole)
    assert [parts.shape[0] for parts in calls] == [3]
    monkeypatch.setattr(attention, "SPLIT_BYTES", calls[0].nbytes - 1)
    assert torch.equal(attention.attention(q, k, v, opened(0, 1), step, 0.3), whole)
    assert len(calls) == 1, "what ranges give would take more memory than it may"
