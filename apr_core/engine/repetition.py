"""Noticing that an answer repeats itself without end."""

from __future__ import annotations

import numpy as np

LONGEST = 512  # tokens of what is repeated
TIMES = 8  # repeated so often, nothing new comes
LEAST = 512  # tokens of repetition: shorter ones are tables, rulers, data
LEAST_SHORT = 1024  # where what is repeated is shorter than SHORT: rows of zeros, indentation
SHORT = 8
LOOKS = 32  # tokens between looks at the counts

PERIODS = np.arange(1, LONGEST + 1)
NEEDED = np.maximum(LEAST, TIMES * PERIODS) - PERIODS  # tokens that equal those a period before


class Repetition:
    """Counts, for every period, how many tokens in a row equal those a period before."""

    def __init__(self) -> None:
        self._tokens = np.full(2 * LONGEST, -1, np.int64)  # newest first, from _at on
        self._at = LONGEST
        self._counts = np.zeros(LONGEST, np.int64)
        self._seen = 0

    def push(self, token: int) -> bool:
        """Take a token; whether the answer repeats itself endlessly. Exact to LOOKS tokens."""
        before = self._tokens[self._at : self._at + LONGEST]
        self._counts += 1
        self._counts *= before == token
        if not self._at:
            self._tokens[LONGEST:] = self._tokens[:LONGEST]
            self._at = LONGEST
        self._at -= 1
        self._tokens[self._at] = token
        self._seen += 1
        return self._seen % LOOKS == 0 and self._endless()

    def _endless(self) -> bool:
        if not (self._counts >= NEEDED).any():
            return False
        short = int(self._counts[: SHORT - 1].max())  # multiples of a period are periods as well
        return not LEAST - SHORT <= short < LEAST_SHORT - SHORT
