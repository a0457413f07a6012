"""What the engine's tests share: tiny models of both families, and clients that collect answers."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np

from apr_core.generate.sampling import SamplingParams
from apr_serve.engine.engine import Engine
from apr_serve.engine.interface import EngineRequest
from tests import tiny_checkpoints

FAMILIES = {
    "qwen3_5": tiny_checkpoints.Tiny(),
    "qwen2": tiny_checkpoints.Tiny(family="qwen2", layout="flat", mtp=False, vision=False),
}
ENDLESS = {"ignore_stop_tokens": True, "detect_repetition": False}
PATIENCE = 600  # seconds; what hangs takes them, nothing else
TICK = 0.001  # seconds


def imported(family, folder):
    """A tiny model of the family as an .apr file."""
    source = tiny_checkpoints.write(folder / family, FAMILIES[family])
    target = folder / f"{family}.apr"
    subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "import", source, "--quantize", "q4k", "-o", target],
        check=True,
        capture_output=True,
    )
    return target


class Clock:
    """Time that moves by a tick whenever it is looked at, and as a test says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += TICK
        return self.now


def by_hand(model, **options):
    """An engine without a thread: it moves while a client waits, or by `turn`."""
    return Engine(model, background=False, clock=Clock(), **options)


class Client:
    """Submits one request and keeps what comes."""

    def __init__(self, engine, ids, params=None, on_delta=None, **options):
        self.request = EngineRequest(ids, params or SamplingParams(), **options)
        self.deltas, self._on_delta, self._engine = [], on_delta, engine
        self._ended = threading.Event()
        self.ticket = engine.submit(self.request, self._deliver)

    def _deliver(self, deltas):
        self.deltas += deltas
        if self._on_delta:
            self._on_delta(self)
        if sum(d.finish_reason is not None for d in self.deltas) == self.request.n:
            self._ended.set()

    def wait(self):
        if self._engine._thread is None:
            while not self._ended.is_set() and self._engine.turn():
                pass
        assert self._ended.wait(PATIENCE * bool(self._engine._thread)), f"only {self.deltas}"
        return self

    def answer(self, index=0):
        deltas = [d for d in self.wait().deltas if d.index == index]
        assert [d.finish_reason is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
        return deltas

    def ids(self, index=0):
        return [i for d in self.answer(index) for i in d.ids]

    def text(self, index=0, channel="text"):
        return "".join(d.text for d in self.answer(index) if d.channel == channel)

    def last(self, index=0):
        return self.answer(index)[-1]


def ask(engine, ids, params=None, **options):
    """The answer to one request, complete."""
    return Client(engine, ids, params, **options).wait()


def random_ids(count, seed=0):
    """Ids of plain bytes."""
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def chat(model, *texts):
    """The prompt of a chat in which user and assistant take turns."""
    roles = ("user", "assistant")
    return model.chat_ids([{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)])


def assert_nothing_left(engine):
    """No slot, no byte of state, nothing reserved."""
    stats = engine.stats()
    assert (stats.running, stats.prefilling, stats.queued) == (0, 0, 0), stats
    assert (stats.memory_bytes, stats.reserved_bytes) == (0, 0), stats
    assert engine.model.state_bytes() == 0


@contextmanager
def running(model, make=Engine, **options):
    """An engine, which is closed at the end and must hold nothing then."""
    engine = make(model, **options)
    try:
        yield engine
    finally:
        engine.close()
    assert_nothing_left(engine)
