"""The cluster's numbers: what the sweep saw goes in, a snapshot of metrics comes out.

Knows neither Dask nor OpenTelemetry.
"""
