"""What the mirror needs to be told; times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Level", "MirrorSettings"]


class Level(IntEnum):
    """What a trace shows, each with all before."""

    NOTHING = 0
    SPANS = 1
    GROUPS = 2
    TASKS = 3


@dataclass(frozen=True)
class MirrorSettings:
    """How to cut what happens into segments, and how much of it to show."""

    #: How long a subtree must be at rest before its segment closes.
    settle: float = 5.0
    #: Age at which a segment is cut.
    max_segment: float = 3600.0
    #: Age at which a root that is at work sends a marker.
    announce: float = 15.0
    #: Group spans a segment.
    max_groups: int = 500
    #: What traces show.
    level: Level = Level.TASKS
    #: What those of work without a span show, if that is less.
    default_level: Level = Level.TASKS

    def level_of(self, *, is_default: bool) -> Level:
        """What a trace shows, that of work without a span or another."""
        return min(self.level, self.default_level) if is_default else self.level
