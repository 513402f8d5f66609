"""The mirror: events and snapshots in, records out. It knows neither Dask nor OpenTelemetry.

``segments.Mirror`` is where to start reading; ``model`` says what goes in and what comes out.
"""
