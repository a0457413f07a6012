"""Steps that are recorded and run again, and the threads that run them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from apr_backend_cpu import native
from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.constants import COLUMNS
from apr_backend_cpu.ops import elementwise, linear
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import new, recorder
from apr_backend_cpu.run.recording import KEPT, MOST, Captured, Pending
from apr_backend_cpu.run.team import Team, program_words
from apr_core.model.step import make_step
from apr_core.ops.binding import Weight


def normal(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.fixture
def weights():
    """An embedding and a square matrix, both dense."""
    matrices = []
    for name, rows in (("embedding", 50), ("square", 64)):
        w = Weight(name, "f32", (rows, 64), normal(rows, 64))
        w.linear, w.embed = linear.linear, linear.embed
        matrices.append(w)
    return matrices


def step_of(*positions):
    return make_step([(slot, 1, position) for slot, position in enumerate(positions)])


def ids_of(*ids):
    return np.array(ids, np.int64)


def network(weights, calls, between=lambda x: x):
    """A step of ops, with `between` in the middle; counts how often Python runs it."""
    embedding, square = weights
    norm, inv_freq = normal(64), normal(8)

    def step(ids, step):
        calls.append(len(ids))
        h = linear.embed(ids, embedding)
        x = between(elementwise.rms_norm(h, norm, 1e-6, 0.0))
        y = linear.linear(x, square).reshape(-1, 4, 16)
        y = elementwise.rope(y, step.positions, inv_freq)
        return elementwise.swiglu(y.reshape(-1, 64), h)

    return step


def test_a_replayed_step_equals_the_step_itself(weights):
    calls, once = [], []
    captured = Captured(network(weights, calls))
    plain = network(weights, once)
    for ids, positions in (((3, 4), (0, 9)), ((7, 4), (1, 10)), ((0, 49), (300, 2))):
        expected = plain(ids_of(*ids), step_of(*positions))
        got = captured(ids_of(*ids), step_of(*positions))
        np.testing.assert_array_equal(got, expected)
        assert type(got) is np.ndarray
    assert calls == [2], "a recorded step must not call Python again"
    captured(ids_of(1), step_of(0))
    assert calls == [2, 1], "another number of sequences is another recording"


def test_results_of_a_replay_stay_what_they_were(weights):
    captured = Captured(network(weights, []))
    first = captured(ids_of(3), step_of(0))
    kept = first.copy()
    captured(ids_of(4), step_of(1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x * np.float32(2),
        lambda x: np.concatenate([x, x])[: len(x)],
        lambda x: x[list(range(len(x)))],
        lambda x: x.copy(),
        lambda x: x + x.item(0),
        lambda x: x.T.reshape(-1).reshape(x.shape[1], -1).T,
        lambda x: np.array(x.tolist(), np.float32),
    ],
    ids=["arithmetic", "numpy", "indices", "copy", "item", "reshape that copies", "list"],
)
def test_what_looks_at_values_ends_the_recording_and_not_the_result(weights, between):
    calls, once, notes = [], [], []
    captured = Captured(network(weights, calls, between), notes.append)
    plain = network(weights, once, between)
    for position in range(3):
        expected = plain(ids_of(5, 6), step_of(position, position))
        got = captured(ids_of(5, 6), step_of(position, position))
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    assert len(calls) == 3
    assert recorder() is None
    (line,) = notes
    assert line.startswith("values are needed in ") and "test_cpu_recording.py:" in line


def test_a_number_of_sequences_that_cannot_be_recorded_leaves_others_alone(weights):
    calls, notes = [], []

    def between(x):
        return x * np.float32(1) if len(x) == 2 else x

    captured = Captured(network(weights, calls, between), notes.append)
    for _ in range(3):
        captured(ids_of(5, 6), step_of(0, 0))
        captured(ids_of(5), step_of(0))
    assert calls == [2, 1, 2, 2] and len(notes) == 1


def test_writing_into_a_pending_array_comes_after_what_was_recorded(weights):
    def between(x):
        x[:, 0] = 7.0
        return x

    captured, plain = Captured(network(weights, [], between)), network(weights, [], between)
    expected = plain(ids_of(5), step_of(0))
    np.testing.assert_array_equal(np.asarray(captured(ids_of(5), step_of(0))), expected)


def test_an_error_while_recording_leaves_no_recorder(weights):
    def fail(x):
        raise ValueError("no")

    captured = Captured(network(weights, [], fail))
    with pytest.raises(ValueError, match="no"):
        captured(ids_of(5), step_of(0))
    assert recorder() is None
    assert type(new((2, 2))) is np.ndarray


def test_prompts_and_large_batches_are_not_recorded(weights):
    calls = []
    captured = Captured(network(weights, calls))
    prompt = make_step([(0, 5, 0)])
    many = make_step([(slot, 1, 0) for slot in range(MOST + 1)])
    for _ in range(2):
        captured(np.arange(5), prompt)
        captured(np.zeros(MOST + 1, np.int64), many)
    assert calls == [5, MOST + 1, 5, MOST + 1]


def test_only_some_recordings_are_kept(weights):
    captured = Captured(network(weights, []))
    for count in range(1, KEPT + 4):
        captured(np.zeros(count, np.int64), step_of(*range(count)))
    assert len(captured._replays) == KEPT


def test_memory_of_dropped_results_is_reused_in_order(weights):
    calls = []

    def step(ids, step):
        calls.append(1)
        x = linear.embed(ids, weights[0])
        for _ in range(20):
            x = elementwise.swiglu(x, linear.linear(x, weights[1]))
        return x

    captured = Captured(step)
    for position in range(3):
        expected = step(ids_of(9), step_of(position))
        np.testing.assert_array_equal(captured(ids_of(9), step_of(position)), expected)
    held = captured._replays[1]._program._kept
    kept = sum(getattr(a, "nbytes", 0) for a in held if getattr(a, "dtype", 0) == np.uint8)
    assert kept < 20 * 64 * 4, "twenty layers must not need twenty results at once"


def test_pending_arrays_are_only_made_while_recording(weights):
    seen = []
    captured = Captured(network(weights, [], lambda x: seen.append(type(x)) or x))
    captured(ids_of(5), step_of(0))
    captured(np.arange(5), make_step([(0, 5, 0)]))
    assert seen == [Pending, np.ndarray]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_threads(weights, threads):
    x, square = normal(40, 64), weights[1]
    expected = Cpu(1).bind(linear.mlp)(x, square, square, square)
    mlp = Cpu(threads).bind(linear.mlp)
    for _ in range(20):
        np.testing.assert_array_equal(mlp(x, square, square, square), expected)


def test_every_task_runs_once(weights):
    """Threads that take over each other's tasks neither lose nor repeat one."""
    x = np.zeros((1000, 64), np.float32)
    y = np.ones_like(x)
    add_rms_norm = Cpu(4).bind(elementwise.add_rms_norm)
    for round_ in range(200):
        x, _ = add_rms_norm(x, y, normal(64), 1e-6, 0.0)
        assert (x == round_ + 1).all()


