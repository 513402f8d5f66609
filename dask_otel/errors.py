"""What is wrong with a setting, said so that a person can mend it."""

from __future__ import annotations

__all__ = ["SettingError"]


class SettingError(ValueError):
    """A setting has a value that cannot be used.

    Parameters
    ----------
    setting
        As the person wrote it: ``otel.traces.settle`` or an environment variable.
    value
        What they wrote.
    allowed
        What they may write.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting} = {value!r} cannot be used: it must be {allowed}")
        self.setting = setting
