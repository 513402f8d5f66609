"""Errors and remarks about settings and environment variables, worded so that a person can correct them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["Remarks", "SettingError"]


class SettingError(ValueError):
    """A setting has a value that cannot be used.

    Parameters
    ----------
    setting
        Its name: ``otel.traces.idle-timeout`` or an environment variable.
    value
        The value that was given.
    allowed
        Describes the values that can be used.
    is_known
        False if there is no such setting: nobody knows whether its value is a secret.
    """

    def __init__(self, setting: str, value: object, allowed: str, *, is_known: bool = True) -> None:
        super().__init__(f"{setting} = {value!r} cannot be used: it must be {allowed}")
        self.setting = setting
        self._value = value
        self._allowed = allowed
        self._is_known = is_known

    @property
    def public(self) -> str:
        """The message for whoever can open the page: without a value that may hold a password or a token."""
        shown = repr(self._value)
        if not self._is_known or len(shown) > 100 or re.search("[@?#&=;]", shown):
            shown = "(not shown)"
        return f"{self.setting} = {shown} cannot be used: it must be {self._allowed}"

    @property
    def without_value(self) -> str:
        """The setting, and what was probably meant; the value may be a secret."""
        meant = re.search(r"\(did you mean ([\w.-]+)\?\)", str(self))
        return f"{self.setting} (did you mean {meant[1]}?)" if meant else self.setting


@dataclass
class Remarks:
    """Lines for a person about values that stop nothing; each line once."""

    #: A value is understood in another way than it is written, or switches something off as a side effect.
    readings: list[str] = field(default_factory=list)
    #: A value cannot be used, and something else is used instead.
    problems: list[str] = field(default_factory=list)

    def reading(self, line: str) -> None:
        """Add a line about how a value is understood."""
        if line not in self.readings:
            self.readings.append(line)

    def fall_back(self, error: SettingError, instead: str) -> None:
        """Add a line about a value that cannot be used, and what is done instead."""
        line = f"{error}; {instead}"
        if line not in self.problems:
            self.problems.append(line)
