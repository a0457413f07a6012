"""WindowState: two windows' room, rows that slide, and what a row may look at."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.errors import BackendError
from apr_core.model.state import StateMakers, WindowState

HEADS, DIM = 2, 4


def rows(start, count):
    """k or v [n, Hkv, D] whose values are the position."""
    positions = np.arange(start, start + count, dtype=np.float32)
    return np.broadcast_to(positions[:, None, None], (count, HEADS, DIM)).copy()


def opened(window):
    state = StateMakers(lambda shape, dtype="f32": np.zeros(shape, np.float32)).window(
        HEADS, DIM, window
    )
    state.open(0)
    return state


@pytest.mark.parametrize("window", [1, 2, 5, 16])
@pytest.mark.parametrize("sizes", [(1,) * 40, (3,) * 12, (40, 1, 1), (1, 30, 2), (2, 7, 1, 1, 33)])
def test_a_row_gets_all_that_its_window_holds(window, sizes):
    state, position = opened(window), 0
    for n in sizes:
        new = rows(position, n)
        keys, values, first = state.append(0, position, new, -new)
        positions = np.arange(first, position + n)
        assert first <= max(0, position - window + 1)
        np.testing.assert_array_equal(keys[0, :, 0], positions)
        np.testing.assert_array_equal(values[1, :, 3], -positions)
        position += n


def test_memory_does_not_grow_and_comes_back():
    state = opened(8)
    held = state.nbytes()
    for position in range(0, 200, 5):
        state.append(0, position, rows(position, 5), rows(position, 5))
    assert state.nbytes() == held == 2 * 2 * 8 * HEADS * DIM * 4
    state.close(0)
    assert state.nbytes() == 0


def test_a_snapshot_holds_the_window_and_nothing_else():
    state = opened(8)
    state.append(0, 0, rows(0, 30), rows(0, 30))
    state.append(0, 30, rows(30, 3), rows(30, 3))
    snapshot = state.snapshot(0, 33)
    first, keys, _ = snapshot
    assert first == 26 and keys.shape == (HEADS, 7, DIM)
    state.open(1)
    state.restore(1, snapshot)
    window, _, first = state.append(1, 33, rows(33, 1), rows(33, 1))
    np.testing.assert_array_equal(window[0, :, 0], np.arange(26, 34))
    assert first == 26


def test_a_window_in_8_bits_is_refused():
    with pytest.raises(BackendError, match="f32 or f16"):
        WindowState(np.zeros, HEADS, DIM, 8, "q8")
