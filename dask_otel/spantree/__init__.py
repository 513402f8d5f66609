"""The span tree: events in, finished spans (records) out. Imports neither Dask nor OpenTelemetry.

``lifecycle.SpanTree`` is where to start reading; ``events`` are the inputs, ``records`` the outputs.
"""
