"""The metrics of the cluster: values are recorded, snapshots come out. Imports neither Dask nor OpenTelemetry."""
