"""The command line's commands, as ``dask-otel …`` and ``dask otel …``.

Dask imports this module for each of its own commands, ``dask scheduler`` among them: a command's module is imported
when that command is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from .. import __version__, config
from ..errors import SettingError
from . import refuse

__all__ = ["dask_otel"]

#: Each is a module of this package, with a function of this name.
_COMMANDS = ("demo", "diff", "doctor", "export", "report")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is no such command."""
        if cmd_name not in _COMMANDS:
            return None
        try:
            config.check_limits()  # the SDK fails without a name when it is imported
            command: click.Command = getattr(import_module(f".{cmd_name}", __package__), cmd_name)
        except SettingError as error:
            refuse(str(error))
        except ImportError as error:
            refuse(f"{ctx.command_path} needs {error.name}: pip install 'dask-otel[cli]', in a checkout '.[cli]'")
        except KeyboardInterrupt:  # the imports take seconds
            sys.exit(130)
        return command


@click.group(name="otel", cls=_Commands)
@click.version_option(__version__, prog_name="dask-otel")
def dask_otel() -> None:
    """Dask's spans as OpenTelemetry traces, and its numbers as metrics."""
