"""What the watch gives away, and to whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..measure.snapshot import Snapshot
from ..measure.state import Exporter
from ..mirror.records import Record

__all__ = ["Sink"]


class Sink(Protocol):
    """Where records and metrics go; nothing here blocks but closing."""

    def put(self, records: list[Record]) -> list[Record]:
        """Take records that should leave together; return those that are on their way to a backend."""

    def wants_metrics(self, *, last: bool = False) -> bool:
        """Whether it is time for a snapshot, said once.

        For the last one it always is, if there is anybody to send it to; ask when the spans are closed.
        """

    def put_metrics(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Take a snapshot. After the last one, ``close_metrics`` follows."""

    @property
    def is_away(self) -> bool:
        """Whether nobody is known to be there: what was sent last has failed, everywhere."""

    def exporters(self) -> Iterable[Exporter]:
        """Say what became of the records so far."""

    def close(self, timeout: float) -> None:
        """Send what is left of all, within ``timeout`` seconds; blocks."""

    def close_spans(self, timeout: float) -> None:
        """Send the records that are left, within ``timeout`` seconds; blocks."""

    def close_metrics(self, timeout: float) -> None:
        """Send the last snapshot, within ``timeout`` seconds; blocks."""
