"""What belongs to one backend object: its threads, and memory of results that is used again."""

from __future__ import annotations

import ctypes
import threading
from itertools import pairwise

import numpy as np
import pytest

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.constants import CACHE_LINE
from apr_backend_cpu.run import program
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.resources import GAP, LEAST, MOST, Memory
from apr_backend_cpu.run.team import Team
from apr_core import load
from apr_core.cli.import_ import run_import
from apr_core.errors import UsageError

COUNTS = (1, 2)
PROMPT = list(range(3, 40))
Task = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 3)


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_absurd_thread_counts_are_refused(threads):
    with pytest.raises(UsageError, match="threads must be between 1 and"):
        Cpu(threads=threads)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny model with norms of several rows in every step."""
    checkpoints = pytest.importorskip("tests.tiny_checkpoints")
    for name in ("apr_qwen3_5", "apr_quant_q4k"):
        pytest.importorskip(name, reason="makes the model")
    folder = tmp_path_factory.mktemp("tiny")
    source = checkpoints.write(folder / "hf", family="qwen3_5", mtp=False, vision=False)
    run_import(str(source), folder / "tiny.apr", "q4_k_m")
    return folder / "tiny.apr"


class Workers:
    """The threads that work on norms. Tasks wait a moment for another thread to take one too."""

    def __init__(self):
        self._norm, self._lock = Task(program.kernel("norm_task")), threading.Lock()
        self.callback = Task(self._work)
        self.expect(1)

    def expect(self, count):
        """Forget who worked. A norm of one row has one task: then nobody can come."""
        self.seen, self._second = set(), threading.Event()
        self._waits = 1 if count == 1 else 100

    def _work(self, arguments, number, scratch):
        with self._lock:
            self.seen.add(threading.get_ident())
            if len(self.seen) > 1:
                self._second.set()
            self._waits -= 1
        if self._waits >= 0:
            self._second.wait(0.2)
        self._norm(arguments, number, scratch)


@pytest.fixture
def workers(monkeypatch):
    workers, kernel = Workers(), program.kernel
    callback = ctypes.cast(workers.callback, ctypes.c_void_p).value
    monkeypatch.setattr(program, "kernel", lambda n: callback if n == "norm_task" else kernel(n))
    return workers


def logits_in_slices(model):
    slices = model.forward_slices([(model.new_slot(), PROMPT)])
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value.download()


def recorded_steps(model):
    slot = model.new_slot()
    return np.concatenate([model.forward([(slot, [token])]) for token in PROMPT[:3]])


WAYS = [lambda model: model.logits(PROMPT), logits_in_slices, recorded_steps]


@pytest.mark.needs_plugins
@pytest.mark.parametrize("way", WAYS, ids=["prompt", "slices", "recorded"])
def test_each_model_runs_on_the_threads_it_was_loaded_with(path, workers, way):
    models = {count: load(path, backend="cpu", threads=count) for count in COUNTS}
    results = []
    for count in (*COUNTS, *COUNTS[::-1]):
        assert models[count].backend.describe().startswith(f"cpu: {count} threads, ")
        workers.expect(count)
        results.append(way(models[count]))
        assert len(workers.seen) == count
    for one, other in pairwise(results):
        np.testing.assert_array_equal(one, other)


@pytest.mark.needs_plugins
def test_models_with_other_threads_run_at_the_same_time(path, monkeypatch):
    models = {count: load(path, backend="cpu", threads=count) for count in (*COUNTS, 3)}
    expected, wrong, used, run = models[1].logits(PROMPT), [], set(), Team.run

    def noting(team, *arguments):
        used.add((threading.current_thread().name, team.threads))
        run(team, *arguments)

    def work(model):
        for _ in range(20):
            if not np.array_equal(model.logits(PROMPT), expected):
                wrong.append(model)

    monkeypatch.setattr(Team, "run", noting)
    callers = [
        threading.Thread(target=work, args=(model,), name=str(count))
        for count, model in models.items()
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    assert used == {(str(count), count) for count in models}


def test_memory_of_a_large_result_is_used_again_once_no_view_of_it_is_left():
    memory, shape = Memory(), (LEAST // 32, 16)
    first = memory.new(shape, np.float32)
    first[:] = 1
    where, view = address(first), first.reshape(-1)[5:][::2]
    del first
    second = memory.new(shape, np.float32)
    second[:] = 2
    assert address(second) != where and (view == 1).all()
    del view
    third = memory.new((LEAST,), np.uint8)
    assert address(third) == where and where % CACHE_LINE == 0
    assert third.dtype == np.uint8 and third.flags.writeable and third.flags.c_contiguous


def test_results_in_use_never_overlap_and_all_memory_comes_back():
    memory, rng = Memory(), np.random.default_rng(1)
    held = {}
    for number in range(600):
        if len(held) > 20 or (held and rng.random() < 0.4):
            mark = list(held)[rng.integers(len(held))]
            assert (held.pop(mark) == mark % 251).all()
        held[number] = memory.new((int(rng.integers(LEAST, 20 * LEAST)),), np.uint8)
        held[number][:] = number % 251
    whole = MOST - 2 * CACHE_LINE - GAP
    held.clear()
    first = address(memory._block)
    assert first <= address(memory.new((whole,), np.uint8)) <= first + CACHE_LINE


def test_what_is_small_or_does_not_fit_is_left_to_the_allocator():
    memory = Memory()
    for nbytes in (0, LEAST - 1):
        assert memory.new((nbytes,), np.uint8).nbytes == nbytes
    assert not memory._block.size
    half = memory.new((MOST // 2,), np.uint8)
    other = memory.new((MOST // 2,), np.uint8)
    assert half.base is not None and other.base is None and other.nbytes == MOST // 2
