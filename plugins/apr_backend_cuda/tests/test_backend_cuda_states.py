"""Keys and values in pages, and tables that kernels find memory by."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apr_backend_cuda.run.capture import Results
from apr_backend_cuda.run.steps import StaticTables, Tables
from apr_backend_cuda.states.device import DeviceStates, arrays_of, pages_of
from apr_backend_cuda.states.pages import PAGE
from apr_backend_cuda.states.slots import NOBODY, SLOTS
from apr_core.model.state import KVState, RecurrentState
from apr_core.model.step import make_step
from apr_core.plugin import BackendError

CPU = torch.device("cpu")
HEADS, DIM = 2, 8


def zeros(shape, dtype="f32"):
    return torch.zeros(shape, dtype={"f32": torch.float32, "f16": torch.float16}[dtype])


def makers(kv_type="f32", max_len=4 * PAGE):
    return DeviceStates(zeros, kv_type, CPU, max_len)


def paged(*slots, layers=1):
    maker = makers()
    states = [maker.kv(HEADS, DIM) for _ in range(layers)]
    for state in states:
        for slot in slots:
            state.open(slot)
    return states if layers > 1 else states[0]


def rows(count, seed=0):
    rng = np.random.default_rng([seed, count])
    return tuple(
        torch.from_numpy(rng.standard_normal((count, HEADS, DIM), np.float32)) for _ in range(2)
    )


def filled(state, slot, length):
    return torch.stack(state.filled(slot, length)).swapaxes(1, 2)  # [2, L, Hkv, D]


def test_what_is_appended_over_pages_is_there():
    state, (k, v) = paged(0), rows(150)
    for start, stop in ((0, 1), (1, 60), (60, 130), (130, 150)):
        state.append(0, start, k[start:stop], v[start:stop])
    assert torch.equal(filled(state, 0, 150), torch.stack([k, v]))


def test_layers_have_their_own_place_in_a_page():
    first, second = paged(0, layers=2)
    first.append(0, 0, *rows(70, 1))
    second.append(0, 0, *rows(70, 2))
    assert torch.equal(filled(first, 0, 70), torch.stack(rows(70, 1)))
    assert torch.equal(filled(second, 0, 70), torch.stack(rows(70, 2)))
    assert first.pool is second.pool and first.pool.held() == 2


def test_a_snapshot_takes_no_pages_and_outlives_what_its_sequence_does_next():
    state, (k, v) = paged(0, 1), rows(100)
    state.append(0, 0, k, v)
    kept = state.snapshot(0, 100)
    held = {id(page) for page in state.pool.pages(0, 0, 100)}
    assert {id(page) for page in kept.pages} == held
    state.append(0, 70, *rows(60, 9))  # from within a page that the snapshot has
    state.restore(1, kept)
    assert torch.equal(filled(state, 1, 100), torch.stack([k, v]))
    assert torch.equal(filled(state, 0, 70), torch.stack([k, v])[:, :70])
    assert torch.equal(filled(state, 0, 130)[:, 70:], torch.stack(rows(60, 9)))


def test_two_sequences_of_one_snapshot_go_their_own_ways():
    state = paged(0, 1, 2)
    state.append(0, 0, *rows(80))
    kept = state.snapshot(0, 80)
    state.restore(1, kept)
    state.restore(2, kept)
    state.append(1, 80, *rows(5, 1))
    state.append(2, 80, *rows(5, 2))
    assert torch.equal(filled(state, 1, 85)[:, 80:], torch.stack(rows(5, 1)))
    assert torch.equal(filled(state, 2, 85)[:, 80:], torch.stack(rows(5, 2)))
    first = [state.pool.pages(slot, 0, 1)[0] for slot in (0, 1, 2)]
    assert first[0] is first[1] is first[2]


@pytest.mark.parametrize("cut", [PAGE, 70, 2 * PAGE - 1])
def test_snapshots_taken_one_since_the_other_are_put_back_in_order(cut):
    state, (k, v) = paged(0, 1), rows(150)
    state.append(0, 0, k[:cut], v[:cut])
    before = state.snapshot(0, cut)
    state.append(0, cut, k[cut:], v[cut:])
    after = state.snapshot(0, 150, cut)
    state.restore(1, before)
    state.restore(1, after, cut)
    assert torch.equal(filled(state, 1, 150), torch.stack([k, v]))
    assert before.nbytes + after.nbytes == 150 * 2 * HEADS * DIM * 4


def test_the_first_rows_of_a_snapshot_are_one():
    state, (k, v) = paged(0, 1), rows(150)
    state.append(0, 0, k, v)
    state.restore(1, state.shortened(state.snapshot(0, 150), 65))
    assert torch.equal(filled(state, 1, 65), torch.stack([k, v])[:, :65])


def test_pages_that_a_window_has_left_go():
    maker, (k, v) = makers(), rows(250)
    state, everything = maker.kv(HEADS, DIM, 70), maker.kv(HEADS, DIM)
    assert state.pool is maker.kv(HEADS, DIM, 70).pool is not everything.pool
    for slot in (0, 1):
        state.open(slot)
    for start, stop in ((0, 100), (100, 200), (200, 249)):
        state.append(0, start, k[start:stop], v[start:stop])
    assert state.pool.held() == 2 and state.nbytes() == state.bytes_at(201)
    kept = state.snapshot(0, 249)  # the next row looks at positions from 180 on
    assert (kept.since, len(kept.pages)) == (2 * PAGE, 2) and not state.segments
    state.append(1, 0, *rows(9, 1))  # the slot has held something else before
    state.restore(1, kept)
    for slot in (0, 1):
        found = torch.stack(state.append(slot, 249, k[249:], v[249:])).swapaxes(1, 2)
        assert torch.equal(found, torch.stack([k, v])[:, 2 * PAGE :])
    state.close(0)
    state.close(1)
    assert state.nbytes() == 0


def test_memory_goes_with_the_last_who_holds_it():
    first, second = paged(0, layers=2)
    first.append(0, 0, *rows(70))
    kept = first.snapshot(0, 70)
    assert first.nbytes() == second.nbytes() == first.bytes_at(70) == 2 * PAGE * 2 * HEADS * DIM * 4
    first.close(0)
    assert second.nbytes() > 0
    second.close(0)
    assert first.nbytes() == second.nbytes() == 0
    assert all(page.holders == 1 for page in kept.pages)


def test_the_table_says_where_pages_are():
    state = paged(3)
    state.append(3, 0, *rows(130))
    pages = state.pool.pages(3, 0, 130)
    assert state.pool.table[3, :3].tolist() == [page.data.data_ptr() for page in pages]


def test_a_step_has_pages_for_its_rows_and_spare_ones_for_rows_of_nobody():
    state = paged(0, 2)
    tables = Tables(make_step([(2, 1, 64), (NOBODY, 1, 0), (0, 1, 3)], torch.from_numpy), CPU)
    table = tables.of_pages(state)
    assert table[2, 1] and table[0, 0] and table[NOBODY, 0]
    assert len(state.pool.pages(2, 0, 128)) == 2


def test_tables_that_stay_are_fed_the_next_step():
    state = paged(0, 1)
    tables = StaticTables(make_step([(0, 1, 63)], torch.from_numpy), CPU, 1024)
    tables.of_pages(state)
    tiles = tables.tiles_of(1)
    tables.refresh(make_step([(1, 1, 64)], torch.from_numpy))
    assert tables.tiles_of(1) is tiles
    assert tiles.tolist() == [[0, 1, 64, 0, 0, 1, 0, 0]]
    assert len(state.pool.pages(1, 0, 128)) == 2


def test_recurrent_arrays_are_found_by_slot():
    state = makers().recurrent(conv=(3, 4), delta=(2, 4, 4))
    state.open(5)
    state.provide_spare()
    for name, table in state.tables.items():
        assert table[5] == state.get(name, 5).data_ptr()
        assert table[NOBODY] not in (0, table[5])


@pytest.mark.parametrize("state", [paged(), makers().recurrent(conv=(3, 4))], ids=["kv", "delta"])
def test_one_sequence_too_many_is_refused(state):
    with pytest.raises(BackendError, match=f"{SLOTS} sequences"):
        state.open(SLOTS)


def test_precisions_that_no_kernel_reads_are_refused():
    with pytest.raises(BackendError, match="f32 and f16, not q8"):
        makers("q8").kv(HEADS, DIM)


def test_states_that_kernels_do_not_find_are_refused():
    with pytest.raises(BackendError, match="not to a KVState"):
        pages_of(KVState(zeros, HEADS, DIM))
    with pytest.raises(BackendError, match="not a RecurrentState"):
        arrays_of(RecurrentState(zeros, {"conv": (3, 4)}))


def test_a_full_gpu_is_an_error_that_says_what_to_do(monkeypatch):
    def full(*shape, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    state = paged(0)
    monkeypatch.setattr(
        "apr_backend_cuda.states.pages.torch",
        SimpleNamespace(empty=full, uint8=torch.uint8, OutOfMemoryError=torch.OutOfMemoryError),
    )
    with pytest.raises(BackendError, match="no memory left") as caught:
        state.append(0, 0, *rows(3))
    assert "--slots" in (caught.value.hint or "")


def test_recorded_steps_leave_their_logits_in_few_arrays():
    results = Results()
    small, large = results.put(torch.ones(5, 7)), results.put(torch.full((8, 7), 2.0))
    assert small.shape == (5, 7) and large.shape == (8, 7)
    assert small.data_ptr() == large.data_ptr() == results.put(torch.zeros(6, 7)).data_ptr()
    assert not large[:6].any() and (large[6:] == 2).all()
    assert results.put(torch.zeros(9, 7)).data_ptr() != large.data_ptr()
