"""Streaming to a device: pieces, staging buffers, and the order in which they are used again."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="what the backend's arrays are")

import torch

from apr_backend_cuda.backend import Cuda
from apr_backend_cuda.weights import upload
from apr_backend_cuda.weights.upload import Uploader, uploader

CPU = torch.device("cpu")


def collect(sent_by, rows):
    """What arrives, [R, row bytes], and of how many rows each piece was."""
    copy, counts = np.zeros((len(rows), rows[:1].nbytes), np.uint8), []

    def take(piece, first):
        copy[first : first + len(piece)] = piece.numpy()
        counts.append(len(piece))

    sent_by.rows(rows, take)
    return copy, counts


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_rows_arrive_in_pieces_of_whole_rows(dtype):
    rows = np.arange(70, dtype=dtype).reshape(10, 7)
    with uploader(CPU, piece=3 * rows[0].nbytes + 1) as sent_by:
        copy, counts = collect(sent_by, rows)
    assert counts == [3, 3, 3, 1]
    assert copy.tobytes() == rows.tobytes()


def test_a_row_longer_than_a_piece_is_sent_whole():
    rows = np.arange(40, dtype=np.uint8).reshape(2, 20)
    with uploader(CPU, piece=7) as sent_by:
        copy, counts = collect(sent_by, rows)
    assert counts == [1, 1]
    assert copy.tobytes() == rows.tobytes()


def test_rows_may_be_a_view_of_others():
    rows = np.arange(60, dtype=np.float32).reshape(6, 10)[:, 2:5]
    with uploader(CPU, piece=24) as sent_by:
        copy, _ = collect(sent_by, rows)
    assert copy.tobytes() == np.ascontiguousarray(rows).tobytes()


def test_one_uploader_sends_matrices_of_any_width():
    with uploader(CPU, piece=64) as sent_by:
        for width in (3, 64, 1, 200, 5):
            rows = np.random.default_rng(width).integers(0, 256, (9, width), dtype=np.uint8)
            copy, _ = collect(sent_by, rows)
            assert copy.tobytes() == rows.tobytes()


def test_large_pieces_are_read_by_several_threads():
    rows = np.random.default_rng(0).integers(0, 256, (8, upload.WORTHWHILE // 4), dtype=np.uint8)
    with uploader(CPU) as sent_by:
        copy, counts = collect(sent_by, rows)
    assert counts == [8]
    assert np.array_equal(copy, rows)


def test_nothing_of_the_file_is_kept():
    rows = np.zeros((4, 8), np.uint8)
    reference = weakref.ref(rows)
    with uploader(CPU, piece=16) as sent_by:
        collect(sent_by, rows)
        del rows
        gc.collect()
        assert reference() is None


def test_no_more_is_staged_than_two_pieces():
    sizes = []

    class Counting(upload._Straight):
        def buffers(self, nbytes):
            sizes.append(nbytes)
            return super().buffers(nbytes)

    sent_by = Uploader(CPU, piece=100)
    sent_by._lane = Counting(CPU)
    for width in (100, 10, 100):
        collect(sent_by, np.zeros((50, width), np.uint8))
    sent_by.close()
    assert sizes == [100, 100]


@pytest.mark.parametrize("shape", [(1000,), (10, 100), (2, 5, 100)])
def test_a_large_array_is_sent_in_pieces_as_it_is(shape, monkeypatch):
    monkeypatch.setattr("apr_backend_cuda.backend.PIECE", 256)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor = Cuda().upload(array)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), array)


def test_while_a_model_is_loaded_all_matrices_share_one_uploader():
    backend = Cuda()
    with backend.loading(), backend._sending() as one, backend._sending() as other:
        assert one is other
    with backend._sending() as one, backend._sending() as other:
        assert one is not other


class Device:
    """Two streams that do what they were given now or later, as chance has it.

    Things of one stream are done in order; things of two only where an event says so.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.given = {"side": deque(), "main": deque()}
        self.current = "main"

    def give(self, stream, action, ready=lambda: True):
        self.given[stream].append((ready, action))
        for _ in range(self.rng.integers(4)):
            self.advance(str(self.rng.choice(list(self.given))))

    def advance(self, stream):
        queue = self.given[stream]
        if not queue or not queue[0][0]():
            return False
        queue.popleft()[1]()
        return True

    def run_until(self, done):
        while not done():
            order = self.rng.permutation(list(self.given))
            assert sum(self.advance(str(stream)) for stream in order), "everybody waits"

    def torch(self):
        """The part of torch that an uploader uses, of this device."""
        return SimpleNamespace(
            uint8=torch.uint8,
            empty=self.empty,
            cuda=SimpleNamespace(
                Stream=lambda device: Stream(self, "side"),
                stream=self.inside,
                current_stream=lambda device: Stream(self, self.current),
            ),
        )

    def empty(self, count, dtype, device=None, pin_memory=False):
        buffer = torch.full((count,), 99, dtype=dtype)
        return Lazy(self, buffer.numpy()) if device else buffer

    @contextmanager
    def inside(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before


class Event:
    def __init__(self, device):
        self.device, self.done = device, False

    def happen(self):
        self.done = True

    def synchronize(self):
        self.device.run_until(lambda: self.done)


class Stream:
    def __init__(self, device, name):
        self.device, self.name = device, name

    def record_event(self):
        event = Event(self.device)
        self.device.give(self.name, event.happen)
        return event

    def wait_event(self, event):
        self.device.give(self.name, lambda: None, lambda: event.done)

    def synchronize(self):
        self.device.run_until(lambda: not self.device.given[self.name])


class Lazy:
    """Bytes on the device, written and read when a stream comes to it."""

    def __init__(self, device, array):
        self.device, self.array = device, array

    def __getitem__(self, part):
        return Lazy(self.device, self.array[part])

    def __len__(self):
        return len(self.array)

    def view(self, *shape):
        return Lazy(self.device, self.array.reshape(shape))

    def copy_(self, staged, non_blocking):
        assert non_blocking
        self.device.give(self.device.current, lambda: np.copyto(self.array, staged.numpy()))


@pytest.mark.parametrize("seed", range(40))
def test_no_buffer_is_overwritten_before_it_was_used(seed, monkeypatch):
    device = Device(seed)
    monkeypatch.setattr(upload, "torch", device.torch())
    sent_by = Uploader(SimpleNamespace(type="cuda"), piece=8)
    sent, copies = [], []
    for width in (4, 8, 2, 8):
        rows = device.rng.integers(0, 256, (11, width), dtype=np.uint8)
        arrived = np.zeros_like(rows)

        def take(piece, first, arrived=arrived):
            part = arrived[first : first + len(piece)]
            device.give("main", lambda: np.copyto(part, piece.array))

        sent_by.rows(rows, take)
        sent.append(rows)
        copies.append(arrived)
    sent_by.close()
    assert all(np.array_equal(a, b) for a, b in zip(sent, copies, strict=True))


def test_what_torch_holds_unused_is_free(monkeypatch):
    asked = []

    def says(answer):
        def function(device):
            asked.append(device)
            return answer

        return function

    backend = Cuda()
    assert backend.capacity() is None, "interpreted kernels have the memory of the machine"
    backend.device = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "mem_get_info", says((7000, 80000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", says(500))
    monkeypatch.setattr(torch.cuda, "memory_allocated", says(200))
    assert backend.capacity() == 7000 + 500 - 200
    assert set(asked) == {backend.device}


def test_a_model_that_nobody_has_any_more_takes_nothing(monkeypatch):
    class Held:
        """As a model and its recorded steps hold each other."""

    held, freed = Held(), []
    held.itself = held
    weakref.finalize(held, freed.append, True)
    del held
    backend = Cuda()
    backend.device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500 * len(freed), 80000))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert backend.capacity() == 500
