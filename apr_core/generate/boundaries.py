"""Cuts prompts at positions given by the prompt alone, so that every run has the same bits.

Recurrent mixers give other bits when a prompt is cut off their grid. Boundaries are the positions
where state may be kept for other prompts, and a prompt is cut there whether it is kept or not.
Whether a position is one depends only on the tokens before it: what begins alike is cut alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from apr_core.errors import AprError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apr_core.text.tokenizer import Tokenizer

GRID = 64  # tokens; a multiple of every state's grid: cuts at its multiples change no bits
CHUNK = 512  # prompt tokens per forward
EVERY = 1024  # tokens between boundaries where there is no other reason
FIRST = GRID  # no cut after the first question's header if less precedes: a system prompt
CLOSEST = CHUNK  # nor after other questions' if less came since the last cut


class ChunkBoundaries:
    """Boundaries after headers of answers and some questions, and every `every` tokens.

    Chats diverge after the header of an answer, because templates drop its reasoning from history;
    after the first question's, because system prompts are shared; and after another question's only
    if it is asked anew, which is worth a cut where much would have to be read again. `answer` and
    `question` are the ids that open an assistant's and a user's message.
    """

    def __init__(
        self, answer: Sequence[int] = (), question: Sequence[int] = (), every: int = EVERY
    ) -> None:
        self.answer, self.question, self.every = tuple(answer), tuple(question), every

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Return rising positions in 1..len(ids) after which the state is worth keeping."""
        array = np.asarray(ids, np.int64)
        questions = _ends(array, self.question)
        distance = dict.fromkeys(questions, CLOSEST) | dict.fromkeys(questions[:1], FIRST)
        distance |= dict.fromkeys(range(self.every, len(ids) + 1, self.every), self.every // 2)
        distance |= dict.fromkeys(_ends(array, self.answer), 0)
        positions, last = [], 0
        for position in sorted(distance):
            if position - last >= distance[position]:
                positions.append(position)
                last = position
        return positions


def _ends(ids: NDArray[np.int64], wanted: Sequence[int]) -> list[int]:
    """Return the positions right after every occurrence of `wanted`."""
    starts = len(ids) - len(wanted) + 1
    if not wanted or starts < 1:
        return []
    matches = np.ones(starts, bool)
    for i, token in enumerate(wanted):
        matches &= ids[i : i + starts] == token
    ends: list[int] = (np.flatnonzero(matches) + len(wanted)).tolist()
    return ends


def boundaries_of(model: Any) -> ChunkBoundaries:
    """Return the boundaries of a model's prompts, made once per model."""
    if model not in _boundaries:
        template = getattr(model, "metadata", {}).get("chat_template")
        _boundaries[model] = ChunkBoundaries(*_headers(model.tokenizer, template))
    return _boundaries[model]


_boundaries: WeakKeyDictionary[Any, ChunkBoundaries] = WeakKeyDictionary()  # by model


def _headers(tokenizer: Tokenizer, template: Any) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids that open an answer and a question, by rendering the template; empty without.

    An answer's header is what a prompt for it and the same chat a turn later share after the
    question. A question's header is what precedes the place where two questions differ.
    """
    from apr_core.text.chat import ChatTemplate, encode_chat

    question, other = ({"role": "user", "content": text} for text in "xy")
    later = [question, {"role": "assistant", "content": "x"}, question]
    try:
        parsed = ChatTemplate(template)
        chats = [encode_chat(tokenizer, parsed, chat) for chat in ([question], later, [other])]
    except AprError:  # no template, or one that takes no such chat
        return (), ()
    return _header(tokenizer, chats[0], chats[1]), _header(tokenizer, chats[0], chats[2])


def _header(tokenizer: Tokenizer, one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the end of the prompts' common start, from its last control token on."""
    pairs = zip(one, other, strict=False)
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    controls = [i for i, id_ in enumerate(shared) if tokenizer.added_token(id_)]
    return shared[controls[-1] :] if controls else []


class Prefill:
    """A prompt, and how many of its tokens have been read.

    Forwards end at its boundaries or on the grid, where it changes no bits.
    """

    def __init__(self, ids: Sequence[int], boundaries: Sequence[int] = ()) -> None:
        self.ids, self.boundaries, self.position = ids, boundaries, 0

    @property
    def done(self) -> bool:
        """True if all of the prompt has been read."""
        return self.position == len(self.ids)

    def next_stop(self) -> int:
        """Return the position that the next forward may reach at most."""
        i = bisect_right(self.boundaries, self.position)
        return self.boundaries[i] if i < len(self.boundaries) else len(self.ids)

    def stop_within(self, tokens: int) -> int:
        """Return where a forward of about that many tokens ends: at a stop, or on the grid."""
        stop = self.next_stop()
        if stop - self.position <= tokens:
            return stop
        on_grid = (self.position + tokens) // GRID * GRID
        return min(stop, max(on_grid, self.position // GRID * GRID + GRID))
