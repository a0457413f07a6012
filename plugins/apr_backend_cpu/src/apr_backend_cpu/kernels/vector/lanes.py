"""Sixteen vectors at once: transposing them, and summing each into one lane of a result.

Integer sums are exact, so their order is free and the cheapest shuffles are taken.
"""

from __future__ import annotations

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.source import Builder
from apr_backend_cpu.kernels.vector.ir import Value, shuffle


def _in_quarters(picks: list[int]) -> list[int]:
    """Four picks of one 128-bit quarter, for all quarters; 4.. means the second vector."""
    return [4 * q + p % 4 + (LANES if p >= 4 else 0) for q in range(4) for p in picks]


LOW_WORDS, HIGH_WORDS = _in_quarters([0, 4, 1, 5]), _in_quarters([2, 6, 3, 7])
EVEN_WORDS, ODD_WORDS = _in_quarters([0, 2, 4, 6]), _in_quarters([1, 3, 5, 7])
LOW_PAIRS, HIGH_PAIRS = _in_quarters([0, 1, 4, 5]), _in_quarters([2, 3, 6, 7])


def _quarters(picks: list[int]) -> list[int]:
    """Lanes of whole 128-bit quarters; 4.. means the second vector."""
    return [4 * p + lane for p in picks for lane in range(4)]


FIRST_HALVES, SECOND_HALVES = _quarters([0, 1, 4, 5]), _quarters([2, 3, 6, 7])
EVEN_QUARTERS, ODD_QUARTERS = _quarters([0, 2, 4, 6]), _quarters([1, 3, 5, 7])


def transpose(b: Builder, rows: list[Value]) -> list[Value]:
    """16 vectors of 16 lanes -> 16 vectors; lane r of the c-th is lane c of the r-th."""
    pick = lambda x, y, lanes: shuffle(b, x, lanes, y)  # noqa: E731
    words: list[Value] = []
    for i in range(0, LANES, 2):
        words += [pick(rows[i], rows[i + 1], lanes) for lanes in (LOW_WORDS, HIGH_WORDS)]
    pairs: list[Value] = []
    for i in range(0, LANES, 4):
        for k in (0, 1):
            x, y = words[i + k], words[i + 2 + k]
            pairs += [pick(x, y, LOW_PAIRS), pick(x, y, HIGH_PAIRS)]
    columns: list[Value] = [None] * LANES
    for c in range(4):
        first = [pick(pairs[c], pairs[4 + c], lanes) for lanes in (FIRST_HALVES, SECOND_HALVES)]
        last = [pick(pairs[8 + c], pairs[12 + c], lanes) for lanes in (FIRST_HALVES, SECOND_HALVES)]
        for half in (0, 1):
            columns[8 * half + c] = pick(first[half], last[half], EVEN_QUARTERS)
            columns[8 * half + 4 + c] = pick(first[half], last[half], ODD_QUARTERS)
    return columns


def columns4(b: Builder, rows: list[Value]) -> list[Value]:
    """16 vectors of 4 lanes -> 4 vectors of 16; lane r of the c-th is lane c of the r-th."""
    eight, sixteen = list(range(8)), list(range(16))
    quads = []
    for i in range(4):
        pairs = [shuffle(b, rows[i + j], eight, rows[i + 4 + j]) for j in (0, 8)]
        quads.append(shuffle(b, pairs[0], sixteen, pairs[1]))  # rows i, i + 4, i + 8, i + 12
    words = [
        shuffle(b, quads[i], lanes, quads[i + 1])
        for i in (0, 2)
        for lanes in (LOW_WORDS, HIGH_WORDS)
    ]
    return [
        shuffle(b, words[k], lanes, words[2 + k])
        for k in (0, 1)
        for lanes in (LOW_PAIRS, HIGH_PAIRS)
    ]


def gather_quarters(b: Builder, vectors: list[Value]) -> list[Value]:
    """4 vectors of 4 quarters -> 4 vectors; quarter i of the q-th is quarter q of the i-th."""
    found = []
    for lanes in (FIRST_HALVES, SECOND_HALVES):
        low, high = (shuffle(b, vectors[i], lanes, vectors[i + 1]) for i in (0, 2))
        found += [shuffle(b, low, picks, high) for picks in (EVEN_QUARTERS, ODD_QUARTERS)]
    return found


class Reduction:
    """Takes integer vectors one after the other and keeps as few alive as it can.

    After each four, `fours` gains a vector whose quarters hold partial sums of these four.
    """

    def __init__(self, b: Builder) -> None:
        self._b = b
        self._pending: list[list[Value]] = [[], []]
        self.fours: list[Value] = []

    def push(self, vector: Value) -> None:
        """The next vector of 16 lanes."""
        self._push(0, vector)

    def _push(self, level: int, vector: Value) -> None:
        if level == 2:
            self.fours.append(vector)
            return
        waiting = self._pending[level]
        waiting.append(vector)
        if len(waiting) == 2:
            low, high = ((LOW_WORDS, HIGH_WORDS), (LOW_PAIRS, HIGH_PAIRS))[level]
            self._push(level + 1, self._add(*waiting, low, high))
            waiting.clear()

    def _add(self, x: Value, y: Value, low: list[int], high: list[int]) -> Value:
        return self._b.add(shuffle(self._b, x, low, y), shuffle(self._b, x, high, y))

    def whole(self) -> Value:
        """Of 16 vectors: lane r is the sum of all lanes of the r-th."""
        v = self.fours
        pairs = [self._add(v[i], v[i + 1], FIRST_HALVES, SECOND_HALVES) for i in (0, 2)]
        return self._add(*pairs, EVEN_QUARTERS, ODD_QUARTERS)
