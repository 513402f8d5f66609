"""What is wrong with a setting, said so that a person can mend it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Remarks", "SettingError"]


class SettingError(ValueError):
    """A setting has a value that cannot be used.

    Parameters
    ----------
    setting
        As the person wrote it: ``otel.traces.idle-timeout`` or an environment variable.
    value
        What they wrote.
    allowed
        What they may write.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting} = {value!r} cannot be used: it must be {allowed}")
        self.setting = setting


@dataclass
class Remarks:
    """What a person should know of values that stop nothing: a line each, once."""

    #: A value is understood otherwise than it is written, or leaves something off that nobody asked for.
    readings: list[str] = field(default_factory=list)
    #: A value cannot be used, and something else is used instead.
    problems: list[str] = field(default_factory=list)

    def reading(self, line: str) -> None:
        """Add a line on how a value is understood."""
        if line not in self.readings:
            self.readings.append(line)

    def fall_back(self, error: SettingError, instead: str) -> None:
        """Add a line on a value that cannot be used, and what is done instead."""
        line = f"{error}; {instead}"
        if line not in self.problems:
            self.problems.append(line)
