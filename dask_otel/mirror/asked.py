"""Spans that were only asked for: Dask has not made them, so nothing of Dask's bounds their number."""

from __future__ import annotations

from itertools import islice

from .ids import bit_of
from .tree import Node

__all__ = ["Asked"]

#: Seconds that such a span is remembered after its last segment: it may ask again.
REMEMBERED = 3600.0
#: Spans that are looked at in one sweep.
AT_ONCE = 200
#: Of a set of forgotten ids; a million of them make one new id in sixteen look known.
BITS = 2**24


class Asked:
    """Spans that Dask has not made, those to be looked at next first, and which ones have been forgotten."""

    def __init__(self) -> None:
        self._nodes: dict[Node, None] = {}
        self._forgotten: bytearray | None = None

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def add(self, node: Node) -> None:
        """Note a span that was only asked for."""
        self._nodes[node] = None

    def keep(self, node: Node) -> None:
        """Note that Dask has made a span."""
        self._nodes.pop(node, None)

    def first_number(self, span_id: str, now: float) -> int:
        """Where to begin to number the segments of a span: not again where a forgotten one may have begun."""
        if self._forgotten is None:
            return 0
        place, mask = _place(span_id)
        return int(now) if self._forgotten[place] & mask else 0

    def forget(self, nodes: dict[str, Node], held: dict[Node, None], now: float) -> None:
        """Take spans that have been at rest for long out of ``nodes``, where they are by id, and out of ``held``."""
        for node in list(islice(self._nodes, AT_ONCE)):
            del self._nodes[node]
            if node.segment or node.children_known or now - node.previous_end < REMEMBERED:
                self._nodes[node] = None  # to the end
                continue
            held.pop(nodes.pop(node.info.id), None)
            if node.parent:
                node.parent.children_known -= 1
            if node.previous:
                self._forgotten = self._forgotten or bytearray(BITS // 8)
                place, mask = _place(node.info.id)
                self._forgotten[place] |= mask


def _place(span_id: str) -> tuple[int, int]:
    """Byte and bit of a span."""
    byte, bit = divmod(bit_of(span_id, BITS), 8)
    return byte, 1 << bit
