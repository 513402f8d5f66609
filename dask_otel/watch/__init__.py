"""Reads Dask: hooks and sweeps that tell the mirror what happened."""
