"""Kept states of prompts that begin alike.

A radix tree over token ids whose nodes lie at cuts (`cuts.py`). A node holds what its model's state
added since the node above (rows of keys and values) and a whole copy of what cannot be rewound
(recurrent state). Below a node only the first is needed; so memory is taken back by forgetting
copies that were not used for long, and a node goes when it has neither a copy nor anything below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_core.model.model import Model


class Node:
    """A prefix of `position` tokens, the last of which are `ids`, those since its parent.

    `parts` are what the layers' states made; those that hold rows stay as long as the node, the
    others are None once they were forgotten.
    """

    __slots__ = (
        "alone", "children", "ids", "nbytes", "parent", "parts", "pins", "position", "used"
    )  # fmt: skip

    def __init__(self, parent: Node | None, ids: tuple[int, ...], parts: list[Any]) -> None:
        self.parent, self.ids, self.parts = parent, ids, parts
        self.position: int = (parent.position if parent else 0) + len(ids)
        self.children: dict[int, list[Node]] = {}  # by the first of their ids
        self.pins = 0
        self.used = 0
        self.nbytes = 0


class PrefixCache:
    """The tree of one model. At most what `room` says, in bytes, is kept: see `shrink`."""

    def __init__(self, model: Model, room: Any) -> None:
        self._model, self._room = model, room
        self.nbytes = self.entries = 0

    def restore(self, ids: Sequence[int], cuts: Sequence[int], slot: int) -> Node | None:
        return None

    def keep(self, node: Node | None, ids: Sequence[int], slot: int) -> Node | None:
        return None

    def unpin(self, node: Node | None) -> None:
        return None

    def shrink(self, room: int) -> bool:
        return True
