"""The metrics of one scheduler: values are recorded, points come out. Imports neither Dask nor OpenTelemetry."""
