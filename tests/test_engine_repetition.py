"""What counts as endless repetition, and what does not."""

from __future__ import annotations

import random
import time

import pytest

from apr_core.engine.repetition import LEAST, LEAST_SHORT, LONGEST, LOOKS, TIMES, Repetition


def noticed_after(tokens):
    """How many tokens it took to notice; None if it never did."""
    watch = Repetition()
    return next((i for i, token in enumerate(tokens, 1) if watch.push(token)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 8, 30, 64, 200, LONGEST])
def test_a_period_repeated_without_end_is_noticed_in_time(period):
    rng = random.Random(period)
    before = [rng.randrange(1000) for _ in range(100)]
    repeated = rng.sample(range(1000, 2000), period)
    found = noticed_after(before + repeated * 2000)
    least = LEAST_SHORT if period < 8 else LEAST
    needed = 100 + max(TIMES * period, least)
    assert needed - 8 <= found < needed + LOOKS


@pytest.mark.parametrize("period", [3, 40])
def test_what_ends_before_it_is_endless_is_not(period):
    block = list(range(period)) * 400
    short = block[: (LEAST_SHORT if period < 8 else LEAST) - 50]
    assert noticed_after([*short, 9999]) is None
    assert noticed_after([*short, 1, 5, 9, *short]) is None


def test_tables_code_and_digits_are_no_repetition():
    rng = random.Random(0)
    table = [t for row in range(300) for t in (1, 2, 50 + row % 10, 60 + row // 10, 2, 7, 3)]
    code = [t for n in range(200) for t in (10, 11, 12, 100 + rng.randrange(40), 13, 14, 15)]
    digits = [rng.randrange(10) for _ in range(5000)]
    ruler = [5] * 500 + [6]
    for tokens in (table, code, digits, ruler * 3, list(range(4000))):
        assert noticed_after(tokens) is None


def test_a_period_beyond_the_longest_passes():
    assert noticed_after(list(range(LONGEST + 1)) * 30) is None


def test_it_costs_little():
    watch, count = Repetition(), 20_000
    started = time.process_time()
    for i in range(count):
        watch.push(i % 1000)
    assert (time.process_time() - started) / count < 50e-6
