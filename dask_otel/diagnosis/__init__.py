"""Why a run was slow: thread-seconds by part, the critical path, verdicts. Knows neither Dask nor OpenTelemetry."""
