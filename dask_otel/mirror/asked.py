"""Spans that were only asked for: Dask has not made them, so nothing of Dask's bounds their number."""

from __future__ import annotations

from .ids import bit_of
from .tree import Node

__all__ = ["Asked"]

#: Seconds that such a span is remembered after its last segment: it may ask again.
REMEMBERED = 3600.0
#: Roots that are looked at in one sweep.
AT_ONCE = 200
#: Of a set of forgotten ids; a million of them make one new id in sixteen look known.
BITS = 2**24


class Asked:
    """Roots of trees of which Dask has made no span, oldest first, and which ones have been forgotten."""

    def __init__(self) -> None:
        self._trees: dict[Node, list[str]] = {}
        self._forgotten: bytearray | None = None

    def add(self, node: Node) -> None:
        """Note a span that was only asked for; it is kept if Dask has made another one of its tree."""
        if node is node.root:
            self._trees[node] = [node.info.id]
        elif node.root in self._trees:
            self._trees[node.root].append(node.info.id)

    def has(self, node: Node) -> bool:
        """Whether Dask has made no span of a node's tree."""
        return node.root in self._trees

    def keep(self, node: Node) -> None:
        """Note that Dask has made a span."""
        self._trees.pop(node.root, None)

    def first_number(self, span_id: str, now: float) -> int:
        """Where to begin to number the segments of a span: not again where a forgotten one may have begun."""
        if self._forgotten is None:
            return 0
        place, bit = divmod(bit_of(span_id, BITS), 8)
        return int(now) if self._forgotten[place] & 1 << bit else 0

    def forget(self, nodes: dict[str, Node], held: dict[Node, None], now: float) -> None:
        """Take trees that have been at rest for long out of ``nodes``, where they are by id, and out of ``held``."""
        for root in list(self._trees)[:AT_ONCE]:
            if root.segment or now - root.previous_end < REMEMBERED:
                self._trees[root] = self._trees.pop(root)  # to the end
                continue
            self._forgotten = self._forgotten or bytearray(BITS // 8)
            for span_id in self._trees.pop(root):
                held.pop(nodes.pop(span_id), None)
                place, bit = divmod(bit_of(span_id, BITS), 8)
                self._forgotten[place] |= 1 << bit
