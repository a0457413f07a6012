"""Noticing that an answer repeats itself without end.

Only what is equal token by token counts. Tables, matrices of zeros, or a line that somebody wants a
hundred times are no endless repetition, so it takes long; in a thought, which nobody asked to be of
some form, it takes less.
"""

from __future__ import annotations

import numpy as np

TIMES = 4  # repeated so often, nothing new comes
LEAST = 2048  # tokens of repetition
LEAST_IN_THOUGHT = 1024
LONGEST = 512  # tokens of what is repeated, where every period is watched
FARTHEST = 8192  # and where the answer is searched for its own end
LOOKS, FAR_LOOKS = 32, 256  # tokens between looks at the counts, and searches
WORD = 32  # tokens that are searched for
TRIED = 64  # places where they were found

PERIODS = np.arange(1, LONGEST + 1)
NEEDED = {  # tokens that equal those a period before, by whether it is a thought
    thinking: np.maximum(least, TIMES * PERIODS) - PERIODS
    for thinking, least in ((False, LEAST), (True, LEAST_IN_THOUGHT))
}


class Repetition:
    """Counts, for every short period, how many tokens in a row equal those a period before."""

    def __init__(self) -> None:
        self._tokens = np.full(2 * LONGEST, -1, np.int64)  # [..], LONGEST of them before the first
        self._stop = LONGEST
        self._counts = np.zeros(LONGEST, np.int64)

    def push(self, token: int, thinking: bool = False) -> bool:
        """Take a token; whether the answer repeats itself endlessly.

        Exact to LOOKS tokens, or to FAR_LOOKS for what is longer than LONGEST.
        """
        before = self._tokens[self._stop - LONGEST : self._stop][::-1]
        self._counts += 1
        self._counts *= before == token
        if self._stop == self._tokens.size:
            self._tokens = np.resize(self._tokens, 2 * self._stop)
        self._tokens[self._stop] = token
        self._stop += 1
        seen = self._stop - LONGEST
        if seen % LOOKS == 0 and (self._counts >= NEEDED[thinking]).any():
            return True
        return seen % FAR_LOOKS == 0 and self._repeats_from_afar()

    def _repeats_from_afar(self) -> bool:
        """Whether the last tokens came before, and the same tokens since each time."""
        tokens, last = self._tokens, self._stop - 1
        first = max(LONGEST + WORD, last - FARTHEST)
        places = first + np.flatnonzero(tokens[first : last - LONGEST] == tokens[last])
        for back in range(1, WORD):
            places = places[tokens[places - back] == tokens[last - back]]
        return any(self._is_period(last - int(place)) for place in places[: -TRIED - 1 : -1])

    def _is_period(self, period: int) -> bool:
        start = self._stop - (TIMES - 1) * period
        if start - period < LONGEST:
            return False
        now, before = self._tokens[start : self._stop], self._tokens[start - period :]
        return np.array_equal(now, before[: now.size])
