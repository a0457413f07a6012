"""KVState with a window: bounded room, rows that go, and what a row may look at."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.model.state import KVState, StateMakers

HEADS, DIM, GROWTH = 2, 4, KVState.growth


def rows(start, count):
    """k or v [n, Hkv, D] whose values are the position."""
    positions = np.arange(start, start + count, dtype=np.float32)
    return np.broadcast_to(positions[:, None, None], (count, HEADS, DIM)).copy()


def opened(window):
    makers = StateMakers(lambda shape, dtype="f32": np.full(shape, np.nan, np.float32))
    state = makers.kv(HEADS, DIM, window)
    state.open(0)
    return state


@pytest.mark.parametrize("window", [1, 2, 16, 255, 256, 300, 1024])
@pytest.mark.parametrize("sizes", [(1,) * 900, (300,) * 12, (4000, 1, 1), (1, 30, 2000, 7, 1, 600)])
def test_a_row_gets_all_that_its_window_holds(window, sizes):
    state, position = opened(window), 0
    for n in sizes:
        new = rows(position, n)
        keys, values = state.append(0, position, new, -new)
        position += n
        assert keys.shape[1] >= min(position, n + window - 1)
        positions = np.arange(position - keys.shape[1], position)
        np.testing.assert_array_equal(keys[0, :, 0], positions)
        np.testing.assert_array_equal(values[1, :, 3], -positions)
        assert state.first[0] % GROWTH == 0


def test_memory_stops_growing_and_comes_back():
    state = opened(1024)
    assert state.nbytes() == 2 * GROWTH * HEADS * DIM * 4
    held = []
    for position in range(0, 4000, 5):
        state.append(0, position, rows(position, 5), rows(position, 5))
        held.append(state.nbytes())
    most = 2 * (1024 + 2 * GROWTH) * HEADS * DIM * 4
    assert max(held) == held[-1] == most == state.bytes_at(4000) == state.bytes_at(10**6)
    state.append(0, 4000, rows(4000, 3000), rows(4000, 3000))
    assert state.nbytes() > most, "rows of one step look back from all of it"
    state.append(0, 7000, rows(7000, 1), rows(7000, 1))
    assert state.nbytes() == most
    state.close(0)
    assert state.nbytes() == 0 and not state.segments


def test_a_snapshot_holds_the_window_and_little_else():
    state = opened(300)
    state.append(0, 0, rows(0, 1000), rows(0, 1000))
    snapshot = state.snapshot(0, 1000)
    first, keys, _ = snapshot
    assert first == 512 and keys.shape == (HEADS, 488, DIM)
    state.open(1)
    state.append(1, 0, rows(0, 20), rows(0, 20))  # the slot has held something else before
    state.restore(1, snapshot)
    window, _ = state.append(1, 1000, rows(1000, 1), rows(1000, 1))
    np.testing.assert_array_equal(window[0, :, 0], np.arange(512, 1001))
