"""Prefix cache: kept states of prompts that begin alike.

A radix tree over token ids whose nodes lie at chunk boundaries (`boundaries.py`). A node holds the
rows that keys and values gained since its parent, and a full copy of what cannot be rewound
(recurrent state). Nodes below need only the rows; so memory is freed by dropping the least recently
used copies, and a node goes when it has no copy and no children.

Where a prompt and a node's prefix agree, so do the boundaries before it: restored and computed
state have the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apr_core.runtime import CHUNK

if TYPE_CHECKING:
    from apr_core.runtime import Model, Snapshot

APART = CHUNK  # tokens between copies of a long prompt
Edge = tuple[int, ...]  # token ids between two nodes


class Node:
    """A prefix of `position` tokens; `edge` are those since its parent.

    `rows` and `copies` have an entry a layer, None where the layer's state is in the other one.
    `copies` as a whole is None once it was dropped.
    """

    __slots__ = (
        "children", "copies", "copy_bytes", "edge", "parent", "pins", "position", "row_bytes",
        "rows",
    )  # fmt: skip

    def __init__(self, parent: Node | None, edge: Edge, rows: Sequence[Any]) -> None:
        self.parent, self.edge, self.rows = parent, edge, rows
        self.position: int = (parent.position if parent else 0) + len(edge)
        self.children: dict[Edge, Node] = {}
        self.copies: Sequence[Any] | None = None
        self.row_bytes, self.copy_bytes = _nbytes(rows), 0
        self.pins = 0  # prompts that are being read below it

    def path(self) -> list[Node]:
        """Return the nodes from below the root to this one."""
        nodes, node = [], self
        while node.parent is not None:  # as deep as a chat has turns: no recursion
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixCache:
    """The tree of one model. `capacity` returns the bytes that it may hold now."""

    def __init__(self, model: Model, capacity: Callable[[], int]) -> None:
        self._model, self._capacity = model, capacity
        self._root = Node(None, (), ())
        self._recent: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        self._by_rows = model.states_in_rows  # of each layer
        self._all_rows = all(self._by_rows)
        # a prefix may end anywhere if all state is rows, and rows do not depend on their batch
        self._anywhere = self._all_rows and model.backend.bitwise_rows
        self.nbytes = 0

    @property
    def entries(self) -> int:
        """The number of prefixes that are kept."""
        return len(self._recent)

    def restore(self, ids: Sequence[int], slot: int) -> Node:
        """Put the longest kept prefix of a prompt into a slot, leaving at least one id.

        Returns the node to continue from, which stays until `unpin`.
        """
        node, _, slices = self.restoring(ids, slot)
        for _ in slices:
            pass
        return node

    def restoring(self, ids: Sequence[int], slot: int) -> tuple[Node, int, Iterator[None]]:
        """Prepare to restore as `restore` does, in slices that the caller runs.

        Returns the node, the prefix's length, and the slices. Copying a long chat takes long.
        """
        node, last = self._root, len(ids) - 1
        deepest = node
        while (child := self._child(node, ids, last)) is not None:
            node = child
            if node.copies is not None:
                deepest = node
        chain: list[Snapshot] = [(n.position, self._parts(n)) for n in deepest.path()]
        chain += self._within_edge(deepest, ids, last)
        slices = self._model.restore_slices(slot, *chain) if chain else iter(())
        if chain:
            self._touch(deepest)
        deepest.pins += 1
        return deepest, chain[-1][0] if chain else 0, slices

    def _child(self, node: Node, ids: Sequence[int], last: int) -> Node | None:
        """Return the child with the longest edge that matches the ids; None if there is none."""
        for size in sorted({len(edge) for edge in node.children}, reverse=True):
            stop = node.position + size
            if stop <= last:
                child = node.children.get(tuple(ids[node.position : stop]))
                if child is not None:
                    return child
        return None

    def _within_edge(self, node: Node, ids: Sequence[int], last: int) -> list[Snapshot]:
        """Return the part of an edge that the ids share, if a prefix may end anywhere."""
        if not self._anywhere or not node.children:
            return []
        rest, best, shared = tuple(ids[node.position : last]), None, 0
        for edge, child in node.children.items():
            if shared < len(rest) and edge[shared : shared + 1] == rest[shared : shared + 1]:
                common = _common(rest, edge)  # only if more than the best so far
                best, shared = (child, common) if common > shared else (best, shared)
        if best is None:
            return []
        self._touch(best)
        whole = best.position, self._parts(best)
        return [self._model.shortened(whole, node.position, node.position + shared)]

    def _parts(self, node: Node) -> list[Any]:
        copies = node.copies or (None,) * len(self._by_rows)
        return [
            a if rows else b for rows, a, b in zip(self._by_rows, node.rows, copies, strict=True)
        ]

    def keep(self, node: Node, ids: Sequence[int], slot: int) -> Node:
        """Keep a slot's state, which is that of a prefix of `ids`, below a pinned node.

        Returns the node to continue from, pinned in its place; the same node if it does not fit.
        """
        stop = self._model.length(slot)
        edge = tuple(ids[node.position : stop])
        child = node.children.get(edge)
        if child is None or child.copies is None:
            child = self._kept(node, edge, child, slot)
        if child is None:
            return node
        self._touch(child)
        child.pins += 1
        self.unpin(node)
        return child

    def _kept(self, node: Node, edge: Edge, child: Node | None, slot: int) -> Node | None:
        if not self._capacity():
            return None
        _, parts = self._model.snapshot(slot, node.position)
        split = list(zip(self._by_rows, parts, strict=True))
        new = child or Node(node, edge, [part if in_rows else None for in_rows, part in split])
        copies = [None if in_rows else part for in_rows, part in split]
        copy_bytes = _nbytes(copies)
        if not self._reserve(copy_bytes + (0 if child else new.row_bytes), new):
            return None
        node.children[edge] = new
        new.copies, new.copy_bytes = copies, copy_bytes
        return new

    def _reserve(self, needed: int, node: Node) -> bool:
        """Reserve `needed` bytes without dropping `node`; return False if they do not fit."""
        left = self._capacity() - needed
        node.pins += 1
        fits = left >= 0 and self.shrink(left)
        node.pins -= 1
        if fits:
            self.nbytes += needed
        return fits

    def _touch(self, node: Node) -> None:
        """Mark a node, and those above that it needs, as most recently used."""
        for used in node.path() if self._all_rows else [node]:
            if used.copies is not None:
                self._recent[used] = None
                self._recent.move_to_end(used)

    def unpin(self, node: Node | None) -> None:
        """Note that no prompt is read below this node any more."""
        if node is not None:
            node.pins -= 1
            self._prune(node)

    def shrink(self, limit: int) -> bool:
        """Drop the least recently used until `limit` bytes hold the rest; return whether they do.

        Rows that prompts are being read below stay.
        """
        while self.nbytes > limit:
            victim = next((n for n in self._recent if n.copy_bytes or self._removable(n)), None)
            if victim is None:
                return False
            self._forget(victim)
        return True

    def _removable(self, node: Node) -> bool:
        return not node.children and not node.pins and node is not self._root

    def _forget(self, node: Node) -> None:
        self.nbytes -= node.copy_bytes
        node.copies, node.copy_bytes = None, 0
        del self._recent[node]
        self._prune(node)

    def _prune(self, node: Node) -> None:
        """Remove a node that is of no use any more, and those above that were kept for it."""
        while node.parent is not None and node.copies is None and self._removable(node):
            self.nbytes -= node.row_bytes
            del node.parent.children[node.edge]
            node = node.parent

    def clear(self) -> None:
        """Drop everything."""
        self.shrink(0)


def _common(ids: Edge, edge: Edge) -> int:
    """Return how many ids at the beginning are equal, by bisection."""
    equal, size = 0, min(len(ids), len(edge))
    while equal < size:
        middle = (equal + size + 1) // 2
        if ids[equal:middle] == edge[equal:middle]:
            equal = middle
        else:
            size = middle - 1
    return equal


def _nbytes(part: Any) -> int:
    """Return the bytes of all arrays in a snapshot."""
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, list | tuple):
        return sum(map(_nbytes, part))
    return int(getattr(part, "nbytes", 0))


def snapshot_positions(boundaries: Sequence[int], every: int) -> list[int]:
    """Return the boundaries of a prompt where state is kept: the first, the last, some between.

    A long chat that is new here has a boundary after every answer's header, but will continue only
    after the last: copies at all of them would only evict other chats'.
    """
    positions, last = [], 0
    for position in boundaries:
        ends = position in (boundaries[0], boundaries[-1])
        if ends or position % every == 0 or position - last >= APART:
            positions.append(position)
            last = position
    return positions
