"""Vectors side by side: transposing them, and summing each into one lane of a result.

A vector has `lanes` numbers of 32 bits; a quarter is four of them, within which the cheap shuffles
of processors stay. Integer sums are exact, so their order is free.
"""

from __future__ import annotations

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I16, I32, Value, const, vector_of


def _within(picks: list[int], count: int) -> list[int]:
    """Repeat four picks in every quarter of `count` lanes; 4.. means the second vector."""
    return [q + p % 4 + (count if p >= 4 else 0) for q in range(0, count, 4) for p in picks]


def mix(b: Builder, x: Value, y: Value, picks: list[int]) -> Value:
    """Return four lanes picked from each pair of quarters of x and y; 4.. means y."""
    return b.shuffle(x, _within(picks, x.type.count), y)


LOW_WORDS, HIGH_WORDS = [0, 4, 1, 5], [2, 6, 3, 7]
EVEN_WORDS, ODD_WORDS = [0, 2, 4, 6], [1, 3, 5, 7]
LOW_PAIRS, HIGH_PAIRS = [0, 1, 4, 5], [2, 3, 6, 7]


def _quarters(picks: list[int]) -> list[int]:
    """Return the lanes of whole quarters of two vectors of 16; 4.. means the second vector."""
    return [4 * p + lane for p in picks for lane in range(4)]


FIRST_HALVES, SECOND_HALVES = _quarters([0, 1, 4, 5]), _quarters([2, 3, 6, 7])
EVEN_QUARTERS, ODD_QUARTERS = _quarters([0, 2, 4, 6]), _quarters([1, 3, 5, 7])


def columns4(b: Builder, rows: list[Value]) -> list[Value]:
    """Return 4 vectors from rows of 4 lanes: the c-th has the c-th lane of every row."""
    quarters, words = len(rows) // 4, []
    quads = [b.joined([rows[i + 4 * q] for q in range(quarters)]) for i in range(4)]
    for picks in (LOW_WORDS, HIGH_WORDS):
        words.append([mix(b, quads[i], quads[i + 1], picks) for i in (0, 2)])
    return [mix(b, low, high, picks) for low, high in words for picks in (LOW_PAIRS, HIGH_PAIRS)]


def transpose(b: Builder, rows: list[Value]) -> list[Value]:
    """Transpose 16 vectors of 16 lanes: lane r of the c-th result is lane c of the r-th vector."""
    quarters = [
        [b.shuffle(row, [4 * q + lane for lane in range(4)]) for row in rows] for q in range(4)
    ]
    return [column for quarter in quarters for column in columns4(b, quarter)]


def quarter_sums(b: Builder, vectors: list[Value]) -> list[Value]:
    """Return a vector for each four, whose quarters hold the sums of their quarters.

    A vector may hold pairs of int16 instead, which are added up at the end.
    """
    given = vectors[0].type
    pairs = given.element == I16
    if pairs:
        vectors = [b.bitcast(v, vector_of(I32, given.count // 2)) for v in vectors]

    def added(x: Value, y: Value) -> Value:
        if not pairs:
            return b.add(x, y)
        return b.bitcast(b.add(b.bitcast(x, given), b.bitcast(y, given)), x.type)

    for low, high in ((LOW_WORDS, HIGH_WORDS), (LOW_PAIRS, HIGH_PAIRS)):
        vectors = [
            added(mix(b, x, y, low), mix(b, x, y, high))
            for x, y in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    if not pairs:
        return vectors
    return [b.add_pairs(b.bitcast(v, given), const(given, 1)) for v in vectors]


def _halves_added(b: Builder, v: Value) -> Value:
    """Return the sum of the two halves of a vector."""
    half = v.type.count // 2
    return b.add(b.shuffle(v, list(range(half))), b.shuffle(v, list(range(half, 2 * half))))


def across(b: Builder, vectors: list[Value]) -> Value:
    """Reduce 4, 8 or 16 vectors of integers to one: lane r is the sum of the r-th vector."""
    fours = quarter_sums(b, vectors)
    if fours[0].type.count == LANES and len(fours) == 4:
        pairs = [
            b.add(b.shuffle(x, FIRST_HALVES, y), b.shuffle(x, SECOND_HALVES, y))
            for x, y in (fours[:2], fours[2:])
        ]
        return b.add(
            *(b.shuffle(pairs[0], picks, pairs[1]) for picks in (EVEN_QUARTERS, ODD_QUARTERS))
        )
    while fours[0].type.count > 4:
        fours = [_halves_added(b, v) for v in fours]
    return b.joined(fours)


def four_sums(b: Builder, first: Value, second: Value) -> Value:
    """Return the sums of the quarters of two vectors of 16 lanes, in 8 lanes."""
    pairs = b.add(mix(b, first, second, LOW_WORDS), mix(b, first, second, HIGH_WORDS))
    lanes = [4 * quarter + k for k in (0, 1) for quarter in range(4)]
    return b.add(b.shuffle(pairs, lanes), b.shuffle(pairs, [lane + 2 for lane in lanes]))


def group_sums(b: Builder, vectors: list[Value]) -> Value:
    """Return the sums of 8 groups in 8 lanes; a group is a run of 8 lanes, or of 8 pairs of int16.

    Four pairs are added up in 16 bits.
    """
    fours = quarter_sums(b, vectors)
    if fours[0].type.count == LANES:  # lane k of quarters 0 and 1 belongs to group 2k, then 2k + 1
        parts = [
            b.shuffle(fours[0], [first + k + 8 * odd for k in range(4) for odd in (0, 1)])
            for first in (0, 4)
        ]
        return b.add(*parts)
    return b.join(*(_halves_added(b, v) for v in fours))
