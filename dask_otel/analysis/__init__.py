"""Old runs as data: ``load`` reads traces from Jaeger, Tempo or files into pandas' data frames.

Needs ``pip install 'dask-otel[analysis]'``.
"""

from .errors import LoadError, LoadWarning
from .runs import Runs, load

__all__ = ["LoadError", "LoadWarning", "Runs", "load"]
