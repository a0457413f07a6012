"""What counts as endless repetition, and what does not."""

from __future__ import annotations

import random

import pytest

from apr_core.generate.sequence import FARTHEST, LEAST, LEAST_IN_THOUGHT, LOOKS, TIMES, Repetition


def noticed_after(tokens, thinking=False):
    """How many tokens it took to notice; None if it never did."""
    watch = Repetition()
    return next((i for i, token in enumerate(tokens, 1) if watch.push(token, thinking)), None)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("period", [1, 2, 7, 8, 30, 64, 200, 512, 513, 1500, FARTHEST])
def test_a_period_repeated_without_end_is_noticed_in_time(period, thinking):
    rng = random.Random(period)
    before = [rng.randrange(1000) for _ in range(100)]
    repeated = rng.sample(range(1000, 10_000), period)
    length = noticed_after(before + repeated * (2 + 8192 // period) * TIMES, thinking)
    needed = 100 + max(TIMES * period, LEAST_IN_THOUGHT if thinking else LEAST)
    assert needed <= length <= needed + LOOKS


@pytest.mark.parametrize("period", [3, 40, 700])
def test_what_ends_before_it_is_endless_is_not(period):
    block = list(range(period)) * 1000
    short = block[: max(LEAST, TIMES * period) - 50]
    assert noticed_after([*short, 9999]) is None
    assert noticed_after([*short, 1, 5, 9, *short]) is None


def test_a_loop_with_repetitions_of_its_own_is_noticed():
    """A thought that goes in circles, with a list in it that says the same words each time."""
    rng = random.Random(3)
    item = [7] + [rng.randrange(100) for _ in range(40)]
    circle = [t for n in range(20) for t in (*item, 1000 + n)] + list(range(2000, 2100))
    assert TIMES * len(circle) <= noticed_after(circle * 10) <= TIMES * len(circle) + LOOKS


@pytest.mark.parametrize("period", [33, 501])
def test_a_period_whose_end_repeats_by_itself_is_noticed_in_time(period):
    length = noticed_after(([5] * (period - 1) + [6]) * 5000)
    needed = max(TIMES * period, LEAST)
    assert needed <= length <= needed + LOOKS


def test_tables_code_and_digits_are_no_repetition():
    rng = random.Random(0)
    table = [t for row in range(300) for t in (1, 2, 50 + row % 10, 60 + row // 10, 2, 7, 3)]
    code = [t for n in range(900) for t in (10, 11, 12, 100 + rng.randrange(40), 13, 14, 15)]
    digits = [rng.randrange(10) for _ in range(5000)]
    ruler = [5] * 500 + [6]
    for tokens in (table, code, digits, ruler * 3, list(range(4000))):
        assert noticed_after(tokens) is None


def test_matrices_of_zeros_and_lines_somebody_asked_for_are_no_repetition():
    row = [20, *[21, 22] * 28, 23, 24]  # of 28 zeros
    line = list(range(30, 40))
    for tokens in (row * 28, line * 200, [0, 1] * 1000):
        assert noticed_after([*tokens, 99]) is None


def test_a_period_beyond_the_farthest_passes():
    assert noticed_after(list(range(FARTHEST + 1)) * 6) is None
