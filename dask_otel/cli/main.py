"""The command line's commands."""

from __future__ import annotations

import click

from .. import __version__
from .demo import demo
from .doctor import doctor

__all__ = ["dask_otel"]


@click.group()
@click.version_option(__version__, prog_name="dask-otel")
def dask_otel() -> None:
    """Dask's spans as OpenTelemetry traces, and its numbers as metrics."""


dask_otel.add_command(demo)
dask_otel.add_command(doctor)
