"""Reads Dask on the scheduler: hooks, the periodic sweep, start and shutdown."""