def test_programs_of_several_python_threads_do_not_mix(weights):
    inputs = [normal(30, 64) * (n + 1) for n in range(4)]
    expected = [linear.linear(x, weights[1]) for x in inputs]
    wrong = []

    def work(n):
        for _ in range(50):
            if not np.array_equal(linear.linear(inputs[n], weights[1]), expected[n]):
                wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_sleeping_team_wakes_up(weights):
    """A thread without work sleeps after a while; a program that comes just then is not lost."""
    x, product = normal(40, 64), Cpu(3).bind(linear.linear)
    expected = linear.linear(x, weights[1])
    for seconds in (0.0, 0.05, 0.0, *[0.0005] * 200, 0.05):
        time.sleep(seconds)
        np.testing.assert_array_equal(product(x, weights[1]), expected)


def test_no_arrival_of_a_thread_is_lost():
    """Threads take tasks by adding to the same words: all tasks, and a miss of each at the end."""
    tasks, threads = 400_001, 4
    ids, table = np.zeros(tasks, np.int64), np.ones((1, 1), np.float32)
    out = np.zeros((tasks, 1), np.float32)
    decode = native.address("decode_f32")
    arguments = [address(ids), address(table), 4, 1, address(out), decode, 16, 64]
    arguments = np.array(arguments, np.int64)
    program = program_words(1, threads)
    program[:COLUMNS] = native.address("embed_task"), tasks, address(arguments)
    Team(threads).run(program, 1, 2048)
    cuts = [tasks * i // threads for i in range(threads + 1)]
    np.testing.assert_array_equal(program[COLUMNS:], np.diff(cuts) + threads)
    assert (out == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_makes_threads_of_its_own():
    code = """
import os, numpy as np
from apr_backend_cpu.ops import elementwise
x = np.ones((100, 64), np.float32)
expected = elementwise.swiglu(x, x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(elementwise.swiglu(x, x), expected) else 1)
_, status = os.waitpid(child, 0)
assert status == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
