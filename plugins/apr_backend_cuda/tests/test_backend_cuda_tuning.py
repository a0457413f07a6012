"""Which tiles kernels run with: from the package's table, from what was timed, timed now."""

from __future__ import annotations

import json

import pytest
from triton.runtime.errors import OutOfResources

from apr_backend_cuda.kernels.rows import tile_shape
from apr_backend_cuda.launching.tables import TABLES
from apr_backend_cuda.launching.tuning import Tuning

A, B, C = {"ROWS": 16}, {"ROWS": 32}, {"ROWS": 64}
TIMES = {16: 3.0, 32: 1.0, 64: 2.0}


class Clock:
    """Runs what it is to time, and says how long it took by what was run."""

    def __init__(self):
        self.ran = []

    def __call__(self, run):
        run()
        return TIMES[self.ran[-1]["ROWS"]]

    def choice(self, tuning, candidates=(A, B, C)):
        return tuning.choice("op", candidates, self.ran.append)


def test_the_fastest_is_chosen_and_timed_once(tmp_path):
    clock = Clock()
    tuning = Tuning({}, tmp_path / "device.json", clock)
    assert clock.choice(tuning) == clock.choice(tuning) == B
    assert clock.ran == [A, B, C]


def test_what_was_timed_is_kept_for_the_next_process(tmp_path):
    file = tmp_path / "device.json"
    clock = Clock()
    clock.choice(Tuning({}, file, clock))
    later = Clock()
    assert later.choice(Tuning({}, file, later)) == B
    assert later.ran == []
    assert list(tmp_path.iterdir()) == [file]


def test_the_table_of_the_package_needs_no_timing(tmp_path):
    clock = Clock()
    assert clock.choice(Tuning({"op": C}, None, clock)) == C
    assert clock.ran == []


def test_what_was_timed_here_comes_before_the_table_of_the_package(tmp_path):
    file, table = tmp_path / "device.json", {"op": C, "other": A}
    Clock().choice(Tuning(table, file, Clock(), "off"))
    clock = Clock()
    clock.choice(Tuning(table, file, clock, "again"))
    assert json.loads(file.read_text()) == {"op": B}
    assert Clock().choice(Tuning(table, file, Clock())) == B


def test_off_takes_the_first_and_again_times_what_is_known():
    clock = Clock()
    assert clock.choice(Tuning({}, None, clock, "off")) == A
    assert clock.ran == []
    assert clock.choice(Tuning({"op": C}, None, clock, "again")) == B


def test_candidates_too_large_for_the_device_are_passed_over():
    clock = Clock()

    def run(candidate):
        if candidate != C:
            raise OutOfResources(300000, 232448, "shared memory")
        clock.ran.append(candidate)

    assert Tuning({}, None, clock).choice("op", (A, B, C), run) == C


@pytest.mark.parametrize("damage", ["{", "[]", '{"op": {"ROWS": "many"}}', '{"op": 3}'])
def test_a_damaged_file_is_as_none(tmp_path, damage):
    file = tmp_path / "device.json"
    file.write_text(damage)
    clock = Clock()
    assert clock.choice(Tuning({}, file, clock)) == B
    assert json.loads(file.read_text()) == {"op": B}


def test_a_folder_that_cannot_be_written_to_harms_nothing(tmp_path):
    clock = Clock()
    assert clock.choice(Tuning({}, tmp_path / "gone" / "device.json", clock)) == B


def test_hopper_and_ada_have_choices_for_the_same_kernels():
    hopper, ada = TABLES[9, 0], TABLES[8, 9]
    assert hopper.keys() == ada.keys()
    assert {key.split()[0] for key in hopper} == {"linear", "linears", "matmul", "attend"}


@pytest.mark.parametrize("cols", [32, 128, 256, 4096])
def test_a_tile_of_few_rows_gives_a_thread_as_much_as_one_of_many(cols):
    """Else the compiler adds up a row in another order than where there are more of them."""
    for rows in (1, 2, 3, 64):
        tile = tile_shape(rows, cols)
        assert tile["ROWS"] * tile["WIDTH"] >= 4 * 128, "four for each thread of four warps"
